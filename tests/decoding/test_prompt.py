import numpy as np
import pytest
import tensorflow as tf

from framework.decoding import Beam, Greedy, decode
from framework.errors import UserError
from tests.decoding.models import Recurrent

BEGIN, END, PAD = 0, 3, 7
GREEDY = Greedy()


def decoded(prefix, method=GREEDY, length=6, padding=PAD):
    model = Recurrent(vocabulary=6, seed=2, scale=0.7)
    return decode(model.step, model.start(2), BEGIN, END, length, method, prefix=prefix, padding=padding)


def in_graph(columns=None, jit_compile=False, **settings):
    """Returns `decoded` as a function of prompts, whose number of tokens it knows or not."""
    spec = tf.TensorSpec([None, columns], tf.int64)
    return tf.function(lambda prefix: decoded(prefix, **settings), [spec], autograph=False, jit_compile=jit_compile)


def with_columns(prompts, columns):
    """Returns prompts, lists of ids, as int64 [prompts, columns] padded with -1."""
    return np.array([prompt + [-1] * (columns - len(prompt)) for prompt in prompts])


@pytest.mark.parametrize("method", [GREEDY, Beam(3, 0.6, n_best=2)])
def test_prompts_of_a_width_known_only_when_a_graph_runs_are_those_of_a_known_width(method):
    """A text of a client has a number of tokens that is not known when the export is traced."""
    prompts = [[1, 2], [5]]
    known = decoded(tf.constant(with_columns(prompts, 2)), method)
    assert (known.ids.numpy()[:, 0, 0] == [1, 5]).all() and (known.ids.numpy()[0, :, 1] == 2).all()
    graph = in_graph(method=method)
    for columns in (2, 3, 6):
        result = graph(with_columns(prompts, columns))
        np.testing.assert_array_equal(result.ids, known.ids)
        np.testing.assert_allclose(result.scores, known.scores, rtol=1e-5)
    compiled = in_graph(jit_compile=True, method=method)(with_columns(prompts, 4))
    np.testing.assert_array_equal(compiled.ids, known.ids)


def test_no_prompt_is_a_prompt_of_no_token():
    model = Recurrent(vocabulary=6, seed=2, scale=0.7)
    alone = decode(model.step, model.start(2), BEGIN, END, 6, padding=PAD)
    np.testing.assert_array_equal(in_graph()(np.zeros([2, 0])).ids, alone.ids)


WRONG = {
    "has a number below -1, which is no token. Write -1 behind a prompt.": [[1, 2], [5, -2]],
    "has -1 before a token. Begin each prompt at the left, and write -1 behind it.": [[1, 2], [-1, 5]],
    "ends with padding=0. Write -1 behind it: tf.where(ids == 0, -1, ids). If 0 is": [[1, 2], [5, 0]],
    "has the end token, 3, before other tokens, which would be left out. Leave it out, or them.": [[1, 2], [3, 5]],
    "is longer than length=2. Take a longer length.": [[1, -1, -1], [1, 2, 4]],
}


@pytest.mark.parametrize("fault", WRONG)
def test_prompts_that_would_be_read_otherwise_than_they_are_meant_are_refused(fault):
    settings = {"length": 2 if "longer" in fault else 6, "padding": 0}
    prompts = np.array(WRONG[fault])
    with pytest.raises(UserError, match="decode: prefix has 3 tokens" if "longer" in fault else "decode: prompt 1 of"):
        decoded(prompts, **settings)
    with pytest.raises(tf.errors.InvalidArgumentError) as failed:
        in_graph(**settings)(prompts)
    assert f"decode: a prompt {fault}" in str(failed.value)
    scores = in_graph(jit_compile=True, **settings)(prompts).scores.numpy()[:, 0]
    assert scores[1] == -np.inf and np.isfinite(scores[0])  # an XLA program cannot fail


def test_a_token_that_is_also_the_padding_may_end_a_prompt_if_the_padding_is_another():
    prompts = np.array([[1, 2], [5, 0]])
    assert decoded(prompts, padding=-1).ids.numpy()[:, 0, :2].tolist() == prompts.tolist()
    shorter = np.array([[1, 2], [0, -1]])
    assert decoded(shorter, padding=0).ids.numpy()[1, 0, 0] == 0  # -1 behind it says where the prompt ends


def test_prompts_of_other_kinds_are_refused():
    with pytest.raises(UserError, match=r"prefix has shape \(2, 1\) and dtype float32. Pass int \[batch, tokens\]"):
        decoded(tf.ones([2, 1]))


def test_prompts_that_have_all_ended_are_refused_and_one_among_others_stays_as_it_is():
    """Held-out examples of `text.encoded` end with the end token, so nothing would be written after them."""
    fault = "ends with the end token, 3, and so do all others: nothing would be written. Leave it out, as encode(texts)"
    ended = np.array([[1, END], [END, -1]])
    with pytest.raises(UserError, match="decode: prompt 0 of prefix ends with the end token, 3, and so do all others"):
        decoded(ended)
    with pytest.raises(tf.errors.InvalidArgumentError) as failed:
        in_graph()(ended)
    assert f"decode: a prompt {fault}" in str(failed.value)
    assert (in_graph(jit_compile=True)(ended).scores.numpy() == -np.inf).all()  # an XLA program cannot fail
    alone = decoded(np.array([[1, 2], [1, 2]]))
    for method in (GREEDY, Beam(2)):
        both = decoded(np.array([[1, END], [1, 2]]), method)
        assert both.ids[0, 0].numpy().tolist() == [1, END, PAD, PAD, PAD, PAD] and both.log_probabilities[0, 0] == 0
    np.testing.assert_array_equal(decoded(np.array([[1, END], [1, 2]])).ids[1], alone.ids[1])
