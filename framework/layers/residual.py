"""Residual blocks of pictures: basic and bottleneck, post- and pre-activation.

    x = layers.BasicBlock(64, stride=2)(x)                              # [batch, 32, 32, 32] -> [batch, 16, 16, 64]
    x = layers.BottleneckBlock(256, pre_activation=True, normalization="group", groups=16)(x)

A block compares the shape of its input with that of its output, and adds its input as it is only if both are the same;
otherwise `shortcut` makes the shapes equal. Sources: He et al., 2015, "Deep residual learning for image recognition";
He et al., 2016, "Identity mappings in deep residual networks" (pre-activation); Huang et al., 2016, "Deep networks with
stochastic depth"; Hu et al., 2018, "Squeeze-and-excitation networks"; Goyal et al., 2017, "Accurate, large minibatch
SGD", section 5.1 (the last scale is zero at first).
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework.layers.dropout import StochasticDepth
from framework.layers.normalization import make_normalization

SHORTCUTS = ("projection", "padded")


class SqueezeExcite(keras.layers.Layer):
    """Multiplies each channel by a number between 0 and 1 that two dense layers compute of the means of all channels.

    Source: Hu et al., 2018, "Squeeze-and-excitation networks".

    Args:
      ratio: the hidden layer (ReLU) has channels / ratio units; a divisor of the channels.

    Call: x, floating [batch, height, width, channels] -> same shape and dtype.
    """

    def __init__(self, ratio: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ratio = ratio

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        if self.ratio < 1 or channels % self.ratio:
            raise ValueError(f"SqueezeExcite: ratio={self.ratio} is not a divisor of the {channels} channels")
        self.squeeze = keras.layers.Dense(
            channels // self.ratio, "relu", kernel_initializer="he_normal", dtype=self.dtype_policy, name="squeeze"
        )
        self.excite = keras.layers.Dense(channels, "sigmoid", dtype=self.dtype_policy, name="excite")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        means = tf.reduce_mean(tf.cast(x, self.dtype), [1, 2])  # in full precision
        scale = self.excite(self.squeeze(means))
        return x * scale[:, tf.newaxis, tf.newaxis, :]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ratio": self.ratio}


class _Block(keras.layers.Layer):
    """Adds a shortcut and a branch of convolutions, of which a subclass says how many and how large they are."""

    def __init__(
        self,
        filters: int,
        stride: int = 1,
        *,
        pre_activation: bool = False,
        shortcut: str = "projection",
        normalization: str = "batch",
        groups: int | None = None,
        activation: Any = "relu",
        squeeze_ratio: int | None = None,
        stochastic_depth: float = 0.0,
        zero_last: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if shortcut not in SHORTCUTS:
            raise ValueError(f"{self._kind}: shortcut='{shortcut}' is none of {', '.join(SHORTCUTS)}")
        for name, value in (("filters", filters), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{self._kind}: {name}={value} must be at least 1")
        self.filters = filters
        self.stride = stride
        self.activation = keras.activations.get(activation)
        self._settings: dict[str, Any] = {
            "pre_activation": pre_activation,
            "shortcut": shortcut,
            "normalization": normalization,
            "groups": groups,
            "squeeze_ratio": squeeze_ratio,
            "stochastic_depth": stochastic_depth,
            "zero_last": zero_last,
        }
        self._make_branch()
        self.squeeze_excite = None
        if squeeze_ratio is not None:
            self.squeeze_excite = SqueezeExcite(squeeze_ratio, dtype=self.dtype_policy, name="squeeze_excite")
        self.depth_dropout = StochasticDepth(stochastic_depth, dtype=self.dtype_policy, name="depth_dropout")

    def _make_branch(self) -> None:
        """Makes the layers conv_1, norm_1, conv_2, … of the branch."""
        shapes = self._shapes()
        self._length = len(shapes)
        ends_in_scale = not self._settings["pre_activation"] and self._settings["normalization"] != "none"
        for number, (filters, kernel, stride) in enumerate(shapes, 1):
            is_zero = self._settings["zero_last"] and number == self._length
            conv = self._convolution(f"conv_{number}", filters, kernel, stride, is_zero and not ends_in_scale)
            setattr(self, f"conv_{number}", conv)
            setattr(self, f"norm_{number}", self._norm(f"norm_{number}", is_zero and ends_in_scale))

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _shapes(self) -> list[tuple[int, int, int]]:
        """Returns filters, size of the window and stride of each convolution of the branch."""
        raise NotImplementedError

    def _convolution(self, name: str, filters: int, kernel: int, stride: int, is_zero: bool) -> keras.layers.Layer:
        return keras.layers.Conv2D(
            filters,
            kernel,
            stride,
            "same" if stride == 1 else "valid",
            use_bias=self._settings["normalization"] == "none",
            kernel_initializer="zeros" if is_zero else "he_normal",
            dtype=self.dtype_policy,
            name=name,
        )

    def _norm(self, name: str, is_zero: bool = False) -> keras.layers.Layer | None:
        return make_normalization(
            self._settings["normalization"],
            groups=self._settings["groups"],
            gamma_initializer="zeros" if is_zero else "ones",
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, input_shape: Any) -> None:
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ValueError(
                f"{self._kind} takes [batch, height, width, channels] with static channels, but got {input_shape}"
            )
        channels = input_shape[-1]
        self._changes_shape = self.stride > 1 or channels != self.filters
        self.projection = self.projection_norm = None
        if self._changes_shape and self._settings["shortcut"] == "projection":
            self.projection = self._convolution("projection", self.filters, 1, self.stride, is_zero=False)
            if not self._settings["pre_activation"]:
                self.projection_norm = self._norm("projection_norm")
        elif channels > self.filters:
            raise ValueError(
                f"{self._kind}: shortcut='padded' adds channels of zeros, and cannot make {self.filters} channels of"
                f" {channels}. Write shortcut='projection'"
            )
        self._check_groups(channels)
        super().build(input_shape)

    def _check_groups(self, channels: int) -> None:
        """Raises ValueError if the channels of a normalisation cannot be grouped; the input has `channels`."""
        groups, widths = self._settings["groups"] or 1, [filters for filters, _, _ in self._shapes()]
        for width in [channels, *widths[:-1]] if self._settings["pre_activation"] else widths:
            if width % groups:
                raise ValueError(f"{self._kind}: groups={groups} is not a divisor of the {width} channels to normalise")

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        branch = self._branch_pre_activation if self._settings["pre_activation"] else self._branch_post_activation
        y, entry = branch(x, training)
        if self.squeeze_excite is not None:
            y = self.squeeze_excite(y)
        total = self._shortcut(x, entry, training) + self.depth_dropout(y, training=training)
        return total if self._settings["pre_activation"] else self.activation(total)

    def _branch_post_activation(self, x: tf.Tensor, training: bool | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the branch, each convolution before its normalisation, and what a changed shortcut is made of."""
        y = x
        for number in range(1, self._length + 1):
            y = _normalized(getattr(self, f"norm_{number}"), self._convolved(number, y), training)
            y = self.activation(y) if number < self._length else y
        return y, x

    def _branch_pre_activation(self, x: tf.Tensor, training: bool | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the branch, each convolution after its normalisation, and what a changed shortcut is made of."""
        y = entry = self.activation(_normalized(self.norm_1, x, training))
        for number in range(1, self._length + 1):
            if number > 1:
                y = self.activation(_normalized(getattr(self, f"norm_{number}"), y, training))
            y = self._convolved(number, y)
        return y, entry

    def _convolved(self, number: int, x: tf.Tensor) -> tf.Tensor:
        return _strided(getattr(self, f"conv_{number}"), x)

    def _shortcut(self, x: tf.Tensor, entry: tf.Tensor, training: bool | None) -> tf.Tensor:
        if not self._changes_shape:
            return x
        if self.projection is not None:
            return _normalized(self.projection_norm, self.projection(entry), training)
        return _padded(entry, self.filters, self.stride)

    def get_config(self) -> dict[str, Any]:
        own = {
            "filters": self.filters,
            "stride": self.stride,
            "activation": keras.activations.serialize(self.activation),
        }
        return {**super().get_config(), **own, **self._settings}


class BasicBlock(_Block):
    """Adds two 3 x 3 convolutions to its input.

    Post-activation: convolution, normalisation, activation; convolution, normalisation; sum; activation.
    Pre-activation: normalisation, activation, convolution, twice; sum. A stack of such blocks needs a normalisation and
    an activation at its end. A convolution with a stride sees one pixel of zeros on each side, so that its outputs lie
    where the pixels of the shortcut lie.

    Args:
      filters: channels of the output.
      stride: of the first convolution, and of the shortcut.
      pre_activation: normalise and activate before the convolutions instead of after them.
      shortcut: used only if the shapes of input and output differ. 'projection': a 1 x 1 convolution with a
        normalisation (option B of He et al., 2015); in pre-activation without one, of the activated input. 'padded':
        every `stride`-th pixel, and channels of zeros (option A).
      normalization, groups: as in `make_normalization`. Convolutions have a bias only with 'none'.
      activation: of `keras.activations`, by name, or a function.
      squeeze_ratio: the `ratio` of a `SqueezeExcite` at the end of the branch; None for none.
      stochastic_depth: probability with which an example skips the branch in training.
      zero_last: the branch is 0 at first: the scale of its last normalisation, or the kernel of its last convolution if
        no normalisation follows, begins as zeros.

    Call: x, floating [batch, height, width, channels] -> [batch, ceil(height / stride), ceil(width / stride), filters]
    of the same dtype.

    Raises:
      ValueError: an argument is out of its range, or 'padded' would have to drop channels.
    """

    def _shapes(self) -> list[tuple[int, int, int]]:
        return [(self.filters, 3, self.stride), (self.filters, 3, 1)]


class BottleneckBlock(_Block):
    """Adds a 1 x 1, a 3 x 3 and a 1 x 1 convolution to its input; the first two have fewer channels.

    Args:
      filters: channels of the output.
      stride: of the 3 x 3 convolution, and of the shortcut; He et al. stride the first convolution, and drop 3 of 4
        pixels unseen.
      expansion: the inner convolutions have filters / expansion channels.
      kwargs: as in `BasicBlock`.

    Call: x, floating [batch, height, width, channels] -> [batch, ceil(height / stride), ceil(width / stride), filters]
    of the same dtype.

    Raises:
      ValueError: as in `BasicBlock`, or `expansion` does not divide `filters`.
    """

    def __init__(self, filters: int, stride: int = 1, expansion: int = 4, **kwargs: Any) -> None:
        if expansion < 1 or filters % expansion:
            raise ValueError(f"BottleneckBlock: expansion={expansion} is not a divisor of filters={filters}")
        self._expansion = expansion
        super().__init__(filters, stride, **kwargs)

    def _shapes(self) -> list[tuple[int, int, int]]:
        inner = self.filters // self._expansion
        return [(inner, 1, 1), (inner, 3, self.stride), (self.filters, 1, 1)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "expansion": self._expansion}


def _normalized(norm: keras.layers.Layer | None, x: tf.Tensor, training: bool | None) -> tf.Tensor:
    """Returns x normalised, in the dtype of x; x itself without a normalisation."""
    if norm is None:
        return x
    mode = {"training": training} if isinstance(norm, keras.layers.BatchNormalization) else {}
    return tf.cast(norm(x, **mode), x.dtype)


def _strided(conv: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """Returns a convolution whose window is centred on the first pixel and on every `stride`-th from there."""
    margin = conv.kernel_size[0] // 2
    if margin and conv.strides[0] > 1:  # 'same' of TensorFlow would centre the windows one pixel further
        x = tf.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
    return conv(x)


def _padded(x: tf.Tensor, filters: int, stride: int) -> tf.Tensor:
    """Returns every `stride`-th pixel with channels of zeros at the end; such a pooling is faster than a slice."""
    if stride > 1:
        x = tf.nn.avg_pool2d(x, 1, stride, "VALID")
    return tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, filters - x.shape[-1]]])
