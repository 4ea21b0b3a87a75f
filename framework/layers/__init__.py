"""Layers that tf_keras lacks or has without the framework's guarantees."""

from framework.layers.dropout import Dropout

__all__ = ["Dropout"]
