"""Guards against errors that compiled steps ignore: ids and labels out of range, assertions that do not hold.

    with watched(batch) as watch:
        terms, outputs = loss(model, batch, True)
    watch.violations(tf.float32)                 # how many guards are violated, a scalar of the same trace

CPU kernels raise for an index out of range. XLA takes the nearest index, GPUs give zeros, and XLA drops assertions. So
a watch reads the operations of a trace, in called functions too, and adds a flag beside each that depends on the batch.
Operations in loops cannot be flagged: `watch.unread` names them, and a step that XLA compiles is refused for them.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from framework.compile import is_in_xla
from framework.errors import UserError
from framework.trace.graphs import ancestors, called, imported
from framework.trace.indices import BOUNDS, CLAIM, RANGE, below

_local = threading.local()
_WATCHES = "_framework_watches"  # attribute of a graph: its watches, read by the code that traced it, in any thread
IN_RANGE = "known_to_be_in_range"  # in the name of an operation: it needs no guard
ASSERTED = "an assertion does not hold: "
_INSTEAD = "Use --config.train.compile=graph."

_LOOPS = ("While", "StatelessWhile")
_IFS = ("If", "StatelessIf")
_CASES = ("Case", "StatelessCase")


class Guard(NamedTuple):
    """One condition that a batch must meet.

    Attributes:
      operation: the one that would ignore a violation; in a called function, the operation that calls.
      bad: bool, True where the condition is violated.
      value: the values there, in the shape of `bad`; None for an assertion.
      problem: says what is wrong with a value, such as 'which is none of 0 to 9'; for an assertion, its message.
      fields: names of the batch's tensors that the condition depends on; () for a condition that no batch meets.
    """

    operation: Any
    bad: tf.Tensor
    value: tf.Tensor | None
    problem: str
    fields: tuple[str, ...]

    @property
    def is_nan(self) -> bool:
        """Whether a violation makes the result NaN, which a step checks anyway; see `claim_classes`."""
        return self.operation.type == "PreventGradient"


class Watch:
    """The guards of one trace, or of one eager call; the arguments are those of `watched`.

    Attributes:
      batch: {name: tensor} that indices may come from.
      guards: those of a trace.
      unread: names of operations that may violate a condition but cannot have a guard.
    """

    def __init__(
        self, batch: Mapping[str, Any], graph: Any = None, of_shapes: bool = False, instead: str = _INSTEAD
    ) -> None:
        self.batch = dict(batch)
        self._graph = graph
        self._of_shapes = of_shapes
        self._instead = instead
        self._first = 0 if graph is None else len(graph.get_operations())
        self._next = self._first
        self._spans: list[tuple[int, int]] = []  # (first, end) of operations that an inner watch has read
        self.guards: list[Guard] = []
        self.unread: list[str] = []
        self._eager: list[tf.Tensor] = []

    def claim(self, bad: tf.Tensor) -> None:
        """Adds a condition of an eager call."""
        self._eager.append(tf.reduce_any(bad))

    def read(self) -> None:
        """Adds the guards of the operations that were traced since the last `read`."""
        if self._graph is None:
            return
        operations = self._graph.get_operations()
        new = [operations[i] for i in range(self._next, len(operations)) if not any(a <= i < b for a, b in self._spans)]
        _Reader(self, self._graph, self._of_shapes).read(new)
        self._next = len(self._graph.get_operations())
        if is_in_xla():
            refuse_unread(self.unread, self._instead)

    def remember(self) -> None:
        """Attaches this watch to its graph, for `guards_of` in any thread."""
        if self._graph is not None:
            setattr(self._graph, _WATCHES, [*getattr(self._graph, _WATCHES, []), self])

    def leave_out(self, inner: "Watch") -> None:
        """Skips the operations that an inner watch has read."""
        if inner._graph is self._graph and self._graph is not None:
            self._spans.append((inner._first, inner._next))

    @property
    def has_any(self) -> bool:
        """Whether there is any guard."""
        return bool(self.guards or self._eager)

    def violations(self, dtype: tf.DType, known: int = 0, nan_too: bool = True) -> tf.Tensor:
        """Returns how many guards are violated, a scalar.

        Args:
          dtype: of the result.
          known: the number of guards, from the first, that do not count.
          nan_too: whether to count guards whose violation makes the result NaN; each costs some microseconds.
        """
        new = [guard for guard in self.guards[known:] if nan_too or not guard.is_nan]
        flags = [*(self._eager if nan_too else []), *(tf.reduce_any(guard.bad) for guard in new)]
        if not flags:
            return tf.zeros([], dtype)
        counts = [tf.cast(flag, dtype) for flag in flags]
        return counts[0] if len(counts) == 1 else tf.reduce_sum(tf.stack(counts))


def claim_classes(labels: tf.Tensor, classes: int) -> None:
    """Demands labels from 0 to classes - 1; the caller makes the result of others NaN."""
    watches = getattr(_local, "watches", [])
    if not tf.executing_eagerly():  # a mark for the watch that reads this trace, or one that calls it
        tf.raw_ops.PreventGradient(input=labels, message=f"{CLAIM}{classes}")
    elif watches:
        watches[-1].claim(below(labels, classes)[0])


def claim_range(values: tf.Tensor, low: float, high: float) -> None:
    """Demands numbers from low to high; the caller makes the result of others NaN."""
    watches = getattr(_local, "watches", [])
    if not tf.executing_eagerly():  # a mark, as in claim_classes
        tf.raw_ops.PreventGradient(input=values, message=f"{RANGE}{low} to {high}")
    elif watches:
        watches[-1].claim(~((values >= low) & (values <= high)))


def note_batch(batch: Mapping[str, Any]) -> None:
    """Tells the innermost open watch that these are tensors of the batch."""
    for watch in getattr(_local, "watches", [])[-1:]:
        if any(map(tf.is_symbolic_tensor, batch.values())):  # else the batch is made for its shapes alone
            watch.batch.update(batch)


@contextlib.contextmanager
def watched(batch: Mapping[str, tf.Tensor], of_shapes: bool = False, instead: str = _INSTEAD) -> Iterator[Watch]:
    """Yields a watch that, on exit, guards what was traced inside: assertions, and indices that depend on `batch`.

    Args:
      batch: {name: tensor} that indices may come from.
      of_shapes: whether indices are guarded too that depend on nothing but shapes of the batch, such as the positions
        of a text: its length may differ from call to call. Those of a step are known when it is traced. Also guards
        those that a called function computes from variables, which no step changes meanwhile.
      instead: ends the error.

    Raises:
      UserError: XLA compiles the trace, and an operation in it cannot have a guard.
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    watch = Watch(batch, graph, of_shapes, instead)
    outer = getattr(_local, "watches", [])
    _local.watches = [*outer, watch]
    try:
        yield watch
    finally:
        _local.watches = outer
    watch.read()
    watch.remember()
    for other in outer:
        other.leave_out(watch)


