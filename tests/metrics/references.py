"""Metrics of arrays, in float64 and plain NumPy, from their definitions."""

import numpy as np


def wide(arrays):
    """Returns the arrays, floating ones in float64."""
    return {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in arrays.items()}


def softmax(logits):
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def top_k(logits, label, weight, k):
    hits = [y in np.argsort(-z, kind="stable")[:k] for z, y in zip(logits, label, strict=True)]
    return np.average(hits, weights=weight)


def by_class(guess, label, weight, c):
    """(precision, recall, F1) of a class; 0 where it is 0 / 0."""
    hits = weight[(guess == c) & (label == c)].sum()
    predicted, labelled = weight[guess == c].sum(), weight[label == c].sum()
    precision = hits / predicted if predicted else 0.0
    recall = hits / labelled if labelled else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def macro(guess, label, weight):
    seen = {*guess[weight > 0], *label[weight > 0]}
    return np.mean([by_class(guess, label, weight, c) for c in sorted(seen)], axis=0)


def roc(scores, label, weight):
    """The chance that a yes has a higher score than a no; half of it if they are equal."""
    yes, no = label == 1, label == 0
    above = (scores[yes][:, None] > scores[no]) + 0.5 * (scores[yes][:, None] == scores[no])
    pairs = weight[yes][:, None] * weight[no]
    return (above * pairs).sum() / pairs.sum()


def average_precision(scores, label, weight):
    """The mean over the yes of the precision at their score."""
    total, area = weight[label == 1].sum(), 0.0
    for score, w in zip(scores[label == 1], weight[label == 1], strict=True):
        chosen = scores >= score
        area += w * weight[chosen & (label == 1)].sum() / weight[chosen].sum()
    return area / total


def calibration(logits, label, weight, bins):
    shares = softmax(logits)
    confidence, hit = shares.max(-1), shares.argmax(-1) == label
    error = 0.0
    for b in range(bins):
        here = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if weight[here].sum():
            error += weight[here].sum() * abs(
                np.average(confidence[here], weights=weight[here]) - np.average(hit[here], weights=weight[here])
            )
    return error / weight.sum()


def r2(predictions, targets, weight):
    mean = np.average(targets, weights=weight)
    return 1 - (weight * (targets - predictions) ** 2).sum() / (weight * (targets - mean) ** 2).sum()


def perplexity(logits, label, weight):
    shares = np.take_along_axis(softmax(logits), label[..., None], -1)[..., 0]
    return np.exp(np.average(-np.log(shares), weights=weight))
