"""framework/data/augment/: what is drawn against its distribution."""

import math

import numpy as np
import pytest
import tensorflow as tf

from framework import rng
from framework.data import augment
from framework.data.augment import mixing
from framework.errors import UserError
from tests.data.augmentations import KEY, MANY, SIDE, batch_of, chi_square, drawn, kolmogorov, uniform


def test_shifts_of_pad_and_crop_are_uniform():
    top, left = drawn(augment.PadAndCrop(2))
    counts = np.bincount((top + 2) * 5 + left + 2, minlength=25)
    assert len(counts) == 25 and abs(chi_square(counts)) < 4


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 1.0])
def test_flips_have_their_rate(rate):
    (flag,) = drawn(augment.Flip(rate=rate))
    assert abs(flag.mean() - rate) <= 4 * math.sqrt(rate * (1 - rate) / MANY)


def test_alternating_flips_are_of_the_index_and_of_the_parity_of_the_epoch():
    flip = augment.AlternatingFlip()
    first = drawn(flip)[0]
    assert abs(first.mean() - 0.5) < 4 * 0.5 / math.sqrt(MANY)
    pairs = np.bincount(first[:-1] * 2 + first[1:], minlength=4)  # neighbouring indices are independent
    assert abs(chi_square(pairs)) < 4
    assert np.array_equal(drawn(flip, step=9)[0], first)
    for epoch in (1, 2, 3):
        mirrored = drawn(flip, epoch=tf.fill([MANY], tf.constant(epoch, tf.int64)))[0]
        assert np.array_equal(mirrored, first ^ (epoch % 2 == 1))
    back = tf.range(MANY - 1, -1, -1, dtype=tf.int64)
    assert np.array_equal(drawn(flip, index=back)[0], first[::-1])
    with rng.scope(rng.key(8), 0):
        other = flip.draw(batch_of(np.zeros([MANY, 1])))[0].numpy()
    assert abs((other == first).mean() - 0.5) < 4 * 0.5 / math.sqrt(MANY)


def test_angles_scales_shears_and_shifts_are_uniform():
    (maps,) = drawn(augment.Affine(rotate=(-20, 40), scale=(0.5, 1.5), translate=(0.1, 0.3)))
    a, b, c, d, e, f = maps.T.astype(np.float64)
    scale = 1 / np.hypot(a, d)
    assert kolmogorov(np.degrees(np.arctan2(-d, a)), uniform(-20, 40)) < 2.2  # a grid of 4096 angles adds 0.02
    assert kolmogorov(scale, uniform(0.5, 1.5)) < 1.95
    centre = (SIDE - 1) / 2
    shift = np.linalg.solve(
        np.stack([a, b, d, e], -1).reshape(-1, 2, 2), np.stack([centre - c, centre - f], -1)[..., None]
    )
    for axis in (0, 1):
        assert kolmogorov((shift[:, axis, 0] - centre) / SIDE, uniform(0.1, 0.3)) < 1.95
    (maps,) = drawn(augment.Affine(shear=30))
    slopes = -maps[:, 1]
    assert kolmogorov(np.degrees(np.arctan(slopes)), uniform(-30, 30)) < 2.2


def test_factors_of_colours_are_uniform():
    bright, contrast, saturation, turn = drawn(augment.ColourJitter(0.4, (0.5, 0.7), 2.0, 0.1))
    for values, low, high in ((bright, 0.6, 1.4), (contrast, 0.5, 0.7), (saturation, 0, 3), (turn, -0.1, 0.1)):
        assert kolmogorov(values, uniform(low, high)) < 1.95


def test_the_centre_of_cutout_is_uniform_and_its_rate_is_kept():
    top, left, side = drawn(augment.Cutout(4, rate=0.3))
    assert abs(chi_square(np.bincount((top + 2) * SIDE + left + 2))) < 4
    assert abs((side == 4).mean() - 0.3) < 4 * math.sqrt(0.21 / MANY) and set(side) == {0, 4}


