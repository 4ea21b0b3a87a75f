"""framework/data/augment/: the same bits in every mode and on every shard, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from framework import rng
from framework.data import augment
from framework.errors import UserError
from framework.trace.guards import watched
from tests.data.augmentations import BYTES, FLOATS, KEY, batch_of, drawn

EXACT = (
    augment.PadAndCrop(2),
    augment.PadAndCrop(2, fill="reflect"),
    augment.Flip(),
    augment.AlternatingFlip(),
    augment.Cutout(3),
    augment.RandomErasing(fill="noise"),
    augment.CutMix(0.5),
    augment.Affine(rotate=(90, 90), interpolation="nearest"),
)
ROUNDED = (  # with the bound for floating pictures; bytes differ by 1 at most
    (augment.Affine(rotate=20, translate=0.2, scale=0.2, shear=10), 1e-5),
    (augment.ColourJitter(0.4, 0.4, 0.4, 0.2), 1e-5),
    (augment.MixUp(0.5), 1e-6),
    (augment.OneOf(augment.MixUp(0.5), augment.CutMix(1.0)), 1e-6),
    (augment.Chain(augment.Flip(), augment.Normalise()), 1e-6),
)
MODES = {"graph": {}, "xla": {"jit_compile": True}}


def called(augmentation, images, first=0, count=None):
    """Returns the batch of examples from `first` on."""
    batch = {name: x[first : first + (count or len(images))] for name, x in batch_of(images).items()}
    with rng.scope(KEY, 3, first):
        return augmentation(batch)


@pytest.mark.parametrize("mode", MODES)
def test_draws_and_copied_pixels_have_the_same_bits_in_every_mode(mode):
    def run():
        return {
            f"{name} {place} {field}": value
            for name, images, augmentations in (("bytes", BYTES, EXACT), ("floats", FLOATS, EXACT[:1]))
            for place, augmentation in enumerate(augmentations)
            for field, value in called(augmentation, images).items()
        }

    eager, compiled = run(), tf.function(run, autograph=False, **MODES[mode])()
    assert [name for name, value in eager.items() if value.numpy().tobytes() != compiled[name].numpy().tobytes()] == []


@pytest.mark.parametrize("mode", MODES)
def test_computed_pixels_differ_by_rounding_between_modes(mode):
    cases = [(augmentation, FLOATS, bound) for augmentation, bound in ROUNDED]
    cases += [(augmentation, BYTES, 0) for augmentation in (ROUNDED[0][0], augment.RandAugment(operations=1))]

    def run():
        return [called(augmentation, images)["image"] for augmentation, images, _ in cases]

    for (augmentation, _, bound), eager, compiled in zip(
        cases, run(), tf.function(run, autograph=False, **MODES[mode])(), strict=True
    ):
        difference = np.abs(eager.numpy().astype(np.float64) - compiled.numpy())
        assert difference.max() <= (1 if eager.dtype == tf.uint8 else bound), augmentation
        assert eager.dtype != tf.uint8 or (difference > 0).mean() < 0.01


def test_a_shard_has_the_bits_of_its_examples_in_the_whole_batch():
    for augmentation in (*EXACT, *(each for each, _ in ROUNDED), augment.RandAugment(operations=1)):
        whole = called(augmentation, BYTES)
        for first, count in ((0, 2), (2, 4)):
            for name, value in called(augmentation, BYTES, first, count).items():
                assert np.array_equal(value, whole[name][first : first + count]), (augmentation, name)


def test_a_step_that_xla_compiles_takes_all_augmentations():
    """XLA would not notice an index out of range in a loop: all that depend on pixels are known to be in range."""

    def trace(images):
        batch = batch_of(BYTES) | {"image": images}
        for augmentation in (*EXACT, *(each for each, _ in ROUNDED), augment.RandAugment()):
            with rng.scope(KEY, 0), watched(batch) as watch:
                augmentation(batch)
            assert watch.unread == [], augmentation

    tf.function(trace, autograph=False).get_concrete_function(tf.TensorSpec(BYTES.shape, tf.uint8))


def test_another_step_draws_anew_and_a_second_augmentation_too():
    crop = augment.PadAndCrop(3)
    assert not np.array_equal(drawn(crop, 64, step=1)[0], drawn(crop, 64)[0])
    with rng.scope(KEY, 0):
        first, second = (crop.draw(batch_of(BYTES))[0].numpy() for _ in range(2))
    assert not np.array_equal(first, second)


NORMALISE = augment.Normalise()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: augment.Flip(field="picture")(batch_of(BYTES)), "has the fields image, label, .* and no 'picture'"),
        (lambda: augment.Flip()(batch_of(BYTES[..., 0])), r"'image' has shape \(6, 8, 8\), but pictures are"),
        (lambda: augment.Flip()(batch_of(BYTES.astype(np.int32))), "'image' is int32, but pictures are uint8"),
        (lambda: augment.Flip(rate=2), "Flip: rate=2 must be from 0 to 1"),
        (lambda: augment.PadAndCrop(2, fill="wrap"), "fill='wrap' must be one of zeros, edge, reflect, symmetric"),
        (lambda: augment.PadAndCrop(8)(batch_of(BYTES)), "a shift by 8 pixels leaves nothing of pictures of 8 x 8"),
        (lambda: augment.Affine(rotate=(3, 1)), "rotate=.* is the range 3 to 1, which is empty"),
        (lambda: augment.MixUp()(batch_of(BYTES[:5])), "is 5 examples.*each replica has 4 or 6"),
        (lambda: augment.Chain(augment.MixUp(), augment.CutMix())(batch_of(BYTES)), r"write OneOf\(MixUp"),
        (lambda: augment.OneOf(augment.MixUp(), augment.Flip())(batch_of(BYTES)), "only some .* return 'label_2'"),
        (lambda: augment.RandAugment()(batch_of(FLOATS)), "is float32 with 3 channels.*before Normalise"),
        (lambda: augment.RandAugment(among=("rotat",)), "no operation 'rotat'.*rotate"),
        (lambda: augment.ColourJitter(hue=0.1)(batch_of(BYTES[..., :1])), "1 channels have no colours"),
        (lambda: augment.Normalise((0.5, 0.5), (1, 1))(batch_of(BYTES)), "3 channels, and mean=.* has 2"),
        (lambda: augment.Chain("flip"), "was given a str, not a function"),
        (
            lambda: augment.Normalise((125.0,), (60.0,))(batch_of(BYTES)),
            "is of pixels from 0 to 255, but those of uint8",
        ),
        (lambda: augment.Chain(NORMALISE, augment.ColourJitter(0.1)), "ColourJitter comes after Normalise, but takes"),
        (lambda: augment.Chain(NORMALISE, augment.Flip(), NORMALISE), "Normalise comes after Normalise, but takes"),
        (
            lambda: augment.Chain(augment.Chain(NORMALISE), augment.OneOf(augment.ColourJitter(0.1), augment.Flip())),
            "ColourJitter comes after Normalise",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(make, said):
    with rng.scope(KEY, 0), pytest.raises(UserError, match=said):
        make()


def test_other_orders_are_those_that_may_be_meant():
    of_other = augment.ColourJitter(0.1, field="other")
    augment.Chain(augment.OneOf(NORMALISE, augment.Normalise((0.1,), (1.0,))), augment.Flip())
    augment.Chain(augment.ColourJitter(0.1), NORMALISE, of_other, augment.Cutout(2), augment.PadAndCrop(1))