def guards_of(graph: Any) -> list[Guard]:
    """Returns the guards of all watches that were open while a graph was traced."""
    return [guard for watch in getattr(graph, _WATCHES, []) for guard in watch.guards]


def unread_of(graph: Any) -> list[str]:
    """Returns the names of operations of a trace that cannot have a guard."""
    return [name for watch in getattr(graph, _WATCHES, []) for name in watch.unread]


def refuse_unread(unread: list[str], instead: str = _INSTEAD) -> None:
    """Raises UserError if an operation cannot have a guard, because XLA would ignore its violation."""
    if unread:
        raise UserError(
            f"{unread[0]} is in a loop or function of its own, where XLA would ignore an index out of range, or an"
            f" assertion that does not hold, without a word. {instead}"
        )


class _Scope(NamedTuple):
    """Translates the tensors of a trace, or of a function that it calls, to the graph in which flags are computed.

    Attributes:
      resolve: tensor -> the same value in that graph; None if the model computes it.
      fields: (tensor, of_shapes) -> names of the batch's tensors that it depends on; of_shapes as of `watched`.
      at: the operation of the trace that calls the function; None in the trace itself.
      taken: whether the branch that the function is runs, a bool of the trace; None outside of branches.
    """

    resolve: Callable[[tf.Tensor], tf.Tensor | None]
    fields: Callable[[tf.Tensor, bool], set[str]]
    at: Any = None
    taken: tf.Tensor | None = None


