"""Evaluators: an experiment's own look at the weights, at each evaluation.

    from framework import evaluators

    def make_evaluators(cfg):
        def digits(run):
            confusion = np.zeros([10, 10])
            for batch, outputs in evaluators.predictions(run):
                np.add.at(confusion, (batch["label"], outputs["logits"].argmax(1)), 1)
            recall = confusion.diagonal() / confusion.sum(1)
            return evaluators.Report({"worst_recall": recall.min()}, {"confusion": confusion / confusion.max()})

        digits.modes = {"worst_recall": "max"}
        return {"digits": digits}

An evaluator is called as `evaluator(run)` after the passes over the splits, on the weights that they evaluate. What it
does to the state is put back. It is a function of the run alone: what it remembers itself is not in a checkpoint.

`predictions` yields outputs of the loss, and `Compiled` those of another function of the model, such as decoded tokens.
What calls the model itself does so in `with run.weights(weights_of(run, split))`, for the averages of 'test@ema'.
`Ranking` ranks all items of a recommender.
`sample_table`, `length_histogram` and `attention_picture` show them in a report.
"""

from framework.evaluators.base import Evaluator, Report, check_names, examples, modes_of, predictions, weights_of
from framework.evaluators.compiled import Compiled
from framework.evaluators.ranking import Ranking
from framework.evaluators.shown import attention_picture, length_histogram, sample_table

__all__ = [
    "Compiled",
    "Evaluator",
    "Ranking",
    "Report",
    "attention_picture",
    "check_names",
    "examples",
    "length_histogram",
    "modes_of",
    "predictions",
    "sample_table",
    "weights_of",
]
