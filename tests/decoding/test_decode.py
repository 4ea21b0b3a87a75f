import functools

import numpy as np
import pytest
import tensorflow as tf

import framework
from framework import rng
from framework.decoding import Beam, Greedy, Sample, decode
from framework.decoding.beam import beam_search
from framework.decoding.search import _task
from framework.errors import RunError, UserError
from tests.decoding.models import Attending, Recurrent

BEGIN, END, PAD = 0, 3, 7
METHODS = {
    "greedy": (Greedy(), None),
    "beam": (Beam(3, length_penalty=0.6, n_best=2), None),
    "sample": (Sample(1.3, top_k=8, top_p=0.95), rng.key(5)),
}


def slow_but(name):
    """Returns the names of METHODS, all but one as slow cases."""
    return [pytest.param(other, marks=[] if other == name else [pytest.mark.slow]) for other in METHODS]


def run(step, state, length, method, key=None, **settings):
    """Decodes in a graph, which is faster than eagerly."""
    settings = {"begin": BEGIN, "end": END, "padding": PAD, **settings}

    @tf.function(autograph=False)
    def graph(state):
        return decode(step, state, length=length, method=method, rng=key, **settings)

    return type(graph(state))(*(part.numpy() for part in graph(state)))


def tokens_of(result, example, place=0):
    return tuple(result.ids[example, place, : result.lengths[example, place]].tolist())


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.5])
def test_a_wide_beam_finds_the_best_sequences_of_all(penalty):
    for seed in range(3):
        model = Recurrent(seed=seed, scale=0.7)
        state = model.start(2)
        result = run(model.step, state, 4, Beam(108, penalty, n_best=6))
        for example, h in enumerate(state["h"].numpy().astype(np.float64)):
            best = model.all_sequences(h, BEGIN, END, 4, penalty)[:6]
            assert [tokens_of(result, example, place) for place in range(6)] == [tokens for *_, tokens in best]
            np.testing.assert_allclose(result.scores[example], [score for score, *_ in best], rtol=1e-5)
            np.testing.assert_allclose(result.log_probabilities[example], [total for _, total, _ in best], rtol=1e-5)


def test_a_penalty_prefers_longer_sequences():
    """The search finds these lengths by the scores alone: without a penalty the shortest is best."""
    lengths = []
    for penalty in (0.0, 3.0):
        results = [
            run(Recurrent(seed=seed, scale=0.3).step, Recurrent(seed=seed).start(3), 6, Beam(64, penalty))
            for seed in range(2)
        ]
        lengths.append(np.mean([result.lengths for result in results]))
    assert lengths == [1, 6]


def greedy_reference(model, h, length):
    tokens = []
    while len(tokens) < length and END not in tokens:
        tokens.append(int(model.log_probabilities(h, (BEGIN, *tokens)).argmax()))
    return tuple(tokens)


def search_of_one(model, h):
    """Searches with a beam of one, which `decode` replaces by greedy decoding."""
    return beam_search(_task(model.step, {"h": h}, BEGIN, END, 7, PAD, None), {"h": h}, Beam(1))


def test_a_beam_of_one_is_greedy_and_greedy_takes_the_most_probable():
    different = set()
    for seed in range(2):
        model = Recurrent(vocabulary=6, seed=seed, scale=1.0)
        state = model.start(16)
        greedy = run(model.step, state, 7, Greedy())
        for example, h in enumerate(state["h"].numpy().astype(np.float64)):
            assert tokens_of(greedy, example) == greedy_reference(model, h, 7)
            assert (greedy.ids[example, 0, greedy.lengths[example, 0] :] == PAD).all()
        penalised = run(model.step, state, 7, Beam(1, length_penalty=0.9))
        search = tf.function(functools.partial(search_of_one, model))
        for one in (penalised, search(state["h"])):
            np.testing.assert_array_equal(one.ids, greedy.ids)
            np.testing.assert_array_equal(one.lengths, greedy.lengths)
            np.testing.assert_allclose(one.log_probabilities, greedy.log_probabilities, rtol=1e-5, atol=1e-6)
        divisors = ((5 + greedy.lengths) / 6) ** 0.9
        np.testing.assert_allclose(penalised.scores, greedy.log_probabilities / divisors, rtol=1e-5)
        different |= {*greedy.lengths.ravel().tolist()}
    assert len(different) > 1  # sequences that ended early and late were compared