def test_erased_rectangles_have_their_area_ratio_and_place():
    erase = augment.RandomErasing(rate=0.5, area=(0.05, 0.2), ratio=(0.5, 2.0))
    top, left, height, width = drawn(erase, side=64)
    assert abs((height > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(MANY)
    is_erased = height > 0
    top, left, height, width = (x[is_erased].astype(np.float64) for x in (top, left, height, width))
    # All rectangles fit: the area is uniform, and so is the logarithm of the ratio.
    area = height * width / 64**2
    assert abs(area.mean() - 0.125) < 0.001 and abs(area.std() - 0.15 / math.sqrt(12)) < 0.001
    ratio = np.log(height / width)
    assert abs(ratio.mean()) < 0.02 and abs(ratio.std() - 2 * math.log(2) / math.sqrt(12)) < 0.01
    assert (top >= 0).all() and (top + height <= 64).all() and (left >= 0).all() and (left + width <= 64).all()
    assert abs(np.mean(top / (64 - height)) - 0.5) < 0.01 and abs(np.mean(left / (64 - width)) - 0.5) < 0.01


def test_rectangles_that_do_not_fit_are_not_drawn():
    sizes = augment.RandomErasing(area=(0.9, 1.0), ratio=(0.2, 5.0))._sizes(16, 16)
    assert 0 < len(sizes) < 64 * 64 and sizes.max() <= 16 and (sizes.prod(1) >= 0.85 * 256).all()
    with pytest.raises(UserError, match="no rectangle with area"):
        drawn(augment.RandomErasing(area=(0.9, 1.0), ratio=(4, 5)))


@pytest.mark.parametrize(
    ("alpha", "cumulative"),
    [
        (1.0, lambda x: x),
        (0.5, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
    ],
)
def test_quantiles_of_beta_are_exact(alpha, cumulative):
    quantiles = mixing.beta_quantiles(alpha)
    expected = (np.arange(len(quantiles)) + 0.5) / len(quantiles)
    np.testing.assert_allclose(cumulative(quantiles), expected, atol=1e-5 if alpha >= 1 else 4e-4)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 8.0, 50.0])
def test_the_weights_of_mixup_have_the_moments_of_beta(alpha):
    (mix,) = drawn(augment.MixUp(alpha))
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(mix.mean() - 0.5) < 4 * math.sqrt(variance / MANY)
    assert abs(mix.var() / variance - 1) < 0.03


def test_the_area_of_cutmix_is_uniform_inside_and_mix_is_what_is_left():
    mix, top, left, height, width = drawn(augment.CutMix(1.0, rate=0.5), side=32)
    np.testing.assert_allclose(mix, 1 - height * width / 32**2, rtol=0, atol=1e-7)
    assert abs((mix < 1).mean() - 0.5) < 0.02
    assert (top >= 0).all() and (top + height <= 32).all() and (left + width <= 32).all()
    # The box of sides s*32, s = sqrt(u), around a uniform pixel keeps on average (s - s**2 / 4)**2 of the picture.
    s = np.sqrt(1 - mixing.beta_quantiles(1.0))
    expected = np.mean((s - s**2 / 4) ** 2)
    assert abs(np.mean(1 - mix) / 0.5 - expected) < 0.015


def test_operations_signs_and_members_are_drawn_alike():
    (choice,) = drawn(augment.RandAugment(operations=2))
    counts = np.bincount(choice[:, 0] * 28 + choice[:, 1], minlength=28**2)
    assert abs(chi_square(counts)) < 4
    member = [lambda batch, i=i: {**batch, "image": tf.fill([MANY, 1], i)} for i in range(3)]
    with rng.scope(KEY, 0):
        chosen = augment.OneOf(*member, shares=(1, 2, 5))(batch_of(np.zeros([MANY, 1], np.int32)))["image"]
    assert abs(chi_square(np.bincount(chosen.numpy()[:, 0]), [1 / 8, 2 / 8, 5 / 8])) < 4
