"""Every private name of TensorFlow and tf_keras that the framework uses, each in a function of its own.

    compat.flatten_layers(model)        # instead of model._flatten_layers()

A release may move a private name without notice. `tests/compat/` calls each function here, and fails if another
file of `framework/` uses a private name: an upgrade changes this file alone.
"""

import contextlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

import tensorflow as tf
import tf_keras as keras
from tensorflow.python.framework import config as tf_config
from tensorflow.python.framework import ops as tf_ops
from tensorflow.python.ops import handle_data_util, lookup_ops
from tf_keras.src import backend
from tf_keras.src.engine import base_layer
from tf_keras.src.engine.functional import Functional
from tf_keras.src.layers.rnn.dropout_rnn_cell_mixin import DropoutRNNCellMixin
from tf_keras.src.mixed_precision import autocast_variable

# Traces


def is_deterministic() -> bool:
    """Returns whether this process has deterministic ops; TensorFlow publishes only how they are enabled."""
    return tf_config.is_op_determinism_enabled()


def handle_shape(handle: tf.Tensor) -> tf.TensorShape:
    """Returns the shape of the variable that a resource handle of a trace points to, as far as the trace knows it."""
    data = handle_data_util.get_resource_handle_data(handle)
    return tf.TensorShape(data.shape_and_type[0].shape if data is not None and data.is_set else None)


def without_trace_warning(function: Any) -> Any:
    """Returns a tf.function as it is, of whose traces TensorFlow does not warn: callers count them."""
    function._omit_frequent_tracing_warning = True
    return function


def function_graph(graph: Any, name: str) -> Any:
    """Returns the graph of the function `name` that `graph` calls; None if the function has no graph to read.

    Functions that were imported from a definition, and those of TensorFlow 1, have none.
    """
    return getattr(graph._get_function(name), "graph", None)


def function_graphs(graph: Any) -> list[Any]:
    """Returns the graphs of all functions that `graph` knows."""
    return [function.graph for function in graph._functions.values() if hasattr(function, "graph")]


def user_frames(operation: Any) -> Sequence[Any]:
    """Returns the stack frames that made an operation, outermost first; none if its graph was imported."""
    try:
        return list(operation.traceback.get_user_frames())
    except AttributeError:
        return []


def is_scratch(graph: Any) -> bool:
    """Returns whether Keras traces `graph` only to learn shapes, and never runs it."""
    return graph.name.endswith("_scratch_graph")


def is_loop_body(graph: Any) -> bool:
    """Returns whether `graph` is the body of a `tf.while_loop`."""
    return type(graph).__name__ == "WhileBodyFuncGraph"


# Gradients

# (op, upstream) -> the gradient by each input
GradientOf = Callable[[Any, tf.Tensor], Sequence[tf.Tensor]]


@contextlib.contextmanager
def gradient_of(kind: str, make: Callable[[GradientOf], GradientOf]) -> Iterator[None]:
    """While open, gives ops of a kind another gradient, which `make` makes of that of TensorFlow.

    TensorFlow publishes only how a kind without a gradient gets one.
    """
    entries = tf_ops.gradient_registry._registry
    before = entries[kind]
    entries[kind] = {**before, "type": make(before["type"])}
    try:
        yield
    finally:
        entries[kind] = before


# Lookup tables

StaticTable = lookup_ops.InitializableLookupTableBase  # filled once; of a vocabulary and of StringLookup too
LookupTable = lookup_ops.LookupInterface


def table_handle(table: Any) -> Any:
    """Returns the resource handle of a lookup table, without making one."""
    return getattr(table, "_resource_handle_value", None)


def table_name(table: Any) -> str:
    """Returns the name that a lookup table was given."""
    return getattr(table, "_name", "table")


def table_file(table: Any) -> Any:
    """Returns the file that a lookup table is read from, str or tensor; None if it is filled otherwise."""
    return getattr(getattr(table, "_initializer", None), "_filename_arg", None)


# Objects and names


def untracked(module: tf.Module, value: Any) -> Any:
    """Returns `value` such that `module` can hold it as an attribute without tracking the variables in it."""
    return module._no_dependency(value)


def given_names() -> set[str]:
    """Returns the names of layers that Keras was given, and did not make up, in this process."""
    return backend.OBSERVED_NAMES


