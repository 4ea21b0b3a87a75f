"""One case or more for each public layer: how it is made and called, for tests that run over all of them.

A public layer without a case fails `test_every_public_layer_has_a_case`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import layers, paths, rng

BATCH = 4
RATES = ("rate", "stddev", "dropout", "recurrent_dropout", "stochastic_depth")


def _call(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    return layer(*inputs, training=training)


def _call_listed(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    return layer([*inputs], training=training)


def _call_cell(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    return layer(inputs[0], [*inputs[1:]], training=training)[0]


def _call_plain(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    return layer(*inputs)


def _call_tied(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    return tf.cast(layer.logits(layer(*inputs)), layer.compute_dtype)  # logits are in full precision


def _call_pair(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    return tf.cast(layer(tuple(inputs), training=training), layer.compute_dtype)


def _call_pooled(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    return layer(*inputs, pooling="mean", weights=layers.recency_weights(inputs[0], 2.0))


def _call_masked(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    vectors, is_item = inputs
    return layer(vectors, is_item > 0, training=training)


def _call_biased(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    return layer(*inputs[:2], bias=inputs[2])


def _call_text(layer: keras.layers.Layer, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    return layer(tf.gather(tf.constant(["", "a", "b", "other"]), inputs[0]))


@dataclasses.dataclass(frozen=True)
class Case:
    """A public layer, as tests make and call it.

    Attributes:
      name: of the layer in `framework.layers`, and in `keras.layers` if that has it.
      arguments: of the constructor, rates above 0 included; a case stands for the layer that a wrapper gets.
      shapes: of the tensors of a call, without the batch.
      below: if above 0, the tensors are integers from 0 to below - 1.
      call: how it is called with them.
      title: what tells several cases of a layer apart.
      is_random: it draws in training although no rate says so.
      normalizes: training and inference differ beyond draws, as by the statistics of a batch.
      exempt: {check of `testing.check_layer`: why the layer cannot pass it}.
    """

    name: str
    arguments: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    call: Callable[[keras.layers.Layer, Sequence[tf.Tensor], bool], Any] = _call
    title: str = ""
    below: int = 0
    is_random: bool = False
    normalizes: bool = False
    exempt: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name that pytest shows."""
        return f"{self.name} {self.title}".strip()

    @property
    def draws(self) -> bool:
        """Whether a call in training draws random numbers."""
        inner = [value for value in self.arguments.values() if isinstance(value, Case)]
        return self.is_random or any(self.arguments.get(name) for name in RATES) or any(case.draws for case in inner)

    @property
    def training_differs(self) -> bool:
        """Whether a call in training and one in inference give different outputs."""
        return self.draws or self.normalizes

    def inputs(self, dtype: str = "float64") -> list[tf.Tensor]:
        """Normal numbers, or integers, the same at every call."""
        random = np.random.default_rng(0)
        if self.below:
            return [tf.constant(random.integers(self.below, size=(BATCH, *shape))) for shape in self.shapes]
        return [tf.constant(random.normal(size=(BATCH, *shape)), dtype) for shape in self.shapes]

    def make(
        self, module: ModuleType = layers, rates: bool = True, dtype: str | None = "float64"
    ) -> keras.layers.Layer:
        """The layer of `framework.layers` or `keras.layers`, not built; `rates=False` makes them all 0.

        The dtype None is that of `precision.scope`.
        """
        arguments = {}
        for name, value in self.arguments.items():
            value = value.make(module, rates, dtype) if isinstance(value, Case) else value
            arguments[name] = value if rates or name not in RATES else 0
        return getattr(module, self.name)(**arguments, dtype=dtype)

    def build(self, module: ModuleType = layers, rates: bool = True, dtype: str = "float64") -> keras.layers.Layer:
        """The same, built from a seed, its streams named."""
        keras.utils.set_random_seed(0)
        keras.backend.reset_uids()  # names begin anew, as in another process
        layer = self.make(module, rates, dtype)
        self.call(layer, self.inputs(dtype), False)
        rng.name_streams(paths.objects({"layer": layer}))
        return layer


