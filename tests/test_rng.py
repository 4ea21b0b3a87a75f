"""framework/rng.py against Philox written out in Python, its published known answers, and statistics."""

import hashlib
import statistics
import threading

import numpy as np
import pytest
import tensorflow as tf

from framework import rng
from framework.compile import Compiled, is_in_xla, jit
from tests.compile_modes import MODES

KEY = rng.key(7)


def philox(counter, key):
    """Philox 4x32-10 of Salmon et al. (2011): 4 words from a counter of 4 words and a key of 2."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k0, q & 0xFFFFFFFF, (p >> 32) ^ d ^ k1, p & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def halves(value):
    return value & 0xFFFFFFFF, value >> 32


def reference(stream, examples, per_example, key=KEY, step=0, first_example=0, call=0):
    """The words that the module's documentation promises: key = seed ^ hash(stream), counter = (example, step)."""
    key ^= int.from_bytes(hashlib.sha256(f"{stream}#{call}".encode()).digest()[:8], "little")
    counts = (per_example + 3) // 4
    rows = [
        [word for i in range(counts) for word in philox((*halves(example * counts + i), *halves(step)), halves(key))]
        for example in range(first_example, first_example + examples)
    ]
    return np.array(rows, np.uint32)[:, :per_example]


def draw(stream="layer", examples=3, per_example=5, key=KEY, step=0, first_example=0):
    with rng.scope(key, step, first_example):
        return rng.random_bits(stream, examples, per_example).numpy()


def test_a_draw_of_the_batch_does_not_depend_on_the_place_in_it():
    drawn = []
    for first in (0, 64):
        with rng.scope(KEY, 3, first), rng.of_batch():
            drawn.append(rng.random_bits("negatives", 1, 5).numpy())
    assert np.array_equal(*drawn) and np.array_equal(drawn[0], reference("negatives", 1, 5, step=3))


# kat_vectors of the Random123 distribution: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_tensorflows_op_and_this_files_reference_give_the_published_answers(counter, key, result):
    counter, key, result = ([int(word, 16) for word in text.split()] for text in (counter, key, result))
    assert list(philox(counter, key)) == result
    drawn = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[4],
        key=tf.constant([key[0] | key[1] << 32], tf.uint64),
        counter=tf.constant([counter[0] | counter[1] << 32, counter[2] | counter[3] << 32], tf.uint64),
        alg=1,
        dtype=tf.uint32,
    )
    assert drawn.numpy().tolist() == result


def test_key_is_the_head_of_a_sha256():
    assert rng.key(0) == int.from_bytes(hashlib.sha256(b"seed 0").digest()[:8], "little")
    keys = {rng.key(seed) for seed in [*range(1000), 2**63 - 1]}
    assert len(keys) == 1001
    assert max(keys) < 2**64


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("per_example", [1, 4, 7])
def test_words_are_philox_bit_for_bit_in_every_mode(mode, per_example):
    def fn(step, first):
        with rng.scope(tf.constant(KEY, tf.uint64), step, first):
            return (
                rng.random_bits("a", 5, per_example),
                rng.random_bits("a", 5, per_example),
                rng.random_bits("b", 5, per_example),
            )

    fn = MODES[mode](fn)
    for step, first in ((0, 0), (3, 64), (2**33 + 1, 2**31)):
        drawn = fn(tf.constant(step, tf.int64), tf.constant(first, tf.int64))
        for words, stream, call in zip(drawn, "aab", (0, 1, 0), strict=True):
            assert words.dtype == tf.uint32
            assert np.array_equal(words, reference(stream, 5, per_example, step=step, first_example=first, call=call))


@pytest.mark.parametrize("mode", MODES)
def test_the_number_of_examples_may_be_a_tensor(mode):
    def fn(x):
        with rng.scope(KEY, 2):
            return rng.random_bits("a", tf.shape(x)[0], 6)

    assert np.array_equal(MODES[mode](fn)(tf.zeros([9, 2])), reference("a", 9, 6, step=2))