def wrap_set_name(wrap: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
    """Replaces the method by which Keras sets the name of a new layer, fn(layer, name, …), by `wrap` of it."""
    for kind in (keras.layers.Layer, Functional):
        kind._init_set_name = wrap(kind._init_set_name)


def set_name(layer: keras.layers.Layer, name: str) -> None:
    """Renames a layer."""
    layer._name = name


def constructor_arguments(layer: keras.layers.Layer) -> Mapping[str, Any] | None:
    """Returns what a layer's constructor was called with; None if Keras did not record it."""
    return getattr(getattr(layer, "_auto_config", None), "config", None)


def is_numbered(name: str) -> bool:
    """Returns whether `name` is a number by which Keras tracks layers of a Sequential or functional model."""
    return re.fullmatch(r"layer(_with_weights)?-\d+", name) is not None


# Layers


def flatten_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a layer and all layers inside it, in the order in which Keras sums their losses."""
    return list(model._flatten_layers())


def set_dtype_policy(layer: keras.layers.Layer, policy: Any) -> None:
    """Changes the dtype policy of a layer that exists."""
    layer._set_dtype_policy(policy)


def full_value(variable: tf.Variable) -> tf.Tensor:
    """Returns the value of a layer's variable in its own dtype, where Keras would cast it to that of the layer."""
    with autocast_variable.enable_auto_cast_variables(None):
        return variable.read_value()


def copy_mask(source: Any, tensor: Any) -> Any:
    """Returns `tensor`, with the mask that Keras attached to `source`, if there is one."""
    mask = getattr(source, "_keras_mask", None)
    if mask is not None:
        tensor._keras_mask = mask
    return tensor


def call_losses(layer: keras.layers.Layer) -> list[Any]:
    """Returns the losses that eager calls of a layer, or calls in a trace, have added to it."""
    return layer._eager_losses


def symbolic_losses(layer: keras.layers.Layer) -> list[Any]:
    """Returns the losses that were added to a layer while a functional model was built."""
    return layer._losses


def callable_losses(layer: keras.layers.Layer) -> list[Callable[[], Any]]:
    """Returns the list, Keras' own, of the functions whose values a layer adds to the loss, such as regularizers."""
    return layer._callable_losses


def replace_activity(layer: keras.layers.Layer, method: Callable[[Any, Any, Any], None]) -> None:
    """Makes Keras call method(layer, inputs, outputs) where it would add the activity regularization of `layer`."""
    layer.__dict__["_handle_activity_regularization"] = MethodType(method, layer)  # past Keras' __setattr__


def add_activity(layer: keras.layers.Layer, inputs: Any, outputs: Any) -> None:
    """Adds the activity regularization of `layer`, as Keras does."""
    type(layer)._handle_activity_regularization(layer, inputs, outputs)


@contextlib.contextmanager
def seeded_initializers(seed: int) -> Iterator[None]:
    """While open, initializers of Keras that were given no seed draw from `seed`, whatever the process drew before."""
    before = getattr(backend._SEED_GENERATOR, "generator", None)
    backend._SEED_GENERATOR.generator = random.Random(seed)
    try:
        yield
    finally:
        backend._SEED_GENERATOR.generator = before


# Layers that draw random numbers

RandomLayer, RandomGenerator = base_layer.BaseRandomLayer, backend.RandomGenerator


def generator_of(layer: Any) -> Any:
    """Returns what a layer draws random numbers with; None if it has no generator."""
    return getattr(layer, "_random_generator", None)


def set_generator(layer: keras.layers.Layer, generator: Any) -> None:
    """Makes a layer draw with another generator, which Keras, as its own, does not track."""
    layer.__dict__["_random_generator"] = generator


def given_seed(layer: keras.layers.Layer) -> int | None:
    """Returns the seed that a layer with a generator of Keras was given."""
    return generator_of(layer)._seed


def wrap_masks(layer: keras.layers.Layer, make: Callable[[Callable[..., Any]], Any]) -> None:
    """Makes a recurrent layer or cell keep its dropout masks in make(draw), with `clear` and `setdefault(kwargs=)`."""
    if isinstance(layer, DropoutRNNCellMixin):
        layer._dropout_mask_cache = make(layer._create_dropout_mask)
        layer._recurrent_dropout_mask_cache = make(layer._create_recurrent_dropout_mask)


def forget_masks(layer: keras.layers.RNN) -> None:
    """Makes the cell of a recurrent layer draw new masks, as most layers do in each call."""
    layer._maybe_reset_cell_dropout_mask(layer.cell)


def reshape_always(layer: keras.layers.TimeDistributed) -> None:
    """Makes TimeDistributed call its layer once, with all times of all examples, and never in a loop over time."""
    layer._always_use_reshape = True


def brightness_factor(layer: keras.layers.RandomBrightness) -> tuple[float, float]:
    """Returns the range of what RandomBrightness adds, as a fraction of the range of values."""
    return tuple(layer._factor)


def brightness_range(layer: keras.layers.RandomBrightness) -> tuple[float, float]:
    """Returns the smallest and the largest value of a RandomBrightness."""
    return tuple(layer._value_range)


class MultiHeadAttention(keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` whose steps a subclass may override by public names."""

    def projections(self) -> list[keras.layers.EinsumDense]:
        """Returns the layers of query, key, value and output; they exist once the layer is built."""
        return [self._query_dense, self._key_dense, self._value_dense, self._output_dense]

    @property
    def depth(self) -> int:
        """Width of each head's queries and keys."""
        return self._key_dim

    def on_projections(self) -> None:
        """Does nothing; called once, as soon as `projections` exist."""

    def make_dropout(self, rate: float) -> keras.layers.Layer:
        """Returns the layer that drops attention probabilities at `rate`."""
        return self._dropout_layer

    def build_projections(self, query: tf.Tensor, value: tf.Tensor, key: tf.Tensor) -> None:
        """Makes the projections, if they do not exist, for tensors of these shapes."""
        if not self._built_from_signature:
            self._build_from_signature(query=query, value=value, key=key)

    def merged_mask(
        self,
        query: tf.Tensor,
        value: tf.Tensor,
        key: tf.Tensor,
        attention_mask: tf.Tensor | None,
        use_causal_mask: bool,
    ) -> tf.Tensor | None:
        """Returns the mask of a call: that given, that of causality and those that Keras attached to the tensors."""
        return self._compute_attention_mask(query, value, key, attention_mask, use_causal_mask)

    def drop(self, probabilities: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Returns the probabilities after dropout."""
        return self._dropout_layer(probabilities, training=training)

    def masked_softmax(self, scores: tf.Tensor, attention_mask: tf.Tensor | None) -> tf.Tensor:
        """Returns the probabilities of scores [batch, heads, query, key], 0 where the mask is False."""
        return super()._masked_softmax(scores, attention_mask)

    def of_heads(self, attention_mask: tf.Tensor, rank: int) -> tf.Tensor:
        """Returns a mask with dimensions of size 1 for those that scores of this rank have and the mask lacks."""
        for _ in range(rank - attention_mask.shape.rank):
            attention_mask = tf.expand_dims(attention_mask, -2 * len(self._attention_axes) - 1)
        return attention_mask

    def attend(
        self,
        query: tf.Tensor,
        key: tf.Tensor,
        value: tf.Tensor,
        attention_mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (output, probabilities) of projected query, key and value, each [batch, length, heads, depth]."""
        return super()._compute_attention(query, key, value, attention_mask, training)

    def _build_from_signature(self, *args: Any, **kwargs: Any) -> None:
        super()._build_from_signature(*args, **kwargs)
        self.on_projections()

    def _build_attention(self, rank: int) -> None:
        super()._build_attention(rank)
        self._dropout_layer = self.make_dropout(self._dropout)

    def _masked_softmax(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        return self.masked_softmax(*args, **kwargs)

    def _compute_attention(self, *args: Any, **kwargs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return self.attend(*args, **kwargs)


# Optimizers

# Methods of an optimizer that see the gradients of all its variables at once.
GROUP_METHODS = ("apply_gradients", "_clip_gradients", "_internal_apply_gradients")


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the learning rate that an optimizer was given: a variable or a schedule."""
    return getattr(optimizer, "_learning_rate", None)


def set_learning_rate(optimizer: keras.optimizers.Optimizer, rate: Any) -> None:
    """Gives an optimizer under construction its learning rate, a float or a schedule."""
    optimizer._learning_rate = optimizer._build_learning_rate(rate)


def is_built(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether an optimizer has its slots."""
    return getattr(optimizer, "_built", False)


def set_built(optimizer: keras.optimizers.Optimizer) -> None:
    """Tells an optimizer that it has its slots."""
    optimizer._built = True


def slot_index(optimizer: keras.optimizers.Optimizer, variable: tf.Variable) -> int:
    """Returns the place of a variable in each list of slots of an optimizer."""
    return optimizer._index_dict[optimizer._var_key(variable)]


def adam_slots(optimizer: keras.optimizers.Adam, variable: tf.Variable) -> tuple[tf.Variable, tf.Variable]:
    """Returns Adam's averages of a variable's gradients and of their squares."""
    index = slot_index(optimizer, variable)
    return optimizer._momentums[index], optimizer._velocities[index]


def is_decayed(optimizer: keras.optimizers.Optimizer, variable: tf.Variable) -> bool:
    """Returns whether weight decay applies to a variable: `exclude_from_weight_decay` does not name it."""
    return optimizer._use_weight_decay(variable)


def undecayed_names(optimizer: keras.optimizers.Optimizer) -> Sequence[str]:
    """Returns the patterns that `exclude_from_weight_decay` was given."""
    return getattr(optimizer, "_exclude_from_weight_decay_names", ())


def mesh(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the DTensor mesh of an optimizer; None if it has none."""
    return getattr(optimizer, "_mesh", None)
