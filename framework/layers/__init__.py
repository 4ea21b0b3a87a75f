"""Layers that tf_keras lacks or has without the framework's guarantees."""

from framework.layers.dropout import Dropout
from framework.layers.remat import rematerialise

__all__ = ["Dropout", "rematerialise"]