class _Reader:
    """Adds the guards of a trace to a watch.

    Args:
      watch: the watch.
      graph: the graph of the trace, in which flags are computed.
      of_shapes: as of `watched`.
    """

    def __init__(self, watch: Watch, graph: Any, of_shapes: bool) -> None:
        self._watch = watch
        self._of_shapes = of_shapes
        symbolic = {name: tensor for name, tensor in watch.batch.items() if tf.is_symbolic_tensor(tensor)}
        names = {id(tensor): name for name, tensor in symbolic.items()}
        self._batch = {tensor.op: name for name, tensor in symbolic.items() if tensor.graph is graph}
        self._batch |= {inner.op: names[id(outer)] for outer, inner in graph.captures if id(outer) in names}

    def read(self, operations: list[Any]) -> None:
        """Adds the guards of some operations of the trace, and of the functions that they call."""
        scope = _Scope(lambda tensor: tensor, self._fields)
        for operation in operations:
            self._read(operation, scope)

    def _fields(self, tensor: tf.Tensor, of_shapes: bool) -> set[str]:
        return {self._batch[operation] for operation in ancestors(tensor, of_shapes) & self._batch.keys()}

    def _read(self, operation: Any, scope: _Scope) -> None:
        """Adds the guards of one operation."""
        at = operation if scope.at is None else scope.at
        if operation.type == "Assert":
            condition = scope.resolve(operation.inputs[0])
            if condition is None:
                self._watch.unread.append(f"'{at.name}'")
            else:
                fields = tuple(sorted(scope.fields(operation.inputs[0], self._of_shapes)))
                self._add(Guard(at, ~condition, None, _message(operation, scope), fields), scope)
        elif (kind := BOUNDS.get(operation.type)) is not None:
            for bound in kind(operation) if IN_RANGE not in operation.name else ():
                index = bound.inputs[0]
                fields = () if bound.is_safe else tuple(sorted(scope.fields(index, self._of_shapes)))
                is_guarded = fields or bound.may_always_fail()
                resolved = [scope.resolve(tensor) for tensor in bound.inputs] if is_guarded else [None]
                if not _is_any_missing(resolved):
                    self._add(Guard(at, *bound.outside(*resolved), bound.problem, fields), scope)
        else:
            for branch, function in enumerate(called(operation)):
                self._call(operation, function, branch, scope)

    def _add(self, guard: Guard, scope: _Scope) -> None:
        self._watch.guards.append(guard if scope.taken is None else guard._replace(bad=guard.bad & scope.taken))

    def _call(self, operation: Any, function: Any, branch: int, scope: _Scope) -> None:
        """Adds the guards of a called function; the flags compute its indices again, from its arguments.

        Args:
          operation: the one that calls.
          function: graph of the function.
          branch: place of the function among those that the operation calls.
          scope: of the operation.
        """
        inside = _inside(operation, function, scope, reads_model=self._of_shapes)
        if inside is None or hasattr(function, _WATCHES):  # a watch read the function while it was traced
            return
        if operation.type in _LOOPS:
            # Not those of shapes alone: each loop that decodes begins with a row of tokens for each example.
            self._watch.unread += _unguarded(function, {t.op for t in function.inputs if inside.fields(t, False)})
            return
        taken = scope.taken
        if operation.type in (*_IFS, *_CASES) and _unguarded(function, {t.op for t in function.inputs}):
            choice = scope.resolve(operation.inputs[0])
            if choice is None:
                tainted = {t.op for t in function.inputs if inside.fields(t, self._of_shapes)}
                self._watch.unread += _unguarded(function, tainted)
                return
            is_here = tf.equal(choice, branch) if operation.type in _CASES else tf.cast(choice, tf.bool)
            is_here = ~is_here if operation.type in _IFS and branch else is_here
            taken = is_here if taken is None else taken & is_here
        inside = inside._replace(at=operation if scope.at is None else scope.at, taken=taken)
        for inner in function.get_operations():
            self._read(inner, inside)


