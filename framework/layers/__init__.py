"""Layers that Keras lacks, or has without the framework's guarantees.

All that draw do so by (seed, path of the layer, step, example): the same masks in every compile mode, on any number of
replicas, in micro-batches, and in a run that was stopped. Arguments and weights are those of `keras.layers`.

| layer | what it does |
|---|---|
| `Dropout`, `SpatialDropout1D`, `SpatialDropout2D`, `SpatialDropout3D` | zeroes elements, or whole channels |
| `AlphaDropout` | drops to the saturation of SELU, keeping mean and variance |
| `GaussianDropout`, `GaussianNoise` | multiplies by, or adds, normal noise |
| `LSTM`, `GRU`, `SimpleRNN` and `LSTMCell`, `GRUCell`, `SimpleRNNCell` | recurrent, with dropout of inputs and states |
| `ConvLSTM1D`, `ConvLSTM2D`, `ConvLSTM3D` | recurrent over rows, pictures, volumes |
| `TimeDistributed` | applies a layer to every time of a sequence |
| `MultiHeadAttention`, `Attention`, `AdditiveAttention` | attention, with dropout of probabilities |
| `Encoder`, `Decoder` and `EncoderLayer`, `DecoderLayer` | a Transformer's stacks, with a cache to decode; one layer |
| `Transformer` | a whole encoder-decoder model: source and target tokens in, logits out |
| `TiedEmbedding` | embeds source and target tokens, and makes logits, by one table |
| `SinusoidalPositions`, `LearnedPositions` | add the vector of its position to each token |
| `RandomFlip`, `RandomCrop`, `RandomRotation`, `RandomTranslation`, `RandomZoom` | move pixels in training |
| `RandomContrast`, `RandomBrightness` | change the values of pixels in training |
| `LayerNormalization` | normalises the last dimension, with a gradient in closed form |
| `GroupNormalization` | normalises groups of channels, in full precision, and in LiteRT too |
| `MaxPooling2D` | takes the largest value of windows, with a gradient that is deterministic in XLA too |
| `BasicBlock`, `BottleneckBlock` | residual blocks of pictures, with a shortcut that fits |
| `StochasticDepth`, `SqueezeExcite` | drops the branch of an example; scales channels by their means |
| `WhiteningConv2D` | convolves with a kernel that whitens windows, computed of data |
| `Lookup`, `HashedLookup`, `Bucketize` | turn ids, texts and numbers into rows of a table |
| `EmbeddingTable` | looks up rows of a table that features share, and pools lists of them |
| `HistoryEncoder` | attends to a history of items |
| `Tower`, `Score`, `CumulativeLogits` | dense layers of features; the score of a pair; logits of ratings in order |
| `Factors` | rates pairs by several models of factors and biases |

`cifar_resnet` makes the residual networks of He et al. for CIFAR, `make_normalization` a normalisation by its name,
`Dirac` initial kernels that copy channels and `whitening_kernel` those of `WhiteningConv2D`.
`padding_mask`, `causal_mask` and `combined_mask` make masks of attention, `sinusoidal` fixed positions, `rotate` rotary
ones, and `token_positions` those of padded sequences. `recency_weights` weighs a history by its age, `recency_pooled`
pools it by several half-lives, and `factor_scales` makes the rows of `Factors` learn at one rate.
`rematerialise` trades time for memory, and `with_repeatable_draws` gives the layers of a model that other code makes,
such as `keras.applications`, the same draws.
"""

from framework.layers.attention import AdditiveAttention, Attention, MultiHeadAttention
from framework.layers.augmentation import (
    RandomBrightness,
    RandomContrast,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    RandomTranslation,
    RandomZoom,
)
from framework.layers.cifar_resnet import cifar_resnet
from framework.layers.dropout import (
    AlphaDropout,
    Dropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    StochasticDepth,
)
from framework.layers.embedding import TiedEmbedding
from framework.layers.encoder_decoder import Decoder, Encoder
from framework.layers.factors import Factors, factor_scales
from framework.layers.ids import Bucketize, HashedLookup, Lookup
from framework.layers.initializers import Dirac
from framework.layers.keras_draws import with_repeatable_draws
from framework.layers.masks import causal_mask, combined_mask, padding_mask
from framework.layers.normalization import GroupNormalization, LayerNormalization, make_normalization
from framework.layers.pooling import MaxPooling2D
from framework.layers.positions import LearnedPositions, SinusoidalPositions, rotate, sinusoidal, token_positions
from framework.layers.recurrent import (
    GRU,
    LSTM,
    ConvLSTM1D,
    ConvLSTM2D,
    ConvLSTM3D,
    GRUCell,
    LSTMCell,
    SimpleRNN,
    SimpleRNNCell,
    TimeDistributed,
)
from framework.layers.remat import rematerialise
from framework.layers.residual import BasicBlock, BottleneckBlock, SqueezeExcite
from framework.layers.sequence_to_sequence import Transformer
from framework.layers.towers import (
    CumulativeLogits,
    EmbeddingTable,
    HistoryEncoder,
    Score,
    Tower,
    recency_pooled,
    recency_weights,
)
from framework.layers.transformer import DecoderLayer, EncoderLayer
from framework.layers.whitening import WhiteningConv2D, whitening_kernel

__all__ = [
    "GRU",
    "LSTM",
    "AdditiveAttention",
    "AlphaDropout",
    "Attention",
    "BasicBlock",
    "BottleneckBlock",
    "Bucketize",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
    "CumulativeLogits",
    "Decoder",
    "DecoderLayer",
    "Dirac",
    "Dropout",
    "EmbeddingTable",
    "Encoder",
    "EncoderLayer",
    "Factors",
    "GRUCell",
    "GaussianDropout",
    "GaussianNoise",
    "GroupNormalization",
    "HashedLookup",
    "HistoryEncoder",
    "LSTMCell",
    "LayerNormalization",
    "LearnedPositions",
    "Lookup",
    "MaxPooling2D",
    "MultiHeadAttention",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
    "RandomTranslation",
    "RandomZoom",
    "Score",
    "SimpleRNN",
    "SimpleRNNCell",
    "SinusoidalPositions",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "SqueezeExcite",
    "StochasticDepth",
    "TiedEmbedding",
    "TimeDistributed",
    "Tower",
    "Transformer",
    "WhiteningConv2D",
    "causal_mask",
    "cifar_resnet",
    "combined_mask",
    "factor_scales",
    "make_normalization",
    "padding_mask",
    "recency_pooled",
    "recency_weights",
    "rematerialise",
    "rotate",
    "sinusoidal",
    "token_positions",
    "whitening_kernel",
    "with_repeatable_draws",
]
