"""Recurrent layers and cells of Keras, whose dropout masks depend on (seed, layer, step, example) alone.

    layers.LSTM(64, dropout=0.1, recurrent_dropout=0.1, return_sequences=True)       # [batch, time, features] -> …
    keras.layers.Bidirectional(layers.GRU(64, dropout=0.1))
    keras.layers.RNN([layers.LSTMCell(64, dropout=0.1), layers.LSTMCell(64)])
    layers.TimeDistributed(layers.SpatialDropout2D(0.1))

Arguments, calls, weights and numbers are those of the layers of the same name in Keras, and masks span what they span
there. Each gate has one mask for a whole sequence in the cells, in SimpleRNN and ConvLSTM, and in an LSTM or GRU with
`recurrent_dropout` or other activations than the default. An LSTM or GRU with `dropout` alone has one mask for all
gates, which drops each element of the inputs by itself.
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat, rng
from framework.layers import dropout
from framework.layers.draws import KeyedDraws, draw_by_key


class LSTMCell(KeyedDraws, keras.layers.LSTMCell):
    """Takes one step of an LSTM.

    Source: Hochreiter & Schmidhuber, 1997, "Long short-term memory"; the dropout is that of Gal & Ghahramani, 2016,
    "A theoretically grounded application of dropout in recurrent neural networks".

    Call: x, floating [batch, features], and the states [batch, units] twice -> output and states.
    """


class GRUCell(KeyedDraws, keras.layers.GRUCell):
    """Takes one step of a GRU.

    Sources: Cho et al., 2014, "Learning phrase representations using RNN encoder-decoder"; the dropout is that of
    `LSTMCell`.

    Call: x, floating [batch, features], and the state [batch, units] -> output and state.
    """


class SimpleRNNCell(KeyedDraws, keras.layers.SimpleRNNCell):
    """Takes one step of a fully connected network whose output is fed back.

    Call: x, floating [batch, features], and the state [batch, units] -> output and state.
    """


class _WithCell:
    """Makes the cell that Keras makes for a layer draw by its own path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        draw_by_key(self.cell)  # type: ignore[attr-defined]


class _Fused(_WithCell, KeyedDraws):
    """Drops the inputs of all times at once, before the fused kernel is called."""

    def get_dropout_mask_for_cell(self, inputs: tf.Tensor, training: Any, count: int = 1) -> Any:
        """Masks like the inputs; draws need the batch first."""
        if not self.time_major:  # type: ignore[attr-defined]
            return super().get_dropout_mask_for_cell(inputs, training, count)  # type: ignore[misc]
        masks = super().get_dropout_mask_for_cell(tf.transpose(inputs, [1, 0, 2]), training, count)  # type: ignore[misc]
        return None if masks is None else [tf.transpose(mask, [1, 0, 2]) for mask in masks]


class LSTM(_Fused, keras.layers.LSTM):
    """Runs an `LSTMCell` over sequences.

    Call: x, floating [batch, time, features] -> [batch, units], or as `return_sequences` and `return_state` say.
    """


class GRU(_Fused, keras.layers.GRU):
    """Runs a `GRUCell` over sequences.

    Call: x, floating [batch, time, features] -> [batch, units], or as `return_sequences` and `return_state` say.
    """


class SimpleRNN(_WithCell, keras.layers.SimpleRNN):
    """Runs a `SimpleRNNCell` over sequences.

    Call: x, floating [batch, time, features] -> [batch, units], or as `return_sequences` and `return_state` say.
    """


class _Convolutional(_WithCell):
    """Draws new masks for each call, which Keras forgets in its convolutional layers."""

    def call(self, inputs: tf.Tensor, mask: Any = None, training: Any = None, initial_state: Any = None) -> Any:
        compat.forget_masks(self)
        return super().call(inputs, mask=mask, training=training, initial_state=initial_state)  # type: ignore[misc]


class ConvLSTM1D(_Convolutional, keras.layers.ConvLSTM1D):
    """Runs an LSTM whose products are convolutions over sequences of rows.

    Source: Shi et al., 2015, "Convolutional LSTM network: a machine learning approach for precipitation nowcasting".

    Call: x, floating [batch, time, width, channels] -> [batch, new width, filters], or as `return_sequences` says.
    """


class ConvLSTM2D(_Convolutional, keras.layers.ConvLSTM2D):
    """Runs an LSTM whose products are convolutions over sequences of pictures.

    Source: as in `ConvLSTM1D`.

    Call: x, floating [batch, time, height, width, channels] -> [batch, new height, new width, filters], or as
    `return_sequences` says.
    """


class ConvLSTM3D(_Convolutional, keras.layers.ConvLSTM3D):
    """Runs an LSTM whose products are convolutions over sequences of volumes.

    Source: as in `ConvLSTM1D`.

    Call: x, floating [batch, time, depth, height, width, channels] -> the same without time and with new sizes, or as
    `return_sequences` says.
    """


class TimeDistributed(keras.layers.TimeDistributed):
    """Applies a layer to every time of a sequence, with draws of its own for each example and time.

    Keras may call the layer in a loop over time, each turn of which would draw the same.

    Call: x, [batch, time, ...] with a static time -> what the layer makes of each [batch, ...], with time after batch.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        compat.reshape_always(self)

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        time = tf.nest.flatten(inputs)[0].shape[1]
        if time is None:
            raise ValueError(f"TimeDistributed needs a static time, but its input is {inputs.shape}")
        with rng.of_rows(time):  # example after example, time after time
            return super().call(inputs, training=training, mask=mask)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "TimeDistributed":
        """Makes the layer again, its inner layer one of the framework where Keras has another by the same name."""
        kinds = [*vars(dropout).values(), *globals().values()]
        ours = {kind.__name__: kind for kind in kinds if isinstance(kind, type) and issubclass(kind, KeyedDraws)}
        return super().from_config(config, ours | (custom_objects or {}))
