"""Translation with an encoder-decoder Transformer: Multi30k (Elliott et al., 2016), or any files aligned by line.

    python launch.py --config=experiments/translate_transformer.py --workdir=runs/translate --data_dir=DIR

DIR, or DIR/multi30k, has the files SPLIT.LANGUAGE, plain or as .gz: train.en, train.de, val.en, val.de,
test_2016_flickr.en, test_2016_flickr.de. Other corpora: --config.data.source=cs --config.eval.splits="('dev',)".
80 minutes on two CPU cores beside other programs; expect a BLEU of 39 for test_2016_flickr (experiments/README.md).
Needs the extra `text`.

Evaluations write BLEU and chrF with the signatures of sacrebleu, samples, lengths and attention. After the run,
`--mode=evaluate --config.checkpoint.average=10` scores the mean of the last ten checkpoints, and `--mode=export` with
the same key exports it: a SavedModel that takes and returns text, and an encoder and a decoder step for LiteRT.

On several GPUs (not run): --config.runtime.strategy=mirrored --config.train.precision=bfloat16.
"""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from framework import config, data, decoding, evaluators, export, layers, losses, metrics
from framework.data import text

EVALUATED = 4  # shapes of batches of an evaluation, each of which is traced once more
SHOWN = 4  # sentences whose attention is a picture

PRESETS = {"en_de": {}, "de_en": {"data.source": "de", "data.target": "en"}, "en_fr": {"data.target": "fr"}}


def get_config(arg: str) -> ConfigDict:
    """Returns the defaults: English to German, or what the preset `arg` says."""
    cfg = config.base_config()
    cfg.data.source = "en"
    cfg.data.target = "de"
    cfg.data.pieces = 8000  # of the vocabulary, which source and target share
    cfg.data.lower = False  # whether texts are made lower case
    cfg.data.tokens = 4096  # the most places of a batch, in source and in target
    cfg.data.buckets = 18  # shapes of batches
    cfg.data.longest = 64  # tokens of a sentence; longer ones are left out of training
    cfg.data.remainder = "pad"
    cfg.model.layers = 4  # of the encoder, and of the decoder
    cfg.model.width = 128
    cfg.model.heads = 4
    cfg.model.feed_forward = 256
    cfg.model.dropout = 0.3
    cfg.model.smoothing = 0.1  # of labels
    cfg.model.beam = 5
    cfg.model.length_penalty = 1.0
    cfg.train.duration = "6000 steps"
    cfg.train.compile = "graph"  # as it was measured; XLA would compile each shape
    cfg.optimizer.beta_2 = 0.98
    cfg.optimizer.epsilon = 1e-9
    cfg.schedule.name = "cosine"
    cfg.schedule.learning_rate = 4e-3
    cfg.schedule.warmup = "1000 steps"
    cfg.eval.splits = ("val", "test_2016_flickr")
    cfg.eval.every = "1500 steps"
    cfg.checkpoint.every = "200 steps"
    cfg.checkpoint.keep = 10
    cfg.export.examples = 100
    return config.apply_preset(cfg, arg, PRESETS)


def check_config(cfg: ConfigDict) -> None:
    """Refuses values of this file's own keys that the functions below cannot use."""
    for key in ("layers", "width", "heads", "feed_forward", "beam"):
        config.check_range(f"model.{key}", cfg.model[key], 1, None)
    for key in ("tokens", "buckets", "longest", "pieces"):
        config.check_range(f"data.{key}", cfg.data[key], 1, None)
    config.check_range("model.dropout", cfg.model.dropout, 0, 0.99)
    config.check_range("model.smoothing", cfg.model.smoothing, 0, 0.99)
    config.check_range("model.length_penalty", cfg.model.length_penalty, 0, None)
    if cfg.model.width % cfg.model.heads:
        raise config.UserError(f"model.width={cfg.model.width} is not divisible by model.heads={cfg.model.heads}.")


# ---- Data ----


def lines(cfg: ConfigDict, split: str) -> dict[str, list[str]]:
    """Returns the sentences of a split: {"source": […], "target": […]}."""
    return _lines(cfg.data.dir or os.environ.get("DATA_DIR", ""), split, cfg.data.source, cfg.data.target)


