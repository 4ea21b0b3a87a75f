"""Tells which private name an upgrade moved."""

import pytest
import tensorflow as tf
import tf_keras as keras

from framework import compat


@pytest.fixture(autouse=True)
def named(request):
    """Says which name an upgrade moved, in one line."""
    try:
        yield
    finally:
        function = request.node.name.removeprefix("test_").partition("[")[0]
        if getattr(compat, function, None) is not None:
            print(f"TensorFlow {tf.__version__}, tf_keras {keras.__version__}: mend {function} in framework/compat.py")
