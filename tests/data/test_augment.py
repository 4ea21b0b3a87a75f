"""framework/data/augment/: pixels against NumPy, draws against their distribution, and the same bits in every mode."""

import colorsys
import math

import numpy as np
import pytest
import tensorflow as tf

from framework import losses, rng
from framework.data import augment
from framework.data.augment import mixing, rand_augment, sampling
from framework.errors import UserError
from framework.trace.guards import watched

KEY = rng.key(7)
SIDE = 8
RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (6, SIDE, SIDE, 3)).astype(np.uint8)
FLOATS = (BYTES / 255).astype(np.float32)
MANY = 2**15


def batch_of(images, **fields):
    count = len(images)
    order = {"index": tf.range(count, dtype=tf.int64), "epoch": tf.zeros(count, tf.int64)}
    return {"image": tf.constant(images), "label": tf.range(count), "weight": tf.ones(count), **order, **fields}


def drawn(augmentation, count=MANY, side=SIDE, step=0, **fields):
    """Returns what is drawn for `count` pictures, whose pixels are never made."""
    images = tf.broadcast_to(tf.zeros([], tf.uint8), [count, side, side, 3])
    with rng.scope(KEY, step):
        return [x.numpy() for x in augmentation.draw(batch_of(np.zeros([count, 1]), **fields) | {"image": images})]


def chi_square(counts, shares=None):
    """Returns the statistic's distance from its mean in standard deviations."""
    counts = np.asarray(counts, np.float64)
    expected = counts.sum() * (np.full(len(counts), 1 / len(counts)) if shares is None else np.asarray(shares))
    freedom = len(counts) - 1
    return (np.sum((counts - expected) ** 2 / expected) - freedom) / math.sqrt(2 * freedom)


def kolmogorov(values, cumulative):
    """Returns sqrt(n) times the largest distance of the empirical distribution; above 1.95 with probability 0.001."""
    values = np.sort(values)
    place = np.arange(1, len(values) + 1) / len(values)
    exact = cumulative(values)
    return math.sqrt(len(values)) * max(np.abs(place - exact).max(), np.abs(place - 1 / len(values) - exact).max())


def uniform(low, high):
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


# --- distributions


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


# --- pixels


@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), *((x, x) for x in ("edge", "reflect", "symmetric"))])
@pytest.mark.parametrize("images", [BYTES, FLOATS], ids=["uint8", "float32"])
def test_crops_are_those_of_a_padded_picture(images, fill, mode):
    top, left = np.array([-3, 0, 2, 3, -1, 1]), np.array([3, -3, 0, 1, -2, 2])
    padded = np.pad(images, [(0, 0), (3, 3), (3, 3), (0, 0)], mode=mode)
    expected = [x[3 + i : 3 + i + SIDE, 3 + j : 3 + j + SIDE] for x, i, j in zip(padded, top, left, strict=True)]
    change = augment.PadAndCrop(3, fill=fill).change(
        tf.constant(images), tf.constant(top, tf.int32), tf.constant(left, tf.int32)
    )
    assert np.array_equal(change, expected) and change.dtype == images.dtype


def test_flips_mirror_the_chosen_pictures():
    flag = np.array([True, False, True, True, False, False])
    for flip, mirrored in ((augment.Flip(), BYTES[:, :, ::-1]), (augment.Flip(vertical=True), BYTES[:, ::-1])):
        expected = np.where(flag[:, None, None, None], mirrored, BYTES)
        assert np.array_equal(flip.change(tf.constant(BYTES), tf.constant(flag)), expected)