@functools.lru_cache(maxsize=8)
def _lines(folder: str, split: str, source: str, target: str) -> dict[str, list[str]]:
    places = [Path(folder).expanduser(), Path(folder).expanduser() / "multi30k"]
    has_it = [place for place in places if folder and list(place.glob(f"{split}.{source}*"))]
    if not has_it:
        raise config.UserError(
            f"'{folder}' has no file {split}.{source}. Type --data_dir=DIR, as the header says, and if other files have"
            " the sentences of evaluations, --config.eval.splits=\"('val',)\"."
        )
    return text.read_aligned({"source": has_it[0] / f"{split}.{source}", "target": has_it[0] / f"{split}.{target}"})


def vocabulary(cfg: ConfigDict) -> text.WordPieces:
    """Returns the word pieces of both languages, trained on the training sentences."""
    return _vocabulary(
        tuple(text for side in lines(cfg, "train").values() for text in side), cfg.data.pieces, cfg.data.lower
    )


@functools.lru_cache(maxsize=2)
def _vocabulary(texts: tuple[str, ...], pieces: int, lower: bool) -> text.WordPieces:
    return text.train_word_pieces(texts, pieces, lower)


def make_files(cfg: ConfigDict) -> dict[str, str]:
    """Returns the file of the vocabulary, which is saved in the run folder and with exports."""
    return {"vocabulary.json": vocabulary(cfg).to_json()}


def make_data(cfg: ConfigDict, split: str):
    """Returns the batches of a split: ids of source and target [batch, length of the bucket], and lines [batch]."""
    origin = f"{cfg.data.source}-{cfg.data.target}, {split}"
    source = text.encoded(lines(cfg, split), vocabulary(cfg), origin=origin)
    source = dataclasses.replace(source, arrays={**source.arrays, "line": np.arange(len(source))})
    lengths = {field: source.arrays[f"{field}_length"] for field in ("source", "target")}
    is_training = split == "train"
    limits = {field: min(cfg.data.longest, int(own.max())) for field, own in lengths.items()}
    buckets = data.Buckets.by_tokens(
        lengths,
        cfg.data.tokens,
        cfg.data.buckets if is_training else min(cfg.data.buckets, EVALUATED),
        longest=limits if is_training else None,
        longer="leave_out" if is_training else "refuse",
    )
    return data.make_batches(source, cfg, training=is_training, transform=with_token_weights, buckets=buckets)


def with_token_weights(batch):
    """Returns the batch with the weight of each target token: 0 at padding."""
    is_token = tf.cast(batch["target"] != text.PADDING, batch["weight"].dtype)
    return {**batch, "token_weight": is_token * batch["weight"][:, tf.newaxis]}


# ---- Model ----


def make_model(cfg: ConfigDict) -> layers.Transformer:
    """Returns the model: (source, target) -> logits [batch, length, pieces]."""
    names = ("layers", "width", "heads", "feed_forward", "dropout")
    return layers.Transformer(
        len(vocabulary(cfg)), padding=text.PADDING, begin=text.BEGIN, **{name: cfg.model[name] for name in names}
    )


def make_loss(cfg: ConfigDict):
    """Returns the loss: the mean cross-entropy of target tokens, whose labels are smoothed in training."""

    def loss(model, batch, training):
        logits = model((batch["source"], batch["target"]), training=training)
        smoothing = cfg.model.smoothing if training else 0.0
        term = losses.sparse_cross_entropy(logits, batch["target"], batch["token_weight"], smoothing)
        return {"cross_entropy": term}, {"logits": logits}

    return loss


def make_metrics(cfg: ConfigDict):
    """Returns the share of right tokens, given those before them, and in evaluations the perplexity."""
    tokens = {"label": "target", "weight": "token_weight"}
    return {"accuracy": metrics.Accuracy(**tokens), "perplexity": Perplexity(**tokens)}


class Perplexity(metrics.Perplexity):
    """Perplexity, in evaluations alone: in training, a softmax of all logits costs a tenth of a step."""

    logged = "evaluation"


# ---- Evaluation ----


