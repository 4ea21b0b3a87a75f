"""Losses of one example at a time, in float64 and plain NumPy, from their definitions."""

import numpy as np


def softmax(logits):
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cross_entropy(logits, targets):
    return -sum(t * np.log(p) for t, p in zip(targets, softmax(logits), strict=True) if t > 0)


def binary_cross_entropy(logit, target):
    p = sigmoid(logit)
    return -target * np.log(p) - (1 - target) * np.log(1 - p)


def focal(logit, target, gamma=2.0, alpha=0.25):
    p = sigmoid(logit) if target == 1 else 1 - sigmoid(logit)
    a = 1.0 if alpha is None else alpha if target == 1 else 1 - alpha
    return -a * (1 - p) ** gamma * np.log(p)


def kl(logits, targets):
    return sum(t * np.log(t / p) for t, p in zip(targets, softmax(logits), strict=True) if t > 0)


def huber(difference, delta):
    size = abs(difference)
    return size**2 / 2 if size <= delta else delta * (size - delta / 2)


def cosine_distance(left, right):
    return 1 - np.dot(left, right) / np.sqrt(np.dot(left, left) * np.dot(right, right))


def sparse_hinge(logits, label, margin=1.0):
    return max(0.0, margin + np.delete(logits, label).max() - logits[label])


def ctc(logits, labels, blank):
    """The sum over all paths of frames, tried one by one."""
    frames, classes = logits.shape
    shares = np.array([softmax(row) for row in logits])
    total = 0.0
    for path in np.ndindex(*[classes] * frames):
        merged = [c for place, c in enumerate(path) if place == 0 or c != path[place - 1]]
        if [c for c in merged if c != blank] == list(labels):
            total += np.prod([shares[frame, c] for frame, c in enumerate(path)])
    return -np.log(total)