@pytest.mark.parametrize("per_example", [1, 3, 4, 5, 784])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_slices_drawn_at_their_offset_make_up_the_whole(per_example, parts):
    whole = draw(examples=24, per_example=per_example)
    size = 24 // parts
    slices = [draw(examples=size, per_example=per_example, first_example=first) for first in range(0, 24, size)]
    assert np.array_equal(np.concatenate(slices), whole)


def test_anything_that_differs_gives_unrelated_words():
    base = {"stream": "layer", "examples": 64, "per_example": 16}
    others = [
        base,
        base | {"stream": "layer_1"},
        base | {"step": 1},
        base | {"step": 2**32},
        base | {"key": rng.key(8)},
        base | {"first_example": 64},
    ]
    drawn = [draw(**other) for other in others]
    with rng.scope(KEY, 0):
        rng.random_bits(**base)
        drawn.append(rng.random_bits(**base).numpy())  # the second call of one scope
    for i, one in enumerate(drawn):
        assert len(np.unique(one)) == one.size
        for other in drawn[:i]:
            bits = np.unpackbits((one ^ other).view(np.uint8))
            assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)


def test_the_same_scope_opened_again_gives_the_same_words():
    assert np.array_equal(draw(step=4), draw(step=4))


def test_outside_of_a_scope_a_draw_says_what_to_write():
    with pytest.raises(RuntimeError) as error:
        rng.random_bits("tower/dropout", 1, 1)
    assert str(error.value) == (
        "'tower/dropout' draws random numbers outside of rng.scope. The step opens one; in a test, write"
        " `with rng.scope(rng.key(0), step=0): layer(x, training=True)`."
    )


def test_scopes_nest_and_an_exception_closes_them():
    with rng.scope(KEY, 1):
        first = rng.random_bits("a", 2, 4).numpy()
        with pytest.raises(KeyError), rng.scope(KEY, 2):
            assert np.array_equal(rng.random_bits("a", 2, 4), reference("a", 2, 4, step=2))
            raise KeyError
        second = rng.random_bits("a", 2, 4).numpy()  # the outer scope has kept its own count
    assert np.array_equal(first, reference("a", 2, 4, step=1))
    assert np.array_equal(second, reference("a", 2, 4, step=1, call=1))
    with pytest.raises(RuntimeError):
        rng.random_bits("a", 2, 4)


def test_a_scope_belongs_to_its_thread():
    seen = {}

    def other():
        try:
            rng.random_bits("a", 1, 1)
        except RuntimeError as error:
            seen["without"] = str(error)
        seen["with"] = draw("a", step=9)

    with rng.scope(KEY, 0):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        here = rng.random_bits("a", 3, 5).numpy()
    assert "outside of rng.scope" in seen["without"]
    assert np.array_equal(seen["with"], reference("a", 3, 5, step=9))
    assert np.array_equal(here, reference("a", 3, 5))  # what the other thread drew was not counted here


@pytest.mark.parametrize("mode", MODES)
def test_uniform_is_the_top_24_bits_of_the_words(mode):
    def fn():
        with rng.scope(KEY, 0):
            return rng.uniform("u", 50, 10)

    drawn = MODES[mode](fn)().numpy()
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn.astype(np.float64) * 2**24, reference("u", 50, 10) >> 8)


def test_uniform_reaches_neither_below_0_nor_1(monkeypatch):
    extremes = tf.constant([[0, 255, 256, 2**32 - 1]], tf.uint32)
    monkeypatch.setattr(rng, "random_bits", lambda *_: extremes)
    assert rng.uniform("u", 1, 4).numpy().tolist() == [[0.0, 0.0, 2.0**-24, 1 - 2.0**-24]]