def _is_any_missing(tensors: Iterable[tf.Tensor | None]) -> bool:
    return any(tensor is None for tensor in tensors)


def _inside(operation: Any, function: Any, outer: _Scope, reads_model: bool) -> _Scope | None:
    """Returns the scope of a function that an operation calls; None if its inputs are not those of the operation.

    Args:
      operation: the one that calls.
      function: graph of the function.
      outer: the scope of the operation.
      reads_model: whether variables may be read again, because nothing changes them meanwhile.
    """
    skipped = len(operation.inputs) - len(function.inputs)  # such as the condition of an If
    if skipped < 0:
        return None
    given = {inner.op: operation.inputs[skipped + place_of] for place_of, inner in enumerate(function.inputs)}

    def resolve(tensor: tf.Tensor) -> tf.Tensor | None:
        if tensor.op in given:
            return outer.resolve(given[tensor.op])
        needed = ancestors(tensor)
        if not reads_model and any(map(_is_of_model, needed)):
            return None
        feeds = {op.outputs[0].name: outer.resolve(given[op]) for op in needed & given.keys()}
        return None if _is_any_missing(feeds.values()) else imported(function, [tensor], feeds, "guard")[0]

    def fields(tensor: tf.Tensor, of_shapes: bool) -> set[str]:
        return set().union(*(outer.fields(given[op], of_shapes) for op in ancestors(tensor, of_shapes) & given.keys()))

    return _Scope(resolve, fields)


def _is_of_model(operation: Any) -> bool:
    """Returns whether an operation is a variable, or reads or writes one."""
    return any(tensor.dtype == tf.resource for tensor in (*operation.inputs, *operation.outputs))


def _unguarded(function: Any, tainted: set[Any]) -> list[str]:
    """Returns the names of a function's assertions, and of operations whose index depends on `tainted`.

    An index that also depends on a variable is left out.
    """
    names = []
    for operation in function.get_operations():
        if operation.type == "Assert":
            names.append(f"'{operation.name}'")
        elif (kind := BOUNDS.get(operation.type)) is not None:
            for bound in kind(operation) if IN_RANGE not in operation.name else ():
                before = ancestors(bound.inputs[0], shapes=False)
                if not bound.is_safe and before & tainted and not any(map(_is_of_model, before)):
                    names.append(f"'{operation.name}'")
        else:
            for deeper in called(operation):
                skipped = len(operation.inputs) - len(deeper.inputs)
                pairs = zip(deeper.inputs, operation.inputs[max(0, skipped) :], strict=False)
                names += _unguarded(
                    deeper, {inner.op for inner, outer in pairs if ancestors(outer, shapes=False) & tainted}
                )
    return names


def _message(operation: Any, scope: _Scope) -> str:
    """Returns the message of an assertion."""
    texts = []
    for tensor in operation.inputs[1:]:
        static = tf.get_static_value(tensor)
        static = tf.get_static_value(scope.resolve(tensor)) if static is None and tensor.dtype == tf.string else static
        text = "" if static is None or tensor.dtype != tf.string else tf.compat.as_str(static.item())
        texts += [text.rstrip(" :")] if text and not text.endswith("= ") else []
    return ASSERTED + (": ".join(texts) or f"'{operation.name}'")
