"""The replicas that share a step, on one device or many, on top of `tf.distribute`.

    replicas = make_replicas(config)                    # Replicas() is one device, without a strategy
    with replicas.scope():
        model = make_model(config)
    batch = replicas.run(lambda index: parts[index].take(plans[index], i))     # one part on each
    found = replicas.all_reduce_sum(local, batch, mode="xla")      # the sum, the same number everywhere

A step is written once, as for a single device: it runs outside of the replicas, where an assignment reaches the copy of
a variable on each of them. What is heavy is sent to them by `run` and `total`. Measured: XLA compiles what is inside a
replica and has no collective in it; nothing around `strategy.run` and nothing that assigns to a mirrored variable.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from framework import rng
from framework.compile import jit
from framework.distribute.strategies import make_strategy

_local = threading.local()


def make_replicas(config: ConfigDict) -> "Replicas":
    """Returns the replicas of `config.runtime`, connected to all processes of the run.

    Raises:
      UserError: see `strategies.make_strategy`.
    """
    strategy = make_strategy(config)
    if config.runtime.strategy == "parameter_server":
        return ParameterServers(strategy)
    return Replicas(strategy, tf.bfloat16 if config.runtime.all_reduce_dtype == "bfloat16" else None)


class Replicas:
    """Where the parts of a step are computed.

    Args:
      strategy: None for one device.
      comm_dtype: dtype in which gradients travel between replicas; None for their own.

    Attributes:
      count: replicas of all workers.
      here: those of this process.
      first: index of the first of these.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None, comm_dtype: tf.DType | None = None) -> None:
        self.strategy, self.comm_dtype = strategy, comm_dtype
        self.count = 1 if strategy is None else strategy.num_replicas_in_sync
        self.here = 1 if strategy is None else len(self.devices)
        resolver = getattr(strategy, "cluster_resolver", None)
        worker = getattr(resolver, "task_id", None) or 0
        self.first = worker * self.here if self.count > self.here else 0

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of this process's devices, one a replica."""
        return ("",) if self.strategy is None else self.strategy.extended.worker_devices

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self.first == 0

    @property
    def is_local(self) -> bool:
        """Whether all replicas are of this process, so that it may call the model by itself."""
        return self.count == self.here

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Variables made in here have a copy on every replica."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def counter_scope(self) -> contextlib.AbstractContextManager[Any]:
        """Counters are one, beside the replicas."""
        return contextlib.nullcontext()

    def run(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        """Calls fn(index, *args) on every replica; `index` is its place among all, an int.

        Args:
          args: nests of tensors, or of what an earlier `run` returned, of which each replica gets its own.
          mode: 'xla' makes what each replica does a program of its own.

        Returns:
          what the replicas returned, each its own; opaque to all but `run`, `total` and `gather` if they are several.
        """
        if self.strategy is None:
            on_device = functools.partial(fn, 0)
            return jit(on_device)(*args) if mode == "xla" else on_device(*args)
        scope, start = rng.current(), rng.save_counters()

        def on_replica(*args: Any) -> Any:
            # Each replica traces in a thread of its own, where no scope is open yet.
            with rng.entered(scope, start):
                index = self._index()
                if mode != "xla":
                    return fn(index, *args)
                return jit(functools.partial(fn, index))(*args)

        return self.strategy.run(on_replica, args=args)

    def all_reduce_sum(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        """The sum over replicas of the nests of tensors that fn(index, *args) returns; one message for each dtype."""
        if self.count == 1:
            return self.run(fn, *args, mode=mode)
        returned: list[Any] = []

        def packed(index: int, *args: Any) -> dict[str, tf.Tensor]:
            specs, vectors = _packed(fn(index, *args))
            returned.append(specs)
            return vectors

        assert self.strategy is not None
        vectors = self.run(packed, *args, mode=mode)
        return _unpacked(returned[-1], {name: self._summed(vector) for name, vector in vectors.items()})

    def gather(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        """What fn(index, *args) returns, of all replicas one after the other: [part, …] -> [batch, …]."""
        found = self.run(fn, *args, mode=mode)
        if self.strategy is None or self.count == 1:
            return found
        return tf.nest.map_structure(lambda value: self.strategy.gather(value, axis=0), found)

    def broadcast(self, fn: Callable[[Any], Any], nest: Any) -> None:
        """Calls fn(nest) on every replica, where it changes variables; the tensors travel in one message a dtype."""
        if self.here == 1:
            self.run(lambda index: fn(nest))
            return
        specs, vectors = _packed(nest)
        self.run(lambda index: fn(_unpacked(specs, vectors)))

    def sync_mean(self, variables: Iterable[tf.Variable]) -> None:
        """Sets what each replica moved by itself, such as BatchNorm's averages, to the mean over replicas."""
        moved = [v for v in variables if v.synchronization == tf.VariableSynchronization.ON_READ]
        if self.count == 1 or not moved:
            return
        sums = self.all_reduce_sum(lambda index: [variable.read_value() for variable in moved])
        means = [tf.cast(value / self.count, value.dtype) for value in sums]
        self.broadcast(lambda means: [v.assign(mean) for v, mean in zip(moved, means, strict=True)], means)

    def redundant(self) -> "Replicas":
        """Replicas that do the work of a single one: each the whole of it, and the first one's result counts."""
        return _Alone(self.strategy)

    def all_workers(self, value: int, most: bool) -> int:
        """The largest (or least) of a number below 2**24 that each worker has; every worker must ask."""
        if self.strategy is None or self.count == self.here:
            return value
        places = self._by_worker(tf.constant(value, tf.float32))
        return round(float(tf.reduce_max(places) if most else tf.reduce_min(places)))

    @functools.cached_property
    def _by_worker(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """A number of each worker -> [workers], by a sum in which each has a place of its own."""
        workers = self.count // self.here

        def places(index: int, value: tf.Tensor) -> tf.Tensor:
            return value / self.here * tf.one_hot(index // self.here, workers)

        return tf.function(lambda value: self.all_reduce_sum(places, value), autograph=False)

    def chief_first(self, fn: Callable[[], object]) -> None:
        """Calls `fn` on the chief, and then on the other workers, which see what it left on disk."""
        if self.is_chief:
            fn()
        self.all_workers(0, most=True)
        if not self.is_chief:
            fn()
            logging.info("worker with replicas from %d on: ready", self.first)

    def _summed(self, values: Any) -> tf.Tensor:
        """The sum over replicas of what `run` returned."""
        assert self.strategy is not None
        # To the devices it comes from: to a single other one, as `strategy.reduce` does, nothing is all-reduced.
        return self.strategy.experimental_local_results(self.strategy.extended.reduce_to("SUM", values, values))[0]

    def _index(self) -> int:
        context = tf.distribute.get_replica_context()
        return int(tf.get_static_value(context.replica_id_in_sync_group))


class ParameterServers(Replicas):
    """One replica whose weights, slots and counter of updates lie on other processes; any worker computes it.

    Attributes:
      coordinator: sends a step to a worker that is free, and again to another if that one is lost.
    """

    def __init__(self, strategy: tf.distribute.ParameterServerStrategy) -> None:
        super().__init__()
        self.strategy = strategy
        self.coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)

    @property
    def devices(self) -> tuple[str, ...]:
        """Where this is called: on a worker, or on the chief that evaluates."""
        return ("",)

    @property
    def is_local(self) -> bool:
        """It is not: variables lie on other processes."""
        return False

    def counter_scope(self) -> contextlib.AbstractContextManager[Any]:
        """A schedule reads the counter of updates on a worker."""
        return self.scope()

    def run(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        """See `Replicas.run`; `mode` is 'graph', as XLA cannot read what lies on another device."""
        with tf.distribute.ReplicaContext(self.strategy, 0):  # tf_keras' optimizers ask for one
            return fn(0, *args)

    def redundant(self) -> Replicas:
        """Itself: it is."""
        return self


class _Alone(Replicas):
    """See `Replicas.redundant`."""

    def __init__(self, strategy: tf.distribute.Strategy | None) -> None:
        super().__init__(strategy)
        self.count = self.here = 1
        self.first = 0

    def run(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        def alone(*args: Any) -> Any:
            with _alone():
                return fn(*args)

        found = super().run(alone, *args, mode=mode)
        if self.strategy is None:
            return found
        return tf.nest.map_structure(lambda value: self.strategy.experimental_local_results(value)[0], found)

    def _index(self) -> int:
        return 0


def is_alone() -> bool:
    """Whether this is traced or run by a replica that has the whole batch, as all others do: nothing is to be added."""
    return getattr(_local, "is_alone", False)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    before, _local.is_alone = is_alone(), True
    try:
        yield
    finally:
        _local.is_alone = before


def _packed(nest: Any) -> tuple[Any, dict[str, tf.Tensor]]:
    """A nest of tensors as that of their specs, and one vector for each dtype."""
    flat = [tf.convert_to_tensor(value) for value in tf.nest.flatten(nest)]
    specs = tf.nest.pack_sequence_as(nest, [tf.TensorSpec(x.shape, x.dtype) for x in flat])
    dtypes = sorted({x.dtype.name for x in flat})
    return specs, {d: tf.concat([tf.reshape(x, [-1]) for x in flat if x.dtype.name == d], 0) for d in dtypes}


def _unpacked(specs: Any, vectors: dict[str, tf.Tensor]) -> Any:
    """Tensors like `specs`, cut from one vector for each dtype."""
    places = dict.fromkeys(vectors, 0)
    flat = []
    for spec in tf.nest.flatten(specs):
        name, size = spec.dtype.name, spec.shape.num_elements()
        flat.append(tf.reshape(vectors[name][places[name] : places[name] + size], spec.shape))
        places[name] += size
    return tf.nest.pack_sequence_as(specs, flat)
