"""Checks for layers, losses and experiments of your own: gradients, compile modes, replicas.

    layer = MyLayer(dtype="float64")
    testing.check_gradients(lambda x: layer(x, training=True), [x], variables=layer)    # x: float64 [batch, features]
    testing.check_compiled(lambda x: layer(x, training=True), [x])

Either returns None or raises AssertionError, which names the worst tensor, its place, the values and the bound. Every
call of the function starts from the same values of its variables and draws the same random words (`rng.scope`). When a
check ends, however it ends, the variables have the values they had before: all that are given, and all that fn reads.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import paths, rng
from framework.compile import Compiled
from framework.config import flatten
from framework.config.overrides import override
from framework.experiment.load import load
from framework.run.build import build

# By dtype: what another order of the same sums may change of a tensor's largest magnitude, and the dtype's eps.
_BOUNDS = {
    "float64": (1e-12, 2.0**-52),
    "float32": (1e-5, 2.0**-23),
    "float16": (4e-3, 2.0**-10),
    "bfloat16": (3e-2, 2.0**-7),
}
_MODE_ROUNDINGS = 16
_DIFFERENCE_ROUNDINGS = 32
_GRADIENT = "gradient by "

_Named = dict[str, Any]  # tensors, arrays or variables by name


def check_gradients(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    variables: Any = (),
    *,
    order: int = 1,
    rtol: float = 1e-6,
    atol: float | None = None,
    step: float = np.finfo(np.float64).eps ** (1 / 3),
    seed: int = 0,
    samples: int = 8,
) -> None:
    """Compares the gradients of the tape with differences of the function, both in float64.

    The outputs are multiplied by fixed random numbers and summed. The sum is differentiated by four-point central
    differences: by every element of a tensor of at most 2 * `samples`; of a larger one by `samples` of its elements and
    along `samples` random directions through all of them.

    Args:
      fn: fn(*inputs) -> float64 tensor, or a nest with at least one. It must be traceable, as in the step.
      inputs: tensors; the floating ones are differentiated and must be float64.
      variables: what else to differentiate by: a layer, model, tf.Module or dict of models (its trainable variables,
        named by path), or a list of variables.
      order: 2 checks the second derivatives too: the gradient of <gradient, random direction> against its differences.
      rtol: bound, relative to the larger of the two values.
      atol: added to the bound; by default the rounding error of the difference (1e-9 where the outputs have norm 1).
      step: of the differences, times max(1, |x|). A kink of fn within two steps of a value spoils the difference there.
      seed: of all that is random.
      samples: see above.

    Raises:
      AssertionError: a gradient is wrong, or fn gave two results for the same inputs, variables and draws.
      TypeError: something that is differentiated, or an output, is floating but not float64.
      ValueError: `order` is not 1 or 2, or there is nothing to differentiate.
    """
    if order not in (1, 2):
        raise ValueError(f"order={order} is not 1 or 2")
    function = _Function(fn, inputs, variables, seed)
    sources = function.floating | _differentiable(variables)
    if not sources:
        raise ValueError("nothing to differentiate: no input is floating and no variable is given")
    with function.state:
        weights = function.random_weights()
        for name, tensor in {**sources, **{f"output {place}": weight for place, weight in weights.items()}}.items():
            if tensor.dtype != tf.float64:
                raise TypeError(
                    f"{name} is {tensor.dtype.name}; differences need float64, e.g. Layer(…, dtype='float64')"
                )
        if not weights:
            raise ValueError("nothing to differentiate: fn returns no floating tensor")
        random = np.random.default_rng(seed)
        directions = {name: tf.constant(_direction(source.shape, random)) for name, source in sources.items()}

        def products(inputs: _Named) -> tf.Tensor:
            return _products(dict(enumerate(function(inputs))), weights)

        def slopes(inputs: _Named) -> tf.Tensor:
            return _products(_gradients(products, inputs, sources), directions)

        _check_differences("gradient", products, function, sources, (rtol, atol, step), random, samples)
        if order == 2:
            _check_differences("second derivative", slopes, function, sources, (rtol, atol, step), random, samples)


def check_compiled(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    variables: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    bitwise: bool = False,
) -> None:
    """Compares eager execution with tf.function and with XLA: outputs, gradients, and variables after the call.

    Gradients are those of the outputs times fixed random numbers, by the floating inputs and the trainable variables.
    Whatever is not floating must be equal.

    Args:
      fn: fn(*inputs) -> tensor, or a nest of tensors.
      inputs: tensors.
      variables: as in `check_gradients`; by default all trainable variables that fn reads.
      rtol: bound, relative to the largest magnitude of the tensor; by default 1e-12 for float64, 1e-5 for float32, 4e-3
        for float16, 3e-2 for bfloat16.
      atol: added to the bound; by default 0, but for gradients 16 roundings of the largest of them all, since the
        gradient of a bias before a normalisation is a sum that cancels.
      seed: of all that is random.
      bitwise: floating tensors must have the same bits too.

    Raises:
      AssertionError: two modes disagree.
    """
    function = _Function(fn, inputs, () if variables is None else variables, seed)
    read = {name: variable for name, variable in function.state.variables.items() if variable.trainable}
    sources = function.floating | (_floating(read) if variables is None else _differentiable(variables))
    with function.state:
        weights = function.random_weights()

        def run(inputs: _Named) -> _Named:
            outputs: _Named = {}

            def products(inputs: _Named) -> tf.Tensor:
                outputs.update({f"output {place}": output for place, output in enumerate(function(inputs))})
                return _products(dict(enumerate(outputs.values())), weights)

            gradients = _gradients(products, inputs, sources)
            return outputs | {f"{_GRADIENT}{name}": gradient for name, gradient in gradients.items()}

        results: dict[str, _Named] = {}
        for mode in ("eager", "graph", "xla"):
            function.state.restore()
            found = Compiled(run, mode, "check")(function.inputs)
            after = {f"{name} after the call": variable for name, variable in function.state.variables.items()}
            results[mode] = {name: tensor.numpy() for name, tensor in (found | after).items()}
    for mode in ("graph", "xla"):
        _compare(("eager", mode), results["eager"], results[mode], rtol, atol, bitwise)


def check_replicas(
    name: str,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    replicas: int = 2,
    steps: int = 20,
    rtol: float | None = None,
) -> None:
    """Trains an experiment on one device and on virtual replicas, and compares weights and losses.

    Args:
      name: as for `framework.build`.
      overrides: of both runs. `{"train.precision": "float64"}` tells a wrong step from rounding.
      replicas: virtual CPU devices; TensorFlow must not have started in this process, or with as many.
      steps: of each.
      rtol: bound of the relative L2 difference of each variable, and of the loss of each step; by default 1e-11 in
        float64, 1e-4 in float32, 0.05 in half precision.

    Raises:
      AssertionError: they disagree; names the worst variable.
    """
    settings = override(load(name).get_config(), overrides)
    bound = rtol or {"float64": 1e-11, "float32": 1e-4}.get(settings.train.precision, 0.05)
    typed = {key: value for key, value in flatten(settings).items() if not key.startswith("runtime.")}
    typed["train.block_steps"] = steps
    many = build(name, typed | {"runtime.strategy": "mirrored", "runtime.virtual_devices": replicas})
    one = build(name, typed)
    rows = [run.train_block(steps) for run in (one, many)]
    found = {path: variable.numpy() for path, variable in paths.trainable(many.model).items()}
    distances = {}
    for path, variable in paths.trainable(one.model).items():
        wanted = variable.numpy().astype(np.float64)
        distances[path] = float(np.linalg.norm(found[path] - wanted)) / max(float(np.linalg.norm(wanted)), 1e-6)
    worst = max(distances, key=lambda path: distances[path])
    if not distances[worst] <= bound:
        raise AssertionError(
            f"{replicas} replicas and one device disagree after {steps} steps: relative L2 {distances[worst]:.3g} of"
            f" '{worst}', the bound is {bound:g}"
        )
    for step in range(steps):
        left, right = (block.row(step)["loss"] for block in rows)
        if not abs(left - right) <= bound * max(abs(left), abs(right)):
            raise AssertionError(f"step {step + 1}: the loss is {left:.9g} on one device, {right:.9g} on {replicas}")


class _State:
    """The variables that a check may change. As a context it puts them back."""

    def __init__(self, variables: _Named) -> None:
        self.variables = variables
        self._values = {name: variable.numpy() for name, variable in variables.items()}

    def restore(self) -> None:
        for name, variable in self.variables.items():
            variable.assign(self._values[name])

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.restore()


class _Function:
    """`fn` with its draws fixed, and the state that it reads and assigns."""

    def __init__(self, fn: Callable[..., Any], inputs: Sequence[Any], variables: Any, seed: int) -> None:
        if not isinstance(inputs, list | tuple):
            raise TypeError(f"inputs is of type {type(inputs).__name__}; write a list of tensors, [x] for a single one")
        self._fn, self._key, self._seed = fn, rng.key(seed), seed
        self.inputs = {f"inputs[{place}]": tf.convert_to_tensor(x) for place, x in enumerate(inputs)}
        self.floating = _floating(self.inputs)
        # Traced before anything is run: layers build themselves, and nothing is assigned yet.
        graph = tf.function(lambda: self(self.inputs), autograph=False).get_concrete_function().graph
        known = _tracked(variables)
        ids = {id(variable) for variable in known.values()}
        for variable in sorted(graph.variables, key=lambda variable: variable.name):
            if id(variable) not in ids:
                name = variable.name.partition(":")[0]
                known[name if name not in known else f"{name} ({len(known)})"] = variable
        self.state = _State(known)

    def __call__(self, inputs: _Named) -> list[tf.Tensor]:
        """The outputs in the order of tf.nest. `inputs` may leave out what is not to change."""
        with rng.scope(self._key, 0):
            outputs = self._fn(*(self.inputs | inputs).values())
        return [tf.convert_to_tensor(output) for output in tf.nest.flatten(outputs) if output is not None]

    def random_weights(self) -> dict[int, tf.Tensor]:
        """Normal numbers like each floating output, by its place."""
        random = np.random.default_rng(self._seed)
        self.state.restore()
        outputs = _floating(dict(enumerate(self(self.inputs))))
        return {place: tf.cast(random.normal(size=output.shape), output.dtype) for place, output in outputs.items()}


def _check_differences(
    what: str,
    products: Callable[[_Named], tf.Tensor],
    function: _Function,
    sources: _Named,
    bounds: tuple[float, float | None, float],
    random: np.random.Generator,
    samples: int,
) -> None:
    """Raises AssertionError unless the derivatives of sum(products) agree with its differences; names the worst."""
    rtol, atol, step = bounds
    function.state.restore()
    values = {name: source.numpy() for name, source in sources.items()}

    def at(name: str, value: np.ndarray) -> np.ndarray:
        function.state.restore()
        if name in function.inputs:
            return products(function.floating | {name: tf.constant(value)}).numpy()
        sources[name].assign(value)
        return products(function.floating).numpy()

    start = next(iter(sources))
    first, second = at(start, values[start]), at(start, values[start])
    rounding = _DIFFERENCE_ROUNDINGS * np.finfo(np.float64).eps * float(np.linalg.norm(first))
    if not np.isfinite(rounding):
        raise AssertionError(f"{what}: not finite before anything is changed; give inputs where fn is finite")
    if not np.linalg.norm(first - second) <= rounding:
        raise AssertionError(
            f"fn is not a function of its inputs, variables and draws: two calls differ by up to"
            f" {np.abs(first - second).max():.3g}; does it count in Python, or draw without framework.rng?"
        )
    function.state.restore()
    gradients = _gradients(products, function.floating, sources)
    worst, message = 1.0, ""
    for name, value in values.items():
        gradient = gradients[name].numpy() if name in gradients else np.zeros_like(value)
        for place, along in _probes(value.shape, random, samples):
            width = step * max(1.0, abs(float(np.vdot(value, along))))
            near, far = (at(name, value + n * width * along) - at(name, value - n * width * along) for n in (1, 2))
            short, long = float(near.sum()) / (2 * width), float(far.sum()) / (4 * width)
            difference, tape = (4 * short - long) / 3, float(np.vdot(gradient, along))
            bound = rtol * max(abs(difference), abs(tape)) + (rounding / width if atol is None else atol)
            apart = abs(difference - tape)
            excess = apart / max(bound, 1e-300) if np.isfinite(apart) else np.inf
            if excess > worst:
                worst = excess
                message = f"{what} by {name}{place}: {tape:.12g} by the tape, {difference:.12g} by differences;"
                message += f" they differ by {apart:.3g}, the bound is {bound:.3g}"
                message += "" if name in gradients else ". The tape gave None: it found no way back from the outputs"
                if not abs(short - long) <= max(bound, 1e-3 * abs(short)):
                    message += f". Steps of {width:.0e} and twice that disagree: fn has a kink or rounds to float32"
    if message:
        raise AssertionError(message)


def _probes(shape: Any, random: np.random.Generator, samples: int) -> list[tuple[str, np.ndarray]]:
    """(place, direction): each element of a small tensor; some elements of a larger one and some unit vectors."""
    size = int(np.prod(shape))
    every = size <= 2 * samples
    chosen = range(size) if every else sorted(random.choice(size, samples, replace=False).tolist())
    probes = []
    for flat in chosen:
        place = [int(i) for i in np.unravel_index(flat, shape)]
        probes.append((str(place) if place else "", (np.arange(size) == flat).astype(np.float64).reshape(shape)))
    return probes + [(f" along direction {i}", _direction(shape, random)) for i in range(0 if every else samples)]


def _compare(
    modes: tuple[str, str], one: _Named, other: _Named, rtol: float | None, atol: float | None, bitwise: bool
) -> None:
    """Raises AssertionError unless two modes gave the same tensors; names the one that is furthest beyond its bound."""
    pair = f"{modes[0]} and {modes[1]} disagree"
    if one.keys() != other.keys():
        names = ", ".join(sorted(one.keys() ^ other.keys()))
        raise AssertionError(f"{pair}: only {modes[0] if one.keys() > other.keys() else modes[1]} has {names}")
    largest = max((_magnitude(x) for name, x in one.items() if name.startswith(_GRADIENT)), default=0.0)
    worst, message = 1.0, ""
    for name, x in one.items():
        y, bound = other[name], 0.0
        if x.shape != y.shape or x.dtype != y.dtype:
            raise AssertionError(f"{pair}: {name} is {x.dtype.name}{[*x.shape]} and {y.dtype.name}{[*y.shape]}")
        if x.dtype.name in _BOUNDS and not bitwise:
            relative, eps = _BOUNDS[x.dtype.name]
            cancelling = _MODE_ROUNDINGS * eps * largest if name.startswith(_GRADIENT) else 0.0
            bound = (relative if rtol is None else rtol) * _magnitude(x) + (cancelling if atol is None else atol)
        bits = f"u{x.itemsize}"
        same = x.view(bits) == y.view(bits) if bitwise else (x == y) | ((x != x) & (y != y))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.nan_to_num(np.abs(x.astype(np.float64) - y.astype(np.float64)), nan=np.inf)
            excess = np.where(same, 0.0, difference / max(bound, 1e-300) if bound else np.inf)
        place = np.unravel_index(int(np.argmax(excess)), x.shape) if x.size else ()
        if x.size and excess[place] > worst:
            worst = float(excess[place])
            where = str([int(i) for i in place]) if place else ""
            limit = "equal bits" if bitwise else f"{bound:.3g}"
            message = f"{pair}: {name}{where} is {x[place]} and {y[place]}, a difference of {difference[place]:.3g};"
            message += f" the bound is {limit}, {int((excess > 1).sum())} of {x.size} elements are beyond it"
    if message:
        raise AssertionError(message)


def _gradients(products: Callable[[_Named], tf.Tensor], inputs: _Named, sources: _Named) -> dict[str, tf.Tensor]:
    """Gradients of sum(products(inputs)) by inputs and variables; without those that the tape does not find."""
    watched = {name: inputs.get(name, source) for name, source in sources.items()}
    with tf.GradientTape() as tape:
        tape.watch(list(watched.values()))
        total = products(inputs)
    found = tape.gradient(total, watched)
    return {name: tf.convert_to_tensor(gradient) for name, gradient in found.items() if gradient is not None}


def _products(tensors: dict[Any, tf.Tensor], weights: dict[Any, tf.Tensor]) -> tf.Tensor:
    """[n]: all elements times their weights, in float32 at least; what has no weight is left out."""
    dtype = tf.float64 if any(weight.dtype == tf.float64 for weight in weights.values()) else tf.float32
    parts = [tf.reshape(tensors[key] * weight, [-1]) for key, weight in weights.items() if key in tensors]
    return tf.concat([tf.cast(part, dtype) for part in parts] or [tf.zeros([0], dtype)], axis=0)


def _direction(shape: Any, random: np.random.Generator) -> np.ndarray:
    vector = random.normal(size=shape)
    return np.asarray(vector / max(np.linalg.norm(vector), 1e-300))


def _magnitude(x: np.ndarray) -> float:
    """The largest finite magnitude; 0 without one."""
    wide = np.abs(x.astype(np.float64))
    return float(np.max(wide, where=np.isfinite(wide), initial=0.0))


def _floating(named: dict[Any, Any]) -> dict[Any, Any]:
    return {name: x for name, x in named.items() if x.dtype.is_floating}


def _tracked(variables: Any) -> _Named:
    """All variables by path; those of a list by place and name."""
    if isinstance(variables, list | tuple):
        return {f"variables[{place}] {v.name.partition(':')[0]}": v for place, v in enumerate(variables)}
    return dict(paths.variables(variables))


def _differentiable(variables: Any) -> _Named:
    """What a caller wants differentiated: the trainable variables of a layer, all that are floating of a list."""
    return _floating(_tracked(variables) if isinstance(variables, list | tuple) else paths.trainable(variables))
