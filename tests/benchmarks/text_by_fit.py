"""A Transformer trained by `fit` of tf_keras beside the same one trained by the framework: error rates or BLEU.

    python tests/benchmarks/text_by_fit.py g2p                                        # the whole duration, both
    python tests/benchmarks/text_by_fit.py translate --data_dir=DIR --minutes=90      # as long on either side
    python tests/benchmarks/text_by_fit.py g2p --steps=40 --sentences=16 --set='schedule.warmup=9 steps'

Both sides are the model of `experiments/g2p_transformer.py` or `experiments/translate_transformer.py` from the same
initial weights, over the same batches in the same order, with the loss, the rates and the optimizer of the config.
`fit` has them as tf_keras has them: a data set, `compile(optimizer=Adam(…), loss=…)`, TensorFlow's dropout, one step an
execution, in a graph; its batches are made before its time begins. Ours takes its steps one by one, without evaluations
and checkpoints. Both are then scored by the evaluators of the run, on the first `--sentences` examples of each split.

`--minutes` ends a side's training after so much time, traces included; without it both make the same updates.
`--updates` ends it after so many, with the schedule as it is; `--steps` shortens the schedule too. What is printed last
says how far apart their weights are: by rounding alone, with --set=model.dropout=0 and --set=train.precision=float32.
`--only=fit` trains one side, so that two processes can have a core each.
"""

import argparse
import dataclasses
import importlib
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import evaluators, optim, paths, precision, testing
from framework.data.text import PADDING
from framework.layers.draws import KeyedGenerator
from tests.benchmarks.compare import machine

EXPERIMENTS = {"g2p": "g2p_transformer", "translate": "translate_transformer"}
SCORES = {"g2p": ("per", "wer"), "translate": ("bleu", "chrf")}
FIELDS = ("source", "target", "token_weight")
ALONE = {"eval.every": "", "checkpoint.every": "", "log.histograms_every": "", "train.block_steps": 1}
SIDES = ("ours", "fit")
SHOWN_SECONDS = 20.0  # between two lines of progress


class Progress:
    """Prints how far something is, at most every 20 seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._start = self._last = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def at(self, count: int, more: str = "") -> None:
        now = time.monotonic()
        if now - self._last > SHOWN_SECONDS or count == self._total:
            self._last = now
            print(f"{self._what}: {count} of {self._total}, {self.seconds():.0f} s{more}", flush=True)


def limited(name: str, experiment: Any, sentences: int) -> Any:
    """Returns a context in which the splits of evaluations are their first examples alone."""
    if name == "translate":
        lines = experiment.lines

        def first_lines(cfg: Any, split: str) -> dict[str, list[str]]:
            sides = lines(cfg, split)
            return sides if split == "train" else {side: texts[:sentences] for side, texts in sides.items()}

        return mock.patch.object(experiment, "lines", first_lines)
    dictionary = experiment.dictionary_of

    def first_words(cfg: Any) -> Any:
        whole = dictionary(cfg)
        splits = {split: words if split == "train" else words[:sentences] for split, words in whole.splits.items()}
        return dataclasses.replace(whole, splits=splits)

    return mock.patch.object(experiment, "dictionary_of", first_words)


def by_framework(run: Any, steps: int, minutes: float) -> tuple[int, float]:
    """Trains a run by its own steps; returns their number and the seconds."""
    progress = Progress("ours", steps)
    for step in range(steps):
        block = run.train_block(1)
        if block.is_halted:
            raise SystemExit(f"ours: step {step + 1} is not finite")
        progress.at(step + 1, f", loss {block.row(0)['loss']:.4f}")
        if minutes and progress.seconds() > 60 * minutes:
            return step + 1, progress.seconds()
    return steps, progress.seconds()


class Trained(keras.Model):
    """The network of a run for `fit`: (source, target) -> logits, with the dropout of TensorFlow.

    That of the framework needs a shape that is known when the step is traced; the graph of `fit` has free ones.
    """

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.network = run.model
        self._precision, self._seed = run.config.train.precision, run.config.seed

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Any, training: Any = None) -> tf.Tensor:
        if not training:
            return self.network(inputs, training=False)
        step = tf.cast(self.optimizer.iterations, tf.int32)

        def dropout(layer: KeyedGenerator, x: tf.Tensor, rate: float, noise_shape: Any = None) -> tf.Tensor:
            of_layer = zlib.crc32(f"{self._seed} {layer.rng_stream}".encode()) & 0x7FFFFFFF
            return tf.nn.experimental.stateless_dropout(x, rate, tf.stack([of_layer, step]), noise_shape=noise_shape)

        with precision.scope(self._precision), mock.patch.object(KeyedGenerator, "dropout", dropout):
            return self.network(inputs, training=True)


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """The schedule of a run, for an optimizer of tf_keras."""

    def __init__(self, schedule: Callable[[Any], tf.Tensor]) -> None:
        self._schedule = schedule

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._schedule(step), tf.float32)


class Timed(keras.callbacks.Callback):
    """Shows the progress of `fit`, and stops it in time."""

    def __init__(self, steps: int, minutes: float) -> None:
        super().__init__()
        self.progress, self._minutes, self.steps = Progress("fit", steps), minutes, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps = batch + 1
        self.progress.at(self.steps, f", mean loss {logs['loss']:.4f}")
        if self._minutes and self.progress.seconds() > 60 * self._minutes:
            self.model.stop_training = True


def smoothed(smoothing: float) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns the mean cross-entropy of a token, whose labels are smoothed: (targets and weights, logits) -> scalar."""

    def loss(given: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        labels, weight = tf.cast(given[..., 0], tf.int32), given[..., 1]
        logits = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        right = tf.gather(logits, labels, batch_dims=2)
        each = -(1 - smoothing) * right - smoothing * tf.reduce_mean(logits, -1)
        return tf.math.divide_no_nan(tf.reduce_sum(each * weight), tf.reduce_sum(weight))

    return loss


def by_fit(run: Any, steps: int, minutes: float) -> tuple[int, float]:
    """Trains the model of a run by `fit`; returns the number of updates and the seconds."""
    settings = run.config
    if settings.optimizer.name != "adam" or settings.clip.name not in ("", "none", "global_norm"):
        raise SystemExit("fit: only Adam, without clipping or by the global norm, is written down here")
    progress, batches = Progress("batches of fit", steps), []
    for step in range(steps):
        source, target, weight = (run.data.at(step)[name].numpy() for name in FIELDS)
        assert not weight[target == PADDING].any()
        batches.append(((source, target), np.stack([target, weight], -1).astype(np.float32)))
        progress.at(step + 1)

    def given() -> Iterator[Any]:
        yield from batches

    ids, labels = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None, 2], tf.float32)
    dataset = tf.data.Dataset.from_generator(given, output_signature=((ids, ids), labels)).prefetch(2)
    clipped = {"global_clipnorm": settings.clip.threshold} if settings.clip.name == "global_norm" else {}
    adam = {name: settings.optimizer[name] for name in ("beta_1", "beta_2", "epsilon")}
    model = Trained(run)
    rate = Rate(optim.make_schedule(run.resolved, run.total_steps))
    model.compile(keras.optimizers.Adam(rate, **adam, **clipped, jit_compile=False), smoothed(settings.model.smoothing))
    timed = Timed(steps, minutes)
    model.fit(dataset, epochs=1, steps_per_epoch=steps, verbose=0, callbacks=[timed])
    return timed.steps, timed.progress.seconds()


