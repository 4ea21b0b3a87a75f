"""The checks of `check_layer` on what a layer computes: draws, training, precision, compile modes, gradients, replicas.

Each is a function of an `Examined` and returns None or raises AssertionError.
"""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from framework import paths, precision, rng
from framework.compile import jit
from framework.config.keys import KEYS
from framework.distribute.replicas import Replicas
from framework.step.penalty_checks import unlike_mean
from framework.testing.attributes import Attributes, difference, kept, symbolic
from framework.testing.built_layer import PRODUCTS, BuiltLayer, Subject, Trace, joined, shard
from framework.testing.comparison import GRADIENT, compare
from framework.testing.function import Named, direction, floating
from framework.testing.gradients import Point, Probing, check_differences

_DIRECTIONS = 3
_KEEP = "Checkpoints and compiled steps see variables alone: keep what calls need in a tf.Variable, made in build"
_CLOSE_LOSS = 1e-6  # of what a layer adds to the loss, relative
_HALF_BOUNDS = {"float16": 0.02, "bfloat16": 0.1}  # of the largest magnitude in float32


class Examined:
    """A layer, and what its checks share: the layer in float64, its results in eager execution, one trace."""

    def __init__(self, subject: Subject, training_differs: bool, thorough: bool) -> None:
        self.subject = subject
        self.training_differs = training_differs
        self.thorough = thorough
        self.layer = subject.build()
        self.examples = min(x.shape[0] for x in self.layer.inputs.values())

    @functools.cached_property
    def upstream(self) -> dict[int, tf.Tensor]:
        return self.layer.upstream()

    @functools.cached_property
    def trace(self) -> Trace:
        return Trace(self.layer, self.upstream)

    @functools.cached_property
    def eager(self) -> dict[str, np.ndarray]:
        return self.layer.run(lambda: self.layer.differentiate(self.layer.inputs, self.upstream))


def check_attributes(examined: Examined) -> None:
    """Calls change no attribute but variables, and a trace leaves none of its tensors behind."""
    subject, layer = examined.subject, examined.layer
    key = rng.key(subject.seed)

    def calls() -> Attributes:
        inputs = {name: tf.identity(x) for name, x in layer.inputs.items()}
        with rng.scope(key, 0):  # that inference draws nothing is the check of training
            layer.infer(inputs)
        layer.train(inputs)
        return kept(layer.layer)

    with layer.state:
        if changed := difference(calls(), calls()):
            raise AssertionError(f"{changed} after the same call again. {_KEEP}")
    with precision.scope(layer.dtype), rng.scope(key, 0):
        fresh = subject.make()
        call = tf.function(lambda inputs: subject.call(fresh, inputs, True), autograph=False)
        call.get_concrete_function([*layer.inputs.values()])
    if leaked := symbolic(kept(fresh)):
        raise AssertionError(f"attribute '{leaked[0]}' is a tensor of a graph, left there by the trace. {_KEEP}")


def check_draws(examined: Examined) -> None:
    """The draws of training are those of the step, and of nothing else."""
    layer = examined.layer
    once, again = _training(layer), _training(layer)
    compare(("one call in training", "the same call again"), once, again, bitwise=True)
    other = _training(layer, step=1)
    with layer.state:
        draws = layer.draws()
    if draws and all(np.array_equal(other[name], x) for name, x in once.items()):
        raise AssertionError("draws by framework.rng, but the outputs of step 0 and step 1 are equal")


def check_training(examined: Examined) -> None:
    """Training and inference differ if and only if the caller says so, and inference changes no variable."""
    layer = examined.layer
    before = {f"'{path}' after the call": v.numpy() for path, v in layer.state.variables.items()}
    inference, again = _inference(layer), _inference(layer)
    compare(("one call in inference", "the same call again"), inference, again, bitwise=True)
    outputs = [name for name in inference if name not in before]
    after = {name: inference[name] for name in before}
    compare(("variables before inference", "those after it"), before, after, bitwise=True)
    training = _training(layer)
    if not examined.training_differs:
        compare(("training", "inference"), training, inference, rtol=0, atol=0)
    elif all(np.array_equal(training[name], inference[name]) for name in outputs):
        raise AssertionError("training_differs=True, but the outputs in training and in inference are equal")