@pytest.mark.parametrize("name", METHODS)
def test_cached_decoding_gives_the_tokens_of_uncached(name):
    method, key = METHODS[name]
    model = Attending()
    cached = run(model.cached, model.start(16), 9, method, key)
    uncached = run(model.uncached, model.start_uncached(16), 9, method, key)
    np.testing.assert_array_equal(cached.ids, uncached.ids)
    np.testing.assert_allclose(cached.scores, uncached.scores, rtol=1e-4)
    assert len(np.unique(cached.ids, axis=0)) > 8


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_decodes_as_its_rows_one_by_one(name):
    method, key = METHODS[name]
    model = Recurrent(vocabulary=9, seed=3, scale=1.0)
    whole = run(model.step, model.start(4), 8, method, key)
    assert len({*whole.lengths[:, 0].tolist()}) > 1

    @tf.function(autograph=False)
    def one(state, row):
        return decode(
            model.step, state, BEGIN, END, 8, method, key, row if isinstance(method, Sample) else 0, padding=PAD
        )

    for row in range(4):
        alone = one(model.start(1, row), tf.constant(row))
        np.testing.assert_array_equal(alone.ids[0], whole.ids[row])
        np.testing.assert_allclose(alone.scores[0], whole.scores[row], rtol=1e-5)


@pytest.mark.parametrize("name", slow_but("beam"))
def test_graph_xla_and_eager_decode_the_same(name):
    method, key = METHODS[name]
    model = Attending(seed=4)
    state = model.start(3)
    expected = run(model.cached, state, 9, method, key)

    def call(state):
        return decode(model.cached, state, BEGIN, END, 9, method, rng=key, padding=PAD)

    spec = tf.nest.map_structure(lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype), state)
    free = tf.function(call, input_signature=[spec], autograph=False)
    for other in (call, tf.function(call, jit_compile=True, autograph=False), free):
        result = other(state)
        np.testing.assert_array_equal(result.ids, expected.ids)
        np.testing.assert_array_equal(result.lengths, expected.lengths)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-5)
        assert result.steps == expected.steps


@pytest.mark.parametrize("name", slow_but("beam"))
def test_a_saved_model_decodes_as_the_function(name, tmp_path):
    method, key = METHODS[name]
    model = Recurrent(vocabulary=9, seed=3, scale=1.0)

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 5])], autograph=False)
        def serve(self, h):
            return decode(model.step, {"h": h}, BEGIN, END, 8, method, rng=key, padding=PAD)._asdict()

    tf.saved_model.save(Module(), str(tmp_path))
    h = model.start(4)["h"]
    loaded = tf.saved_model.load(str(tmp_path)).serve(h)
    np.testing.assert_array_equal(loaded["ids"], run(model.step, {"h": h}, 8, method, key).ids)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_logits_are_scored_in_float32(dtype):
    model = Recurrent(vocabulary=9, seed=3)
    step = functools.partial(model.step, dtype=dtype)
    result = run(step, model.start(1), 6, Beam(3, n_best=3))
    assert result.scores.dtype == np.float32
    for place in range(3):
        total, state, before = 0.0, model.start(1), BEGIN
        for position, token in enumerate(tokens_of(result, 0, place)):
            logits, state = step(tf.constant([before]), state, position)
            logits = logits.numpy()[0].astype(np.float64)
            total += logits[token] - np.log(np.exp(logits).sum())
            before = token
        np.testing.assert_allclose(result.log_probabilities[0, place], total, rtol=1e-5)


