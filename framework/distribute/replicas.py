"""The replicas that share a step, on one device or many, on top of `tf.distribute`.

    replicas = make_replicas(config)                    # Replicas() is one device, without a strategy
    with replicas.scope():
        model = make_model(config)
    batch = replicas.run(lambda index: shards[index].take(plans[index], i))    # one shard on each
    sums = replicas.all_reduce_sum(local, batch, mode="xla")       # the same numbers everywhere

A step is written once, as for a single device. It runs outside of the replicas, where an assignment reaches the copies
of a variable on all of them; `run` and `all_reduce_sum` send the heavy work to the replicas. Measured: XLA compiles
what is inside of a replica and has no collective, but nothing around `strategy.run` and no assignment to a mirrored
variable.
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
    """The devices that each compute a shard of the batch in a step.

    Args:
      strategy: None for one device.
      comm_dtype: dtype in which gradients travel between replicas; None for their own.

    Attributes:
      count: number of replicas of all workers.
      here: number of replicas of this process.
      first: index of the first replica of this process.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None, comm_dtype: tf.DType | None = None) -> None:
        self.strategy = strategy
        self.comm_dtype = comm_dtype
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
        """Whether this process is the chief, which writes the run folder."""
        return self.first == 0

    @property
    def is_local(self) -> bool:
        """Whether this process has all replicas, so that it may call the model by itself."""
        return self.count == self.here

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which new variables get a copy on every replica."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def counter_scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context for counters, of which there is one beside the replicas."""
        return contextlib.nullcontext()

    def run(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        """Calls fn(index, *args) on every replica; `index` is the place of the replica among all, an int.

        Args:
          fn: the function.
          args: nests of tensors, or of results of an earlier `run`, of which each replica gets its own.
          mode: 'xla' makes the call on each replica an XLA program.

        Returns:
          the results of the replicas. Several are opaque: pass them on to `run`, `all_reduce_sum` or `gather`.
        """
        if self.strategy is None:
            on_device = functools.partial(fn, 0)
            return jit(on_device)(*args) if mode == "xla" else on_device(*args)
        scope, start = rng.current(), rng.save_counters()

        def on_replica(*args: Any) -> Any:
            # Each replica traces in a thread of its own, in which no scope is open.
            with rng.entered(scope, start):
                index = self._index()
                if mode != "xla":
                    return fn(index, *args)
                return jit(functools.partial(fn, index))(*args)

        return self.strategy.run(on_replica, args=args)

    def all_reduce_sum(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        """Returns the sum over replicas of the nests of tensors that fn(index, *args) returns: a message a dtype."""
        if self.count == 1:
            return self.run(fn, *args, mode=mode)
        layouts: list[Any] = []

        def packed(index: int, *args: Any) -> dict[str, tf.Tensor]:
            specs, vectors = _packed(fn(index, *args))
            layouts.append(specs)
            return vectors

        vectors = self.run(packed, *args, mode=mode)
        return _unpacked(layouts[-1], {name: self._summed(vector) for name, vector in vectors.items()})

    def gather(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        """Returns the concatenated results of fn(index, *args) on all replicas: [shard, …] -> [batch, …]."""
        results = self.run(fn, *args, mode=mode)
        if self.strategy is None or self.count == 1:
            return results
        return tf.nest.map_structure(lambda value: self.strategy.gather(value, axis=0), results)

    def broadcast(self, fn: Callable[[Any], Any], nest: Any) -> None:
        """Calls fn(nest) on every replica, to change variables there; the tensors travel in one message a dtype."""
        if self.here == 1:
            self.run(lambda index: fn(nest))
            return
        specs, vectors = _packed(nest)
        self.run(lambda index: fn(_unpacked(specs, vectors)))

    def sync_mean(self, variables: Iterable[tf.Variable]) -> None:
        """Sets variables that each replica changes by itself, such as BatchNorm's averages, to their mean."""
        local = [v for v in variables if v.synchronization == tf.VariableSynchronization.ON_READ]
        if self.count == 1 or not local:
            return
        sums = self.all_reduce_sum(lambda index: [variable.read_value() for variable in local])
        means = [tf.cast(value / self.count, value.dtype) for value in sums]
        self.broadcast(lambda means: [v.assign(mean) for v, mean in zip(local, means, strict=True)], means)

    def redundant(self) -> "Replicas":
        """Returns replicas that each compute the whole batch instead of a shard; the result of the first counts."""
        return _Redundant(self.strategy)

    def all_workers(self, value: int, most: bool) -> int:
        """Returns the largest (or smallest) of a number below 2**24 that each worker gives; all workers must call."""
        if self.strategy is None or self.count == self.here:
            return value
        places = self._by_worker(tf.constant(value, tf.float32))
        return round(float(tf.reduce_max(places) if most else tf.reduce_min(places)))

    @functools.cached_property
    def _by_worker(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function from the number of each worker to all of them, [workers], by a sum of one-hot vectors."""
        workers = self.count // self.here

        def places(index: int, value: tf.Tensor) -> tf.Tensor:
            return value / self.here * tf.one_hot(index // self.here, workers)

        return tf.function(lambda value: self.all_reduce_sum(places, value), autograph=False)

    def chief_first(self, fn: Callable[[], object]) -> None:
        """Calls `fn` on the chief, and then on the other workers, which see the files that the chief wrote."""
        if self.is_chief:
            fn()
        self.all_workers(0, most=True)
        if not self.is_chief:
            fn()
            logging.info("worker with replicas from %d on: ready", self.first)

    def _summed(self, values: Any) -> tf.Tensor:
        """Returns the sum over replicas of a result of `run`."""
        assert self.strategy is not None
        # Reduced to the devices of the replicas: to a single one, as `strategy.reduce` does, is no all-reduce.
        return self.strategy.experimental_local_results(self.strategy.extended.reduce_to("SUM", values, values))[0]

    def _index(self) -> int:
        context = tf.distribute.get_replica_context()
        return int(tf.get_static_value(context.replica_id_in_sync_group))


class ParameterServers(Replicas):
    """One replica, computed by any worker, whose weights, slots and counter of updates lie on parameter servers.

    Attributes:
      coordinator: sends a step to a free worker, and to another one if that worker is lost.
    """

    def __init__(self, strategy: tf.distribute.ParameterServerStrategy) -> None:
        super().__init__()
        self.strategy = strategy
        self.coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)

    @property
    def devices(self) -> tuple[str, ...]:
        """The device of the process that asks: a worker, or the chief that evaluates."""
        return ("",)

    @property
    def is_local(self) -> bool:
        """False: the variables lie on other processes."""
        return False

    def counter_scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns `scope()`: schedules read the counter of updates on workers."""
        return self.scope()

    def run(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        """Calls fn(0, *args); `mode` must be 'graph', because XLA cannot read variables of another device."""
        with tf.distribute.ReplicaContext(self.strategy, 0):  # tf_keras' optimizers ask for one
            return fn(0, *args)

    def redundant(self) -> Replicas:
        """Returns itself: there is one replica."""
        return self


class _Redundant(Replicas):
    """The result of `Replicas.redundant`."""

    def __init__(self, strategy: tf.distribute.Strategy | None) -> None:
        super().__init__(strategy)
        self.count = self.here = 1
        self.first = 0

    def run(self, fn: Callable[..., Any], *args: Any, mode: str = "graph") -> Any:
        def whole(*args: Any) -> Any:
            with _whole_batch():
                return fn(*args)

        results = super().run(whole, *args, mode=mode)
        if self.strategy is None:
            return results
        return tf.nest.map_structure(lambda value: self.strategy.experimental_local_results(value)[0], results)

    def _index(self) -> int:
        return 0


def is_redundant() -> bool:
    """Returns whether a replica of `Replicas.redundant` traces or runs, which has the whole batch."""
    return getattr(_local, "is_redundant", False)


@contextlib.contextmanager
def _whole_batch() -> Iterator[None]:
    before = is_redundant()
    _local.is_redundant = True
    try:
        yield
    finally:
        _local.is_redundant = before


def _packed(nest: Any) -> tuple[Any, dict[str, tf.Tensor]]:
    """Returns a nest of tensors as a nest of their specs, and one vector for each dtype."""
    flat = [tf.convert_to_tensor(value) for value in tf.nest.flatten(nest)]
    specs = tf.nest.pack_sequence_as(nest, [tf.TensorSpec(x.shape, x.dtype) for x in flat])
    dtypes = sorted({x.dtype.name for x in flat})
    return specs, {d: tf.concat([tf.reshape(x, [-1]) for x in flat if x.dtype.name == d], 0) for d in dtypes}


def _unpacked(specs: Any, vectors: dict[str, tf.Tensor]) -> Any:
    """Returns the nest of tensors that `_packed` made into specs and vectors."""
    places = dict.fromkeys(vectors, 0)
    flat = []
    for spec in tf.nest.flatten(specs):
        name, size = spec.dtype.name, spec.shape.num_elements()
        flat.append(tf.reshape(vectors[name][places[name] : places[name] + size], spec.shape))
        places[name] += size
    return tf.nest.pack_sequence_as(specs, flat)