@pytest.mark.parametrize("interpolation", sampling.INTERPOLATIONS)
@pytest.mark.parametrize("fill", sampling.FILLS)
def test_affine_maps_are_those_of_tensorflow(fill, interpolation):
    maps = RANDOM.normal([[1, 0, 0, 0, 1, 0]], [[0.4, 0.4, 3, 0.4, 0.4, 3]], (6, 6)).astype(np.float32)
    maps[0] = [1, 0, -1.5, 0, 1, 2.5]
    ours = sampling.affine(tf.constant(FLOATS), tf.constant(maps), fill, 0.25, interpolation)
    theirs = tf.raw_ops.ImageProjectiveTransformV3(
        images=FLOATS,
        output_shape=[SIDE, SIDE],
        fill_value=0.25,
        transforms=np.pad(maps, [(0, 0), (0, 2)]),
        fill_mode={"symmetric": "REFLECT"}.get(fill, fill.upper()),
        interpolation=interpolation.upper(),
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


def test_a_quarter_turn_is_exact_and_clockwise_and_a_shift_goes_right_and_down():
    def image(**arguments):
        with rng.scope(KEY, 0):
            return augment.Affine(interpolation="nearest", **arguments)(batch_of(BYTES))["image"].numpy()

    assert np.array_equal(image(rotate=(90, 90)), np.rot90(BYTES, -1, axes=(1, 2)))
    shifted = image(translate=(0.25, 0.25))
    assert np.array_equal(shifted[:, 2:, 2:], BYTES[:, :-2, :-2]) and not shifted[:, :2].any()
    halved = image(scale=(2, 2))  # twice as large: the middle pixels fill the picture
    assert np.array_equal(halved[:, ::2, ::2][:, 1:3, 1:3], BYTES[:, 2:6, 2:6][:, 1:3, 1:3])


def test_colours_are_those_of_the_formulas():
    bright, contrast, saturation, turn = (RANDOM.uniform(low, 1.5, 6) for low in (0.5, 0.5, 0, -0.5))
    jitter = augment.ColourJitter(1, 1, 1, 0.5)
    given = [tf.constant(x, tf.float32) for x in (bright, contrast, saturation, turn)]
    image = FLOATS.astype(np.float64)

    def blend(base, factor):
        return np.clip(base + factor[:, None, None, None] * (image - base), 0, 1)

    def grey():
        return (image @ [0.2989, 0.587, 0.114])[..., None]

    image = blend(0 * image, bright)
    image = blend(grey().mean(axis=(1, 2, 3), keepdims=True), contrast)
    image = blend(grey(), saturation)
    for pixels, by in zip(image.reshape(6, -1, 3), turn, strict=True):
        for place, pixel in enumerate(pixels):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            pixels[place] = colorsys.hsv_to_rgb((h + by) % 1, s, v)
    np.testing.assert_allclose(jitter.change(tf.constant(FLOATS), *given), image, atol=2e-5)
    in_bytes = jitter.change(tf.constant(BYTES), *given)
    assert in_bytes.dtype == tf.uint8 and np.abs(in_bytes.numpy() - image * 255).max() < 0.51
    nothing = augment.ColourJitter().change(tf.constant(BYTES), *given)
    assert np.array_equal(nothing, BYTES)


def test_normalisation_and_its_inverse():
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    normalise = augment.Normalise(mean, std)
    for images, exact in ((BYTES, BYTES / 255), (FLOATS, FLOATS.astype(np.float64))):
        result = normalise(batch_of(images))
        np.testing.assert_allclose(result["image"], (exact - mean) / std, rtol=0, atol=1e-6)
        np.testing.assert_allclose(normalise.to_pictures(result)["image"], exact, rtol=0, atol=1e-6)
    assert augment.Normalise(mean, std, dtype="float64")(batch_of(BYTES))["image"].dtype == tf.float64
    chain = augment.Chain(lambda batch: batch, normalise)
    np.testing.assert_allclose(chain.to_pictures(chain(batch_of(BYTES)))["image"], BYTES / 255, atol=1e-6)


def erased(top, left, height, width):
    mask = np.zeros([SIDE, SIDE, 1], bool)
    mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
    return mask


def test_erased_pixels_are_those_of_the_rectangle():
    boxes = [(-2, 3, 4, 4), (6, 6, 4, 4), (0, 0, 4, 4), (2, -3, 4, 4), (1, 1, 0, 0), (5, -1, 4, 4)]
    columns = [tf.constant(column, tf.int32) for column in np.transpose(boxes)]
    masks = np.stack([erased(*box) for box in boxes])
    cut = augment.Cutout(4, value=9).change(tf.constant(BYTES), columns[0], columns[1], columns[2])
    assert np.array_equal(cut, np.where(masks, 9, BYTES))
    assert np.array_equal(augment.RandomErasing().change(tf.constant(FLOATS), *columns), np.where(masks, 0, FLOATS))
    with rng.scope(KEY, 0):
        noise = augment.RandomErasing(rate=1, fill="noise").draw(batch_of(np.zeros([512, SIDE, SIDE, 3], np.uint8)))[4]
    assert abs(chi_square(np.bincount(noise.numpy().ravel(), minlength=256))) < 4
    noisy = augment.RandomErasing(fill="noise").change(tf.constant(BYTES), *columns, noise[:6])
    assert np.array_equal(noisy, np.where(masks, noise[:6], BYTES))


def test_mixup_and_cutmix_take_the_neighbour_and_its_label():
    swapped = np.array([1, 0, 3, 2, 5, 4])
    with rng.scope(KEY, 0):
        mixup = augment.MixUp(1.0)(batch_of(FLOATS))
        cutmix = augment.CutMix(1.0)(batch_of(BYTES))
    mix = mixup["mix"].numpy()[:, None, None, None].astype(np.float64)
    np.testing.assert_allclose(mixup["image"], FLOATS * mix + FLOATS[swapped] * (1 - mix), atol=1e-6)
    for result in (mixup, cutmix):
        assert np.array_equal(result["label"], np.arange(6)) and np.array_equal(result["label_2"], swapped)
    is_other = (cutmix["image"].numpy() != BYTES).any(-1)
    assert np.array_equal(cutmix["image"].numpy()[is_other], BYTES[swapped][is_other])
    np.testing.assert_allclose(1 - is_other.mean((1, 2)), cutmix["mix"], atol=1e-6)


def test_the_loss_of_both_labels_is_the_weighted_one():
    logits, labels = RANDOM.normal(size=(4, 3)), np.array([[0, 2, 1, 1], [1, 0, 2, 1]])
    mix, weight = np.array([0.3, 1.0, 0.0, 0.5]), np.array([1.0, 2.0, 1.0, 0.0])
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), labels]
    batch = {"label": tf.constant(labels[0]), "weight": tf.constant(weight, tf.float32)}
    both = batch | {"label_2": tf.constant(labels[1]), "mix": tf.constant(mix, tf.float32)}
    for given, values in ((both, mix * each[0] + (1 - mix) * each[1]), (batch, each[0])):
        term = losses.mixed(losses.sparse_cross_entropy, tf.constant(logits, tf.float32), given)
        np.testing.assert_allclose([term.sum, term.weight], [(values * weight).sum(), 4], rtol=1e-6)