def countdown(tokens, state, position):
    """Ends at the position in the state with probability near 1, and before with none."""
    is_last = state["last"] == position
    return tf.where(is_last[:, tf.newaxis], [0.0, 1.0, 2.0, 30.0], [30.0, 1.0, 2.0, 0.0]), state


@pytest.mark.parametrize("method", [Greedy(), Beam(2)])
def test_the_loop_stops_with_the_last_example(method):
    result = run(countdown, {"last": tf.constant([2, 6, 0])}, 50, method)
    assert result.lengths[:, 0].tolist() == [3, 7, 1]
    assert result.steps == 7


def test_a_beam_goes_on_while_a_prefix_can_still_beat_the_worst_kept_sequence():
    """After [end] of probability 0.6 a prefix of 0.4 is left; the penalty decides whether it can still win."""

    def step(tokens, state, position):
        first = tf.math.log([0.4, 1e-30, 1e-30, 0.6])
        later = tf.math.log([1.0, 1e-30, 1e-30, 1e-30])
        return tf.where(position == 0, first, later) + tf.zeros_like(state), state

    for penalty, steps in ((0.0, 1), (0.3, 1), (1.0, 20)):
        result = run(step, tf.zeros([1, 1]), 20, Beam(2, penalty))
        # At best the prefix ends after 20 tokens that cost nothing.
        assert (np.log(0.4) / (25 / 6) ** penalty > np.log(0.6)) == (steps == 20)
        assert result.steps == steps
        assert result.lengths.item() == steps


def test_a_leaf_that_step_returns_as_given_is_not_copied():
    seen = {"memory": [], "cache": []}  # tensors and not their ids: a freed one gives its id to the next
    model = Attending()

    def step(tokens, state, position):
        seen["memory"].append(state["memory"])
        seen["cache"].append(state["cache"][0])
        return model.cached(tokens, state, position)

    assert decode(step, model.start(2), BEGIN, END, 4, Beam(2)).steps == 4
    assert {name: len({id(x) for x in tensors}) for name, tensors in seen.items()} == {"memory": 1, "cache": 4}


def test_the_n_best_are_ordered_and_distinct():
    model = Recurrent(vocabulary=9, seed=1, scale=1.0)
    result = run(model.step, model.start(6), 7, Beam(8, 0.6, n_best=8))
    assert (np.diff(result.scores, axis=1) <= 0).all()
    for example in range(6):
        assert len({tokens_of(result, example, place) for place in range(8)}) == 8


def test_sequences_that_do_not_exist_have_length_0():
    only = tf.constant([[-np.inf, 0.0, -np.inf, -np.inf]] * 2)
    result = run(lambda tokens, state, position: (only, state), tf.zeros([1, 1]), 3, Beam(2, n_best=2))
    assert result.ids.tolist() == [[[1, 1, 1], [PAD] * 3]]
    assert result.lengths.tolist() == [[3, 0]]
    assert result.scores.tolist() == [[0.0, -np.inf]]


def test_a_prompt_is_forced_and_not_scored():
    model = Recurrent(seed=2, scale=0.7)
    state = model.start(2)
    prompts = [(1, 2), (0,)]
    prefix = tf.constant([[1, 2], [0, -1]])
    result = run(model.step, state, 4, Beam(108, 0.6, n_best=3), prefix=prefix)
    for example, h in enumerate(state["h"].numpy().astype(np.float64)):
        best = model.all_sequences(h, BEGIN, END, 4, 0.6, prompts[example])[:3]
        assert [tokens_of(result, example, place) for place in range(3)] == [tokens for *_, tokens in best]
        np.testing.assert_allclose(result.scores[example], [score for score, *_ in best], rtol=1e-5)
    for method, key in ((Greedy(), None), (Beam(1, 0.6), None), (Sample(), rng.key(1))):
        result = run(model.step, state, 4, method, key, prefix=prefix)
        tokens = result.lengths - [[2], [1]] if isinstance(method, Beam) else 1  # a prompt is no token of a score
        np.testing.assert_allclose(result.scores, result.log_probabilities / ((5 + tokens) / 6) ** 0.6, rtol=1e-6)
        assert [tokens_of(result, example)[: len(prompt)] for example, prompt in enumerate(prompts)] == prompts