def make_evaluators(cfg: ConfigDict):
    """Returns, for each split, the scores of the translations by beam search, with samples and attention."""
    return {f"{config.base_split(split)}_text": Translations(cfg, split) for split in cfg.eval.splits}


class Translations:
    """Reports BLEU and chrF of a split, as sacrebleu computes them; `bleu_lower` ignores case."""

    def __init__(self, cfg: ConfigDict, split: str) -> None:
        self.modes = {"bleu": "max", "bleu_lower": "max", "chrf": "max"}
        self._cfg, self._split = cfg, split
        self._decode = evaluators.Compiled(lambda model, batch: {"ids": translated(model, batch["source"], cfg)})

    def __call__(self, run):
        words, lines_of = vocabulary(self._cfg), lines(self._cfg, config.base_split(self._split))
        written = {}
        for batch, outputs in self._decode(run, self._split):
            written |= zip(batch["line"].tolist(), words.decode(outputs["ids"]), strict=True)
        ours = [written[line] for line in range(len(written))]
        scores = {
            "bleu": metrics.bleu(ours, lines_of["target"]),
            "bleu_lower": metrics.bleu(ours, lines_of["target"], lower=True),
            "chrf": metrics.chrf(ours, lines_of["target"]),
        }
        columns = {**lines_of, "translation": ours}
        return evaluators.Report(
            scalars={name: score.value for name, score in scores.items()},
            images={
                "lengths": evaluators.length_histogram(
                    *(map(len, map(str.split, of)) for of in (ours, columns["target"]))
                ),
                **self._attention(run, columns),
            },
            texts={
                "samples": evaluators.sample_table(columns),
                "signatures": [f"{name}: {score.signature}" for name, score in scores.items()],
            },
        )

    def _attention(self, run, columns):
        """Returns pictures of what the last layer looked at as it wrote the first sentences."""
        words = vocabulary(self._cfg)
        source, of_source = words.encode(columns["source"][:SHOWN], end=True)
        target, of_target = words.encode(columns["translation"][:SHOWN], end=True)
        with run.weights(evaluators.weights_of(run, self._split)):
            probabilities = run.model.source_attention(tf.constant(source), tf.constant(target))
        return {
            f"attention_{number}": evaluators.attention_picture(tf.cast(heads, tf.float32)[:, :rows, :columns])
            for number, (heads, rows, columns) in enumerate(zip(probabilities, of_target, of_source, strict=True))
        }


def translated(model, source: tf.Tensor, cfg: ConfigDict) -> tf.Tensor:
    """Returns the translations of sentences by beam search: ids [batch, data.longest]."""
    method = decoding.Beam(cfg.model.beam, cfg.model.length_penalty)
    state = model.start(source, cfg.data.longest)
    return decoding.decode(model.step, state, text.BEGIN, text.END, cfg.data.longest, method).ids[:, 0]


def make_exports(cfg: ConfigDict):
    """Returns the exports: a SavedModel of text in and text out, and source ids to target ids for LiteRT."""
    words, longest = vocabulary(cfg), cfg.data.longest
    segments = words.segments()

    def translate(model, inputs):
        return {"translation": segments.decode(translated(model, segments.encode(inputs["text"], end=True), cfg))}

    def texts_of(batch):
        return {"text": np.array([sentence.encode() for sentence in words.decode(batch["source"])])}

    def padded(batch):
        source = batch["source"][:, :longest]  # of a longer sentence the beginning, for the model and its export alike
        return {"source": np.pad(source, [(0, 0), (0, longest - source.shape[1])])}

    signature = export.Signature(
        translate, {"text": tf.TensorSpec([None], tf.string)}, texts_of, has_metrics=False, uses=[segments]
    )
    return [
        export.SavedModel({export.SERVING: signature}),
        export.LiteDecoder(
            start=lambda model, inputs: model.start(inputs["source"], longest),
            step=lambda model, tokens, state, position: model.step(tokens, state, position),
            inputs={"source": tf.TensorSpec([None, longest], tf.int32)},
            begin=text.BEGIN,
            end=text.END,
            length=longest,
            from_batch=padded,
        ),
    ]
