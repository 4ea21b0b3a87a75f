"""Layers that tf_keras lacks or has without the framework's guarantees."""

from framework.layers.attention import MultiHeadAttention
from framework.layers.dropout import Dropout
from framework.layers.normalization import LayerNormalization
from framework.layers.remat import rematerialise
from framework.layers.transformer import DecoderLayer, EncoderLayer, sinusoidal

__all__ = [
    "DecoderLayer",
    "Dropout",
    "EncoderLayer",
    "LayerNormalization",
    "MultiHeadAttention",
    "rematerialise",
    "sinusoidal",
]