def scored(run: Any, name: str) -> dict[str, float]:
    """Returns what the evaluators of a run say: {'val_text/bleu': …}."""
    whole, examples = evaluators.Compiled.__call__, evaluators.examples

    def counted(self: Any, run: Any, split: str | None = None, limit: int | None = None) -> Iterator[Any]:
        progress, count = Progress(f"scoring {split}", sum(len(batch["source"]) for batch in examples(run, split))), 0
        for batch, outputs in whole(self, run, split, limit):
            count += len(batch["source"])
            progress.at(count)
            yield batch, outputs

    with mock.patch.object(evaluators.Compiled, "__call__", counted):
        reports = {of: evaluate(run).scalars for of, evaluate in run.evaluators.items()}
    return {f"{of}/{score}": scalars[score] for of, scalars in reports.items() for score in SCORES[name]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data_dir", default="", help="as the experiment says")
    parser.add_argument(
        "--steps", type=int, default=0, help="updates, the length of the schedule; 0: as the experiment"
    )
    parser.add_argument("--updates", type=int, default=0, help="end a side after so many, the schedule as it is")
    parser.add_argument("--minutes", type=float, default=0.0, help="end a side after so much training")
    parser.add_argument("--sentences", type=int, default=10**9, help="the most that are scored of each split")
    parser.add_argument("--only", choices=SIDES, help="train this side alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the config")
    options = parser.parse_args()
    experiment = importlib.import_module(f"experiments.{EXPERIMENTS[options.experiment]}")
    values = [f"{key}={value}" for key, value in {**ALONE, "data.dir": options.data_dir, "seed": options.seed}.items()]
    values += [f"train.duration={options.steps} steps"] if options.steps else []
    settings = [f"--config.{value}" for value in [*values, *options.set]]
    print(machine(), flush=True)
    runs, lines = {}, []
    with tempfile.TemporaryDirectory() as folder, limited(options.experiment, experiment, options.sentences):
        for side in SIDES if options.only is None else (options.only,):
            train = by_framework if side == "ours" else by_fit
            run = runs[side] = testing.build(experiment, settings, Path(folder) / side)
            updates, seconds = train(run, min(run.total_steps, options.updates or run.total_steps), options.minutes)
            scores = scored(run, options.experiment)
            cells = [side, f"{updates:,}", f"{seconds / 60:.1f}", *(f"{score:.4f}" for score in scores.values())]
            lines.append(f"| {' | '.join(cells)} |")
            header = ["", "updates", "minutes", *scores]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    print("\n".join(lines))
    if options.only:
        return
    one, other = (paths.variables(runs[side].model) for side in SIDES)
    apart = [np.linalg.norm(one[path].numpy() - other[path].numpy()) for path in one]
    whole = np.linalg.norm([np.linalg.norm(variable.numpy()) for variable in one.values()])
    print(f"Weights apart, relative L2: {np.linalg.norm(apart) / whole:.2g}")


if __name__ == "__main__":
    main()