def check_precision(examined: Examined) -> None:
    """Outputs are in the precision and finite, variables in the full precision; half precision is near float32."""
    _check_dtypes(examined.layer, examined.eager)
    full = examined.subject.build("float32")
    references = _training(full)
    _check_dtypes(full, references)
    for dtype, bound in _HALF_BOUNDS.items():
        half = examined.subject.build(dtype, like=full)
        results = half.run(functools.partial(half.differentiate, half.inputs, half.upstream()))
        _check_dtypes(half, results)
        _check_dtypes(half, _inference(half))
        wide = {name: results[name].astype(x.dtype) for name, x in references.items()}
        compare(("float32", dtype), references, wide, rtol=bound, atol=0)


def check_graph(examined: Examined) -> None:
    """A graph of a free batch dimension computes what eager execution does, also for fewer examples."""
    layer, trace = examined.layer, examined.trace
    compare(("eager", "graph"), examined.eager, layer.run(lambda: trace(layer.inputs)))
    fewer = [shard(named, 0, -1) for named in (layer.inputs, examined.upstream)]
    eager = layer.run(lambda: layer.differentiate(*fewer))
    graph = layer.run(lambda: trace(layer.inputs, 0, -1))
    compare(("eager", f"graph of {examined.examples - 1} examples"), eager, graph)


def check_gradients(examined: Examined) -> None:
    """The gradients by inputs and weights are those of differences, in float64, and each weight has one."""
    layer, trace = examined.layer, examined.trace
    sources = layer.sources(layer.inputs)
    if not sources or not examined.upstream:
        return

    def gradients() -> Named:
        results = trace(layer.inputs)
        return {name.removeprefix(GRADIENT): x for name, x in results.items() if name.startswith(GRADIENT)}

    random = np.random.default_rng(examined.subject.seed)
    probes = _every_element if examined.thorough else functools.partial(_directions, random=random)
    point = Point(layer.state, floating(layer.inputs), sources)

    def products(inputs: Named) -> tf.Tensor:
        return trace(layer.inputs | inputs)[PRODUCTS]

    with layer.state:
        check_differences("gradient", products, gradients, point, Probing(probes))
    for path in floating(paths.trainable(layer.layer)):
        if not np.any(examined.eager.get(f"{GRADIENT}{path}", 0)):  # none at all if no op reads the weight
            raise AssertionError(
                f"the trained weight '{path}' has a gradient of 0 in every element: no output depends on it. Use it in"
                " call, or make it with trainable=False"
            )


def check_xla(examined: Examined) -> None:
    """XLA computes what eager execution does; thoroughly, so does a graph, in every precision and in inference."""
    layer, upstream = examined.layer, examined.upstream
    function: Any = jit(layer.differentiate)
    compiled = function.get_concrete_function(layer.inputs, upstream)
    compare(("eager", "xla"), examined.eager, layer.run(lambda: compiled(layer.inputs, upstream)))
    if examined.thorough:
        for dtype in KEYS["train.precision"].choices:
            _check_modes(examined.subject.build(dtype))


def _check_modes(layer: BuiltLayer) -> None:
    """Compares eager execution, a graph and XLA, in training with gradients and in inference."""
    upstream = layer.upstream()

    def training() -> Named:
        return layer.differentiate(layer.inputs, upstream)

    def inference() -> Named:
        return _named(layer.infer(layer.inputs))

    for kind, fn in (("training", training), ("inference", inference)):
        eager = layer.run(fn)
        functions: dict[str, Any] = {"graph": tf.function(fn, autograph=False), "xla": jit(fn)}
        for mode, function in functions.items():
            results = layer.run(function.get_concrete_function())
            compare((f"eager in {kind} in {layer.dtype}", mode), eager, results, dtype=layer.dtype)


def check_replicas(examined: Examined) -> None:
    """Two replicas, which have half of the examples each, compute what one device does."""
    layer, trace, half = examined.layer, examined.trace, examined.examples // 2
    _check_batch_first(examined)
    _check_added_losses(examined)
    places = ((0, half), (half, None))
    halves = [layer.run(functools.partial(trace, layer.inputs, *place)) for place in places]
    _compare_joined("two halves of the batch", examined.eager, halves)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(devices) < 2:
        return
    strategy = tf.distribute.MirroredStrategy(devices[:2], tf.distribute.ReductionToOneDevice())
    replicas = Replicas(strategy)
    with replicas.scope():
        mirrored = examined.subject.build(like=layer)

    def on_replica(index: int) -> Named:
        begin, end = places[index]
        inputs, upstream = (shard(named, begin, end) for named in (mirrored.inputs, examined.upstream))
        return mirrored.differentiate(inputs, upstream, begin)

    with mirrored.state:
        results = tf.function(lambda: replicas.run(on_replica), autograph=False)()
        of_each = [
            {name: strategy.experimental_local_results(x)[index].numpy() for name, x in results.items()}
            for index in range(len(places))
        ]
        for path, variable in mirrored.state.variables.items():
            for one, copy in zip(of_each, paths.copies(variable), strict=True):
                one[f"'{path}' after the call"] = copy.numpy()
    _compare_joined("2 replicas", examined.eager, of_each)