def test_begin_may_differ_by_example():
    model = Recurrent(vocabulary=9, seed=3, scale=1.0)
    state = {"h": tf.repeat(model.start(1)["h"], 2, axis=0)}
    both = run(model.step, state, 6, Greedy(), begin=tf.constant([4, 1]))
    for row, begin in enumerate((4, 1)):
        alone = run(model.step, {"h": state["h"][:1]}, 6, Greedy(), begin=begin)
        np.testing.assert_array_equal(alone.ids[0], both.ids[row])
    assert tokens_of(both, 0) != tokens_of(both, 1)


def test_the_framework_has_decode():
    assert framework.decode is decode


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Beam(0), "Beam(width=0): width must be at least 1."),
        (lambda: Beam(2, n_best=3), "Beam(n_best=3): n_best must be 1 to the width, 2."),
        (lambda: Beam(2, -0.5), "Beam(length_penalty=-0.5): length_penalty must be at least 0."),
        (lambda: Sample(0.0), "Sample(temperature=0.0): temperature must be at least 1e-30 (Greedy() is its limit)."),
        (lambda: Sample(top_p=0.0), "Sample(top_p=0.0): top_p must be above 0 and at most 1."),
        (lambda: Sample(top_k=-1), "Sample(top_k=-1): top_k must be at least 1, or 0 for all tokens."),
        (lambda: Beam(2.5), "Beam(width=2.5): width must be a whole number."),
        (lambda: Sample(top_k=2.0), "Sample(top_k=2.0): top_k must be a whole number."),
        (lambda: Sample("1"), "Sample(temperature='1'): temperature must be a number."),
        (lambda: Sample(1e-45), "Sample(temperature=1e-45): temperature must be at least 1e-30 (Greedy() is its"),
        (lambda: some(length=1.5), "decode(length=1.5): length must be a whole number."),
        (lambda: some(end=None), "decode(end=None): end must be a whole number."),
        (lambda: some(begin=1.7), "decode: begin has shape () and dtype float32. Pass a token, or int [batch]."),
        (lambda: some(begin=np.array([0, 9])), "decode(begin=9): the vocabulary of the logits has ids 0 to 3."),
        (lambda: some(length=0), "decode(length=0): length must be at least 1."),
        (lambda: some(method="beam"), "decode(method='beam'): method must be Greedy(), Beam(…) or Sample(…)."),
        (lambda: some(method=Sample()), "decode: Sample(temperature=1.0, top_k=0, top_p=1.0) draws, and needs rng"),
        (lambda: some(rng=7), "decode: Greedy() does not draw, so rng=7 has no effect: leave it out."),
        (
            lambda: some(first_example=8),
            "decode: Greedy() does not draw, so first_example has no effect: leave it out.",
        ),
        (lambda: some(method=Sample(), rng=tf.constant([1, 2])), "decode(rng=int32 (2,)): rng must be the key of a"),
        (lambda: some(method=Sample(), rng=[1, 2]), "decode(rng=[1, 2]): rng must be the key of a seed, e.g. rng="),
        (lambda: some(prefix=tf.ones([1, 1], tf.int32)), "decode: prefix has 1 rows for a state of 2. Give each"),
        (lambda: some(method=Sample(), rng=-1), "decode(rng=-1): rng must be the key of a seed"),
        (lambda: some(begin=4), "decode(begin=4): the vocabulary of the logits has ids 0 to 3."),
        (lambda: some(end=-1), "decode(end=-1): the vocabulary of the logits has ids 0 to 3."),
        (lambda: some(state={}), "the batch is unknown, because the state is empty. Pass begin as int [batch]."),
        (
            lambda: some(state={"a": tf.zeros([2, 3]), "b": tf.zeros([])}),
            "leaf 1 of the state, float32 (), has no row for each sequence. Its first dimension must be the batch, 2;",
        ),
        (lambda: some(state={"a": tf.zeros([2, 3]), "b": tf.zeros([3, 2])}), "leaf 1 of the state, float32 (3, 2),"),
        (lambda: some(lambda t, s, p: tf.zeros([2, 4])), "decode: step returned EagerTensor. Return a pair,"),
        (lambda: some(lambda t, s, p: (tf.zeros([2, 1, 4]), s)), "step returned float32 (2, 1, 4) as logits."),
        (lambda: some(lambda t, s, p: (tf.zeros([2, 4], tf.int32), s)), "step returned int32 (2, 4) as logits."),
        (lambda: some(lambda t, s, p: (tf.zeros([3, 4]), s)), "step returned logits (3, 4) for 2 rows."),
        (lambda: some(lambda t, s, p: (tf.zeros([2, 4]), {})), "another structure than the state it was given: {}"),
        (
            lambda: some(lambda t, s, p: (tf.zeros([2, 4]), {"h": tf.concat([s["h"], s["h"]], 1)})),
            "step changes leaf 0 of the state from float32 (2, 3) to float32 (2, 6), but a loop needs one shape.",
        ),
        (lambda: some(prefix=tf.constant([[1, 4], [1, -1]])), "decode: prefix has the token 4, but the vocabulary of"),
        (lambda: some(prefix=tf.zeros([2, 9], tf.int32)), "decode: prefix has 9 tokens, but length=5."),
        (lambda: some(prefix=tf.zeros([2], tf.int32)), "decode: prefix has shape (2,) and dtype int32. Pass int"),
        (lambda: some(prefix=tf.ones([3, 1], tf.int32), begin=tf.constant([0, 0])), "prefix has 3 rows for"),
        (lambda: some(begin=tf.zeros([2, 1], tf.int32)), "decode: begin has shape (2, 1) and dtype int32. Pass"),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(UserError) as refused:
        make()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def some(step=lambda tokens, state, position: (tf.zeros([2, 4]), state), state=None, **settings):
    """Decodes by a step that is right, but for what a test gives."""
    state = {"h": tf.zeros([2, 3])} if state is None else state
    return decode(step, state, **{"begin": BEGIN, "end": END, "length": 5, **settings})


