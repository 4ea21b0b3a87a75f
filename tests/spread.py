"""tests/tiny.py in float64, which LiteRT does not run: what several workers train."""

from experiments import mnist_mlp
from framework.export.saved_model import SavedModel
from tests import tiny
from tests.tiny import make_data, make_loss, make_metrics, make_model, make_schedule  # noqa: F401


def get_config(arg):
    config = tiny.get_config(arg)
    config.train.precision = "float64"
    return config


def make_exports(cfg):
    return [hook for hook in mnist_mlp.make_exports(cfg) if isinstance(hook, SavedModel)]
