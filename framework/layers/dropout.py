"""Dropout and noise whose draws depend on (seed, layer, step, example) alone.

    keras.Sequential([keras.layers.Dense(128), layers.Dropout(0.2), keras.layers.Dense(10)])

Arguments and calls are those of the layers of the same name in Keras, but for `seed`, which is the run's. Keras has no
`StochasticDepth`.
"""

from typing import Any

import tf_keras as keras

from framework.layers.draws import KeyedDraws, check_rate


class Dropout(KeyedDraws, keras.layers.Dropout):
    """Zeroes each element with probability `rate` in training and scales the others so that the mean stays.

    Source: Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks from overfitting".

    Args:
      rate: 0 <= rate < 1; the nearest multiple of 2**-16 is what is drawn and scaled by.
      noise_shape: shape of the mask, if it is not that of the inputs: `(None, 1, 1, None)` drops whole channels of
        pictures. None stands for the dimension of the inputs, and is first.

    Call: x, floating, [batch, ...] with all but the batch dimension static -> same shape and dtype. `training=True`
    needs an open `rng.scope` (the step opens one), else RuntimeError.
    """

    def __init__(self, rate: float, noise_shape: Any = None, **kwargs: Any) -> None:
        check_rate("rate", rate)
        super().__init__(rate, noise_shape=noise_shape, **kwargs)


class SpatialDropout1D(KeyedDraws, keras.layers.SpatialDropout1D):
    """Zeroes whole features of sequences in training, each with probability `rate`.

    Source: Tompson et al., 2015, "Efficient object localization using convolutional networks".

    Call: x, floating [batch, time, features] -> same shape and dtype.
    """


class _OfChannels(KeyedDraws):
    """Keeps `data_format` in the config, which Keras forgets."""

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_format": self.data_format}  # type: ignore[misc, attr-defined]


class SpatialDropout2D(_OfChannels, keras.layers.SpatialDropout2D):
    """Zeroes whole channels of pictures in training, each with probability `rate`.

    Source: Tompson et al., 2015, "Efficient object localization using convolutional networks".

    Call: x, floating [batch, height, width, channels], or as `data_format` says -> same shape and dtype.
    """


class SpatialDropout3D(_OfChannels, keras.layers.SpatialDropout3D):
    """Zeroes whole channels of volumes in training, each with probability `rate`.

    Source: Tompson et al., 2015, "Efficient object localization using convolutional networks".

    Call: x, floating [batch, depth, height, width, channels], or as `data_format` says -> same shape and dtype.
    """


class StochasticDepth(Dropout):
    """Zeroes whole examples with probability `rate` in training and scales the others so that the mean stays.

    For the branch of a residual block: x + StochasticDepth(0.1)(branch). Source: Huang et al., 2016, "Deep networks
    with stochastic depth"; they scale in inference instead, which leads to the same means.

    Args:
      rate: 0 <= rate < 1; the nearest multiple of 2**-16 is what is drawn and scaled by.

    Call: x, floating [batch, ...] -> same shape and dtype.
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(rate, noise_shape=None, **kwargs)

    def build(self, input_shape: Any) -> None:
        self.noise_shape = (None, *[1] * (len(input_shape) - 1))
        super().build(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_config().items() if name != "noise_shape"}


class AlphaDropout(KeyedDraws, keras.layers.AlphaDropout):
    """Sets elements to the value at which SELU saturates, with probability `rate`, and keeps mean and variance.

    Source: Klambauer et al., 2017, "Self-normalizing neural networks".

    Args:
      rate: 0 <= rate < 1.

    Call: x, floating [batch, ...] -> same shape and dtype.
    """

    def __init__(self, rate: float, noise_shape: Any = None, **kwargs: Any) -> None:
        if noise_shape is not None:
            raise ValueError(f"noise_shape={noise_shape}: an AlphaDropout drops single elements. Leave noise_shape out")
        super().__init__(rate, **kwargs)


class GaussianDropout(KeyedDraws, keras.layers.GaussianDropout):
    """Multiplies each element by a normal number of mean 1 and variance rate / (1 - rate) in training.

    Source: Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks from overfitting", section 10.

    Call: x, floating [batch, ...] -> same shape and dtype.
    """


class GaussianNoise(KeyedDraws, keras.layers.GaussianNoise):
    """Adds a normal number of mean 0 and standard deviation `stddev` to each element in training.

    Call: x, floating [batch, ...] -> same shape and dtype.
    """