def _compare_joined(what: str, whole: dict[str, np.ndarray], shards: list[dict[str, np.ndarray]]) -> None:
    """Compares one device with its shards, and the variables of the shards with each other."""
    results = joined(shards)
    compare(("one device", what), {name: x for name, x in whole.items() if name in results}, results)
    after = [{name: x for name, x in one.items() if name.endswith("after the call")} for one in (whole, *shards)]
    for one in after[1:]:
        compare(("one device", what), after[0], one)


def _check_batch_first(examined: Examined) -> None:
    for name, x in examined.eager.items():
        if name.startswith("output ") and x.shape[:1] != (examined.examples,):
            raise AssertionError(f"{name} has shape {[*x.shape]} for {examined.examples} examples: put the batch first")


def _check_added_losses(examined: Examined) -> None:
    """What the layer adds to the loss must be a mean over the examples, or a number for each of them."""
    layer, half = examined.layer, examined.examples // 2

    def added(begin: int, end: int) -> Named:
        layer.train(shard(layer.inputs, begin, end), first_example=begin)
        return {"added": tf.add_n([tf.zeros([], tf.float64), *map(_mean, getattr(layer.layer, "losses", ()))])}

    places = ((0, 2 * half), (0, half), (half, 2 * half))
    whole, *halves = (float(layer.run(functools.partial(added, *place))["added"]) for place in places)
    if abs(whole - sum(halves) / 2) > _CLOSE_LOSS * abs(whole) and (problem := unlike_mean(whole, halves, _CLOSE_LOSS)):
        raise AssertionError(problem)


def _mean(loss: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.reduce_mean(loss), tf.float64)


def _check_dtypes(layer: BuiltLayer, results: dict[str, np.ndarray]) -> None:
    """Raises AssertionError unless results are finite and outputs and variables in their dtypes."""
    full = precision.full(layer.dtype)
    wanted = layer.dtype if layer.dtype == full else layer.layer.compute_dtype
    for path, variable in layer.state.variables.items():
        if variable.dtype.is_floating and variable.dtype.name != full:
            raise AssertionError(f"variable '{path}' is {variable.dtype.name} in precision {layer.dtype}, not {full}")
    for name, x in results.items():
        dtype = tf.as_dtype(x.dtype)
        if dtype.is_floating and name.startswith("output") and dtype.name != wanted:
            raise AssertionError(f"{name} is {dtype.name} in precision {layer.dtype}, not {wanted}")
        if dtype.is_floating and not np.isfinite(x.astype(np.float64)).all():
            place = [int(i) for i in np.argwhere(~np.isfinite(x.astype(np.float64)))[0]]
            raise AssertionError(f"{name}{place} is {x[tuple(place)]} in precision {layer.dtype}, not finite")


def _training(layer: BuiltLayer, step: int = 0) -> dict[str, np.ndarray]:
    """Returns the outputs in training, and the variables after the call."""
    return layer.run(lambda: _named(layer.train(layer.inputs, step)))


def _inference(layer: BuiltLayer) -> dict[str, np.ndarray]:
    """Returns the outputs in inference, and the variables after the call."""
    return layer.run(lambda: _named(layer.infer(layer.inputs)))


def _named(outputs: list[tf.Tensor]) -> Named:
    return {f"output {place}": output for place, output in enumerate(outputs)}


def _every_element(shape: Any) -> list[tuple[str, np.ndarray]]:
    """Returns the place and the one-hot direction of each element."""
    size = int(np.prod(shape))
    probes = []
    for flat in range(size):
        place = [int(i) for i in np.unravel_index(flat, shape)]
        probes.append((str(place) if place else "", (np.arange(size) == flat).astype(np.float64).reshape(shape)))
    return probes


def _directions(shape: Any, random: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    return [(f" along direction {i}", direction(shape, random)) for i in range(_DIRECTIONS)]