@pytest.mark.parametrize("method", [Greedy(), Beam(2), Sample()])
@pytest.mark.parametrize("bad", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_logits_that_are_no_distribution_are_refused(method, bad):
    def step(tokens, state, position):
        is_bad = (position == 2) & (state > 0)
        return tf.where(is_bad[:, tf.newaxis], bad, [[0.0, 1.0, 2.0, -1.0]]), state

    def call(state):
        return decode(step, state, BEGIN, END, 6, method, rng=rng.key(0) if method == Sample() else None)

    state = tf.constant([0, 1])
    with pytest.raises(RunError, match=r"the logits of a sequence are NaN, \+inf or -inf everywhere"):
        call(state)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the logits of a sequence are NaN"):
        tf.function(call, autograph=False)(state)
    scores = tf.function(call, jit_compile=True, autograph=False)(state).scores
    assert np.isnan(scores).tolist() == [[False], [True]]


def test_logits_after_the_end_may_be_nan():
    def step(tokens, state, position):
        return tf.where(position > state[:, tf.newaxis], np.nan, countdown(tokens, {"last": state}, position)[0]), state

    assert run(step, tf.constant([0, 3]), 9, Greedy()).lengths[:, 0].tolist() == [1, 4]
    assert run(step, tf.constant([0, 3]), 9, Beam(2)).lengths[:, 0].tolist() == [1, 4]
