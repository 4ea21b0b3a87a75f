"""framework/data/augment/: pixels, normalisation and mixed labels against NumPy."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from framework import losses, rng
from framework.data import augment
from framework.data.augment import rand_augment, sampling
from tests.data.augmentations import BYTES, FLOATS, KEY, RANDOM, SIDE, batch_of, chi_square


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