@pytest.mark.parametrize("seed", range(3))
def test_uniform_has_the_moments_and_the_spread_of_a_uniform(seed):
    n = 250_000
    with rng.scope(rng.key(seed), 11):
        drawn = rng.uniform("u", n // 250, 250).numpy().astype(np.float64).ravel()
    assert abs(drawn.mean() - 1 / 2) < 4.5 * np.sqrt(1 / 12 / n)
    assert abs(drawn.var() - 1 / 12) < 4.5 * np.sqrt(1 / 180 / n)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4.5 / np.sqrt(n)
    counts = np.bincount((drawn * 256).astype(int), minlength=256)
    chi_square = ((counts - n / 256) ** 2).sum() / (n / 256)
    assert abs(chi_square - 255) < 4.5 * np.sqrt(2 * 255)


@pytest.mark.parametrize("mode", MODES)
def test_normal_is_the_sum_of_two_quantiles(mode):
    def fn():
        with rng.scope(KEY, 0):
            return rng.normal("n", 6, 5, 2.0, tf.float64)

    words = reference("n", 6, 5).astype(np.int64)
    probability = (np.stack([words % 2**16, words // 2**16]) + 0.5) / 2**16
    quantiles = np.vectorize(statistics.NormalDist().inv_cdf)(probability)
    np.testing.assert_allclose(MODES[mode](fn)().numpy(), 2.0 * quantiles.sum(0) / 2**0.5, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_normal_has_the_moments_and_the_spread_of_a_normal(seed):
    n = 250_000
    with rng.scope(rng.key(seed), 11):
        drawn = rng.normal("n", n // 250, 250).numpy().astype(np.float64).ravel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**power).mean() - expected) < 4.5 * np.sqrt(variance / n) + (0.01 if power == 4 else 0)
    edges = [statistics.NormalDist().inv_cdf(share / 64) for share in range(1, 64)]
    counts = np.bincount(np.searchsorted(edges, drawn), minlength=64)
    assert abs(((counts - n / 64) ** 2).sum() / (n / 64) - 63) < 4.5 * np.sqrt(2 * 63)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 1 / 3, 0.999, 1 - 2.0**-16, 1 - 1e-15])
def test_threshold_is_the_rate_in_units_of_half_a_word(rate):
    assert 0 <= rng.threshold(rate) < 2**16
    assert abs(rng.threshold(rate) / 2**16 - rate) <= (2**-17 if rate <= 1 - 2**-16 else 2**-16)


def halves_of(words, per_example):
    """uint16 [examples, per_example] from uint32 [examples, 4 n]: of each its low half, then the high one."""
    return np.stack([words % 2**16, words // 2**16], axis=2).reshape(len(words), -1)[:, :per_example]


@pytest.mark.parametrize("jit_compile", [None, True])
@pytest.mark.parametrize("per_example", [1, 7, 8, 9])
def test_halves_are_those_of_the_words_in_every_mode(per_example, jit_compile):
    words = reference("a", 3, 4 * -(-per_example // 8), step=4)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def drawn():
        with rng.scope(KEY, 4):
            return rng.random_bits16("a", 3, per_example)

    assert drawn().dtype == tf.uint16
    assert np.array_equal(drawn(), halves_of(words, per_example))


@pytest.mark.parametrize("mode", ["eager", "graph", "xla", "jit"])
@pytest.mark.parametrize("per_example", [1, 8, 21])
@pytest.mark.parametrize("first_example", [0, 2**33 + 5])
def test_a_mask_keeps_what_is_not_below_the_threshold_in_every_mode(first_example, per_example, mode):
    rate, step = 0.3, 2**40 + 3
    words = reference("a", 5, 4 * -(-per_example // 8), step=step, first_example=first_example)

    def drawn():
        assert is_in_xla() == (mode in ("xla", "jit"))
        with rng.scope(KEY, step, first_example):
            return rng.keep_mask("a", 5, per_example, rate), rng.keep_mask("a", 5, per_example, rate)

    fn = tf.function(jit(drawn), autograph=False) if mode == "jit" else Compiled(drawn, mode, "drawn")
    found, again = fn()
    assert np.array_equal(found, halves_of(words, per_example) >= round(0.3 * 2**16))
    assert not np.array_equal(found, again) or per_example == 1
    assert not is_in_xla()


def test_a_mask_in_xla_carries_from_the_low_word_of_a_counter():
    first = 2**32 - 3  # of six counters, the last three are past the end of the low word

    def drawn():
        with rng.scope(KEY, 7, first):
            return rng.keep_mask("a", 6, 8, 0.5)

    assert np.array_equal(
        Compiled(drawn, "xla", "drawn")(), halves_of(reference("a", 6, 4, step=7, first_example=first), 8) >= 2**15
    )


def test_kept_in_xla_keeps_what_is_at_the_threshold_and_whole_counts():
    drawn = halves_of(reference("a", 2, 32), 64)

    def kept(rate):
        def fn():
            with rng.scope(KEY, 0):
                return rng.keep_mask("a", 2, 64, rate)

        return Compiled(fn, "xla", "drawn")().numpy()

    found = kept(float(drawn[1, 5]) / 2**16)
    assert found[1, 5]
    assert np.array_equal(found, drawn >= drawn[1, 5])
    assert kept(0.0).all()  # all eight bits of a count


def test_philox_written_out_gives_the_words_of_the_op():
    key, first, step = (tf.constant(value, tf.uint64) for value in (2**63 + 9, 2**64 - 5, 2**35 + 1))
    words = [rng._words_of(value) for value in (key, first, step)]
    found = tf.stack(rng._philox(*words, 4), axis=1)
    op = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[16], key=[key], counter=tf.stack([first, step]), alg=1, dtype=tf.uint32
    )
    assert np.array_equal(tf.reshape(found, [-1]), op)


def test_name_streams_names_only_what_draws():
    class Drawing:
        rng_stream = ""

    first, second, other = Drawing(), Drawing(), object()
    rng.name_streams({"": other, "a/dropout": first, "b": second})
    assert (first.rng_stream, second.rng_stream) == ("a/dropout", "b")


# --- graphs in graphs -------------------------------------------------------------------------------------------------


def drawn_in(loop):
    def call():
        with rng.scope(rng.key(0), 0):
            return loop(lambda: tf.reduce_sum(rng.uniform("noise", 2, 3)))

    return tf.function(call, autograph=False).get_concrete_function


LOOPS = {
    "while_loop": lambda draw: tf.while_loop(lambda i, _: i < 3, lambda i, total: (i + 1, total + draw()), (0, 0.0)),
    "map_fn": lambda draw: tf.map_fn(lambda x: x + draw(), tf.ones([3])),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_draw_that_every_turn_of_a_loop_would_repeat_is_refused(name):
    with pytest.raises(RuntimeError, match=r"^'noise' draws random numbers in a loop of TensorFlow .* Draw before"):
        drawn_in(LOOPS[name])()


def test_a_loop_whose_turns_are_steps_or_parts_draws():
    def step(i, total):
        with rng.scope(rng.key(0), i):
            return i + 1, total + rng.uniform("noise", 1, 1)[0, 0]

    def part(i, total):
        with rng.at_example(i):
            return i + 1, total + rng.uniform("noise", 1, 1)[0, 0]

    @tf.function(autograph=False)
    def run():
        _, steps = tf.while_loop(lambda i, _: i < 3, step, (tf.constant(0, tf.int64), 0.0))
        with rng.scope(rng.key(0), 5):
            _, parts = tf.while_loop(lambda i, _: i < 3, part, (tf.constant(0, tf.int64), 0.0))
        return steps, parts

    def once(step, examples):
        with rng.scope(rng.key(0), step):
            return float(tf.reduce_sum(rng.uniform("noise", examples, 1)))

    steps, parts = run()
    assert abs(float(steps) - sum(once(i, 1) for i in range(3))) < 1e-6
    assert abs(float(parts) - once(5, 3)) < 1e-6


def test_a_branch_draws_what_a_step_without_it_draws():
    def call():
        with rng.scope(rng.key(0), 0):
            return tf.cond(tf.constant(True), lambda: rng.uniform("noise", 2, 3), lambda: tf.zeros([2, 3]))

    with rng.scope(rng.key(0), 0):
        assert np.array_equal(tf.function(call, autograph=False)(), rng.uniform("noise", 2, 3))