BOTH = {"dropout": 0.3, "recurrent_dropout": 0.4}
STACK = {"width": 4, "heads": 2, "feed_forward": 5, "dropout": 0.3, "max_length": 4}
TEXTS = dict.fromkeys(("xla", "lite"), "strings are for the host: XLA and LiteRT have no table of strings")
LOOPS = {"lite": "LiteRT converts a loop over time for a fixed batch size only"}

CASES = (
    Case("Dropout", {"rate": 0.3}, ((3, 5),)),
    Case("Dropout", {"rate": 0.3, "noise_shape": (None, 1, 5)}, ((3, 5),), title="of a noise shape"),
    Case("SpatialDropout1D", {"rate": 0.3}, ((3, 5),)),
    Case("SpatialDropout2D", {"rate": 0.3}, ((3, 2, 5),)),
    Case("SpatialDropout2D", {"rate": 0.3, "data_format": "channels_first"}, ((5, 3, 2),), title="channels first"),
    Case("SpatialDropout3D", {"rate": 0.3, "data_format": "channels_first"}, ((5, 3, 2, 2),)),
    Case("AlphaDropout", {"rate": 0.3}, ((3, 5),)),
    Case("GaussianDropout", {"rate": 0.3}, ((3, 5),)),
    Case("GaussianNoise", {"stddev": 0.5}, ((3, 5),)),
    Case("LSTM", {"units": 2, "dropout": 0.3}, ((3, 4),), exempt=LOOPS),
    Case("LSTM", {"units": 2, "return_sequences": True, **BOTH}, ((3, 4),), title="of gates", exempt=LOOPS),
    Case("GRU", {"units": 2, "dropout": 0.3}, ((3, 4),), exempt=LOOPS),
    Case("GRU", {"units": 2, **BOTH}, ((3, 4),), title="of gates", exempt=LOOPS),
    Case("SimpleRNN", {"units": 2, **BOTH}, ((3, 4),), exempt=LOOPS),
    Case("LSTMCell", {"units": 2, **BOTH}, ((4,), (2,), (2,)), _call_cell),
    Case("GRUCell", {"units": 2, **BOTH}, ((4,), (2,)), _call_cell),
    Case("SimpleRNNCell", {"units": 2, **BOTH}, ((4,), (2,)), _call_cell),
    Case("ConvLSTM1D", {"filters": 2, "kernel_size": 2, **BOTH}, ((2, 4, 1),), exempt=LOOPS),
    Case("ConvLSTM2D", {"filters": 2, "kernel_size": 2, **BOTH}, ((2, 3, 3, 1),), exempt=LOOPS),
    Case("ConvLSTM3D", {"filters": 2, "kernel_size": 2, **BOTH}, ((2, 3, 3, 2, 1),), exempt=LOOPS),
    Case("TimeDistributed", {"layer": Case("SpatialDropout1D", {"rate": 0.3}, ())}, ((3, 2, 5),)),
    Case("Attention", {"dropout": 0.3, "use_scale": True}, ((3, 4), (5, 4)), _call_listed),
    Case("AdditiveAttention", {"dropout": 0.3}, ((3, 4), (5, 4)), _call_listed),
    Case("MultiHeadAttention", {"num_heads": 2, "key_dim": 3, "dropout": 0.3}, ((3, 4), (5, 4))),
    Case("LayerNormalization", {}, ((3, 5),), _call_plain),
    Case("GroupNormalization", {"groups": 2}, ((3, 2, 4),), _call_plain),
    Case("MaxPooling2D", {"pool_size": (2, 3)}, ((5, 7, 2),), _call_plain),
    Case("RandomFlip", {}, ((4, 5, 2),), is_random=True),
    Case("RandomCrop", {"height": 3, "width": 2}, ((4, 5, 2),), is_random=True),
    Case("RandomTranslation", {"height_factor": 0.3, "width_factor": 0.2}, ((4, 5, 2),), is_random=True),
    Case("RandomRotation", {"factor": 0.2, "fill_mode": "constant"}, ((4, 5, 2),), is_random=True),
    Case("RandomZoom", {"height_factor": 0.3, "fill_mode": "wrap"}, ((4, 5, 2),), is_random=True),
    Case("RandomContrast", {"factor": 0.5}, ((4, 5, 2),), is_random=True),
    Case("RandomBrightness", {"factor": 0.5, "value_range": (-9, 9)}, ((4, 5, 2),), is_random=True),
    Case("EncoderLayer", {"width": 4, "heads": 2, "feed_forward": 5, "dropout": 0.3}, ((3, 4),)),
    Case("DecoderLayer", {"width": 4, "heads": 2, "feed_forward": 5, "dropout": 0.3}, ((3, 4), (2, 4))),
    Case(
        "EncoderLayer",
        {"width": 4, "heads": 2, "feed_forward": 5, "activation": "swiglu", "rotary": True, "mask_value": -30.0},
        ((3, 4),),
        title="rotary, of SwiGLU",
    ),
    Case("Encoder", {"layers": 1, "positions": "learned", **STACK}, ((3, 4),)),
    Case("Decoder", {"layers": 1, "norm": "post", **STACK}, ((3, 4), (2, 4))),
    Case("SinusoidalPositions", {"max_length": 4}, ((3, 5),), _call_plain),
    Case("LearnedPositions", {"max_length": 4}, ((3, 5),), _call_plain),
    Case("TiedEmbedding", {"vocabulary": 7, "width": 3}, ((5,),), _call_tied, below=7),
    Case("Transformer", {"vocabulary": 7, "layers": 1, **STACK}, ((3,), (4,)), _call_pair, below=7),
    Case("StochasticDepth", {"rate": 0.72}, ((3, 2, 5),)),
    Case("SqueezeExcite", {"ratio": 2}, ((3, 2, 4),), _call_plain),
    Case(
        "BasicBlock",
        {"filters": 4, "stride": 2, "shortcut": "padded", "zero_last": False},
        ((5, 4, 2),),
        title="of BatchNorm",
        normalizes=True,
        exempt={"replicas": "BatchNormalization takes the statistics of the examples that a replica has"},
    ),
    Case(
        "BasicBlock",
        {"filters": 4, "normalization": "none", "squeeze_ratio": 2, "stochastic_depth": 0.5, "zero_last": False},
        ((3, 4, 2),),
        title="that draws",
    ),
    Case(
        "BottleneckBlock",
        {
            "filters": 4,
            "expansion": 2,
            "pre_activation": True,
            "normalization": "group",
            "groups": 2,
            "stochastic_depth": 0.5,
            "zero_last": False,
        },
        ((3, 4, 4),),
    ),
    Case("WhiteningConv2D", {}, ((3, 4, 1),), _call_plain),
    Case("Lookup", {"keys": [3, 4, 5]}, ((3,),), _call_plain, below=7),
    Case("Lookup", {"keys": [3, 9, 5], "unknown": "refuse"}, ((3,),), _call_plain, below=10, title="of some numbers"),
    Case("Lookup", {"keys": ["b", "a"]}, ((3,),), _call_text, below=4, title="of strings", exempt=TEXTS),
    Case(
        "HashedLookup",
        {"rows": 5},
        ((3,),),
        _call_plain,
        below=100,
        exempt={"lite": "LiteRT lacks remainders and shifts of unsigned integers"},
    ),
    Case("Bucketize", {"boundaries": [-0.5, 0.25, 1.0]}, ((3,),), _call_plain),
    Case("EmbeddingTable", {"rows": 7, "width": 3}, ((5,),), _call_plain, below=7),
    Case("EmbeddingTable", {"rows": 7, "width": 3, "shards": 3}, ((5,),), _call_pooled, below=7, title="of shards"),
    Case(
        "HistoryEncoder",
        {"layers": 1, "width": 4, "heads": 2, "feed_forward": 5, "dropout": 0.3, "max_length": 3},
        ((3, 4), (3,)),
        _call_masked,
    ),
    Case("Tower", {"sizes": [4, 3], "dropout": 0.3, "normalization": "layer"}, ((2,), (3,)), _call_listed),
    Case("Score", {"similarity": "cosine", "temperature": 0.5, "learned": True}, ((3,), (3,), ()), _call_biased),
    Case("Score", {}, ((3,), (3,), ()), _call_biased, title="of a product"),
    Case(
        "Factors",
        {"rows": {"user": 7, "film": 7}, "members": 2, "factors": 3, "prior": 3.0, "bias_prior": 5.0},
        ((), ()),
        _call_plain,
        below=7,
    ),
    Case("CumulativeLogits", {"levels": 5}, ((3,),), _call_plain),
)