def equalised(channel):
    """PIL's ImageOps.equalize of one channel."""
    counts = np.bincount(channel.ravel(), minlength=256)
    used = counts[counts > 0]
    step = (used.sum() - used[-1]) // 255
    if not step:
        return channel
    table, n = [], step // 2
    for count in counts:
        table.append(min(n // step, 255))
        n += count
    return np.array(table, np.uint8)[channel]


def rand_augmented(name, image, m):
    """Returns a picture after an operation, float64 before rounding; m is the magnitude / 30 with its sign."""
    x = image.astype(np.float64)
    grey = (x @ [0.2989, 0.587, 0.114])[..., None]
    rows, columns = np.mgrid[0 : x.shape[0], 0 : x.shape[1]].astype(np.float64)
    middle = (x.shape[0] - 1) / 2
    c, s = np.cos(np.radians(30 * m)), np.sin(np.radians(30 * m))
    sources = {
        "shear_x": (rows, columns + 0.3 * m * rows),
        "shear_y": (rows + 0.3 * m * columns, columns),
        "translate_x": (rows, columns + int(150 / 331 * m * x.shape[1])),
        "translate_y": (rows + int(150 / 331 * m * x.shape[0]), columns),
        "rotate": (
            s * (columns - middle) + c * (rows - middle) + middle,
            c * (columns - middle) - s * (rows - middle) + middle,
        ),
    }
    if name in sources:
        row, column = (np.floor(np.abs(at) + 0.5) * np.sign(at) for at in sources[name])
        is_inside = (row >= 0) & (row < x.shape[0]) & (column >= 0) & (column < x.shape[1])
        taken = x[np.clip(row, 0, x.shape[0] - 1).astype(int), np.clip(column, 0, x.shape[1] - 1).astype(int)]
        return np.where(is_inside[..., None], taken, 0)
    if name == "posterize":
        return image & (256 - 2 ** round(4 * abs(m)))
    if name == "solarize":
        return np.where(image >= 255 * (1 - abs(m)), 255 - x, x)
    if name == "autocontrast":
        low, high = x.min((0, 1)), x.max((0, 1))
        return np.where(high > low, (x - low) * 255 / np.where(high > low, high - low, 1), x)
    if name == "equalize":
        return np.stack([equalised(image[..., k]) for k in range(3)], -1)
    if name == "sharpness":
        base = x.copy()
        for i in range(1, x.shape[0] - 1):
            for j in range(1, x.shape[1] - 1):
                base[i, j] = (x[i - 1 : i + 2, j - 1 : j + 2].sum((0, 1)) + 4 * x[i, j]) / 13
    else:
        base = {"brightness": 0 * x, "color": grey, "contrast": grey.mean(), "identity": x}[name]
    return np.clip(base + (1 + 0.9 * m) * (x - base), 0, 255)


def test_each_operation_of_rand_augment_is_that_of_the_table():
    """One call: picture i gets operation i with sign + and -."""
    images = np.repeat(RANDOM.integers(20, 200, (1, 24, 24, 3)).astype(np.uint8), 28, axis=0)
    images[:, :, :, 2] = 77  # a channel without contrast
    randaugment = augment.RandAugment(operations=1, magnitude=17)
    changed = randaugment.change(tf.constant(images), tf.range(28)[:, tf.newaxis]).numpy()
    for choice in range(28):
        name, sign = rand_augment.OPERATIONS[choice // 2], 1 - 2 * (choice % 2)
        expected = rand_augmented(name, images[choice], sign * 17 / 30)
        assert np.abs(changed[choice] - expected).max() < 0.51, name
        assert name == "identity" or not np.array_equal(changed[choice], images[choice])


# --- the same in every mode and on every shard

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


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: augment.Flip(field="picture")(batch_of(BYTES)), "has the fields image, label, .* and no 'picture'"),
        (lambda: augment.Flip()(batch_of(BYTES[..., 0])), r"'image' has shape \(6, 8, 8\), but pictures are"),
        (lambda: augment.Flip()(batch_of(BYTES.astype(np.int32))), "'image' is int32, but pictures are uint8"),
        (lambda: augment.Flip(rate=2), "Flip: rate=2 must be from 0 to 1"),
        (lambda: augment.PadAndCrop(2, fill="wrap"), "fill='wrap' must be one of zeros, edge, reflect, symmetric"),
        (lambda: augment.Affine(rotate=(3, 1)), "rotate=.* is the range 3 to 1, which is empty"),
        (lambda: augment.MixUp()(batch_of(BYTES[:5])), "is 5 examples.*each replica has 4 or 6"),
        (lambda: augment.Chain(augment.MixUp(), augment.CutMix())(batch_of(BYTES)), r"write OneOf\(MixUp"),
        (lambda: augment.OneOf(augment.MixUp(), augment.Flip())(batch_of(BYTES)), "only some .* return 'label_2'"),
        (lambda: augment.RandAugment()(batch_of(FLOATS)), "is float32 with 3 channels.*before Normalise"),
        (lambda: augment.RandAugment(among=("rotat",)), "no operation 'rotat'.*rotate"),
        (lambda: augment.ColourJitter(hue=0.1)(batch_of(BYTES[..., :1])), "1 channels have no colours"),
        (lambda: augment.Normalise((0.5, 0.5), (1, 1))(batch_of(BYTES)), "3 channels, and mean=.* has 2"),
        (lambda: augment.Chain("flip"), "was given a str, not a function"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(make, said):
    with rng.scope(KEY, 0), pytest.raises(UserError, match=said):
        make()
