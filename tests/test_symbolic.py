"""framework/symbolic.py: Python code that needs the value of a tensor is one line, whatever it does with it."""

import math

import numpy as np
import pytest
import tensorflow as tf

from framework.config import UserError
from framework.symbolic import explain, explained, place_of

CODE = {
    "a choice": (lambda x: 1.0 if x > 3 else 2.0, "tf.where"),
    "an and": (lambda x: (x > 3) and 1.0, "tf.where"),
    "a largest": (lambda x: max(x, 3), "tf.where"),
    "a loop": (lambda x: [value + 1 for value in x], "tf.map_fn"),
    "a range": (lambda x: list(range(x)), "tf.cast"),
    "a float": (lambda x: float(x), "tf.cast"),
    "math": (lambda x: math.cos(x), "tf.cos"),
    "NumPy": (lambda x: np.cos(x), "tf.cos"),
    "an array": (lambda x: np.interp(x, [1, 2], [3, 4]), "tf.cos"),
    "its value": (lambda x: x.numpy(), "tf.cast"),
    "a place": (lambda x: [0.1, 0.2][x], "tf.gather"),
    "a key": (lambda x: {1: 2}[x], "tf.gather"),
}


@pytest.mark.parametrize(("code", "advice"), CODE.values(), ids=CODE)
def test_the_line_that_needs_a_value_is_named_with_what_to_write(code, advice):
    with pytest.raises(UserError) as error, explained("the loss"):
        tf.function(code, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int64))
    message = str(error.value)
    assert message.startswith(f"{__file__}:{code.__code__.co_firstlineno}: `")
    assert "` needs the value of a tensor, which has none while the loss is compiled. Write " in message
    assert advice in message
    assert "\n" not in message


def test_other_errors_are_left_as_they_are():
    for error in (ZeroDivisionError("division by zero"), UserError("a symbolic tf.Tensor"), ValueError("shapes")):
        assert explain(error, "the loss") is None
        with pytest.raises(type(error)) as raised, explained("the loss"):
            raise error
        assert raised.value is error


def test_a_place_is_that_of_the_experiment_not_of_a_library():
    def own():
        np.testing.assert_array_equal([1], [2])

    with pytest.raises(AssertionError) as error:
        own()
    assert place_of(error.value) == (
        f"{__file__}:{own.__code__.co_firstlineno + 1}: `np.testing.assert_array_equal([1], [2])`"
    )
