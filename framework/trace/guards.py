"""What a compiled step would pass over in silence: ids and labels that are out of range, assertions that do not hold.

    with watched(batch) as watch:
        terms, outputs = loss(model, batch, True)
    watch.violations(tf.float32)                 # how many guards do not hold, a scalar of the same trace

A kernel of a CPU raises where an index is out of range; XLA takes the nearest one, a GPU gives zeros, and XLA drops
assertions. So the operations that a trace has made are read, and a flag is computed beside each that depends on the
batch, in functions that are called too. What happens in loops cannot be flagged: `watch.unread` says so, and whoever
compiles with XLA refuses it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from framework.compile import is_in_xla
from framework.errors import UserError
from framework.trace.graphs import ancestors, called, imported
from framework.trace.indices import BOUNDS, CLAIM, below

_local = threading.local()
_WATCHES = "_framework_watches"  # of a graph: what it knows is read by whoever traced it, in whatever thread
IN_RANGE = "known_to_be_in_range"  # name of an operation that needs no guard
ASSERTED = "an assertion does not hold: "

# Indices that these return are in range.
_SAFE = ("ArgMax", "ArgMin", "TopK", "TopKV2", "Where", "Range")
_LOOPS, _IFS, _CASES = ("While", "StatelessWhile"), ("If", "StatelessIf"), ("Case", "StatelessCase")


class Guard(NamedTuple):
    """One condition of a trace.

    Attributes:
      operation: that would pass over it; of a function that is called, the operation that calls.
      bad: bool, where it does not hold.
      value: of the shape of `bad`, what is wrong there; None of an assertion.
      problem: what is wrong with the value, such as 'which is none of 0 to 9'; of an assertion, its message.
      fields: names of the tensors of the batch that it comes from.
      is_nan: whether what is computed is NaN where it does not hold, which a step looks for anyway.
    """

    operation: Any
    bad: tf.Tensor
    value: tf.Tensor | None
    problem: str
    fields: tuple[str, ...]
    is_nan: bool


class Watch:
    """The guards of one trace, or of one eager call.

    Attributes:
      batch: {name: tensor} that indices may come from.
      guards: of a trace.
      unread: names of operations whose guards cannot be read.
    """

    def __init__(self, batch: Mapping[str, Any], graph: Any = None) -> None:
        self.batch, self._graph = dict(batch), graph
        self._first = self._next = 0 if graph is None else len(graph.get_operations())
        self._spans: list[tuple[int, int]] = []  # of operations that another watch has read
        self.guards: list[Guard] = []
        self.unread: list[str] = []
        self._eager: list[tf.Tensor] = []

    def claim(self, bad: tf.Tensor) -> None:
        """Takes a condition of an eager call."""
        self._eager.append(tf.reduce_any(bad))

    def read(self) -> None:
        """Reads what has been traced since it was opened, or last read."""
        if self._graph is None:
            return
        operations = self._graph.get_operations()
        new = [operations[i] for i in range(self._next, len(operations)) if not any(a <= i < b for a, b in self._spans)]
        _Reader(self, self._graph).read(new)
        self._next = len(self._graph.get_operations())
        if is_in_xla():
            refuse_unread(self.unread)

    def remember(self) -> None:
        """Tells whoever reads the trace later, in whatever thread, of this watch."""
        if self._graph is not None:
            setattr(self._graph, _WATCHES, [*getattr(self._graph, _WATCHES, []), self])

    def leave_out(self, inner: "Watch") -> None:
        """Passes over what a watch inside of this one has read."""
        if inner._graph is self._graph and self._graph is not None:
            self._spans.append((inner._first, inner._next))

    @property
    def has_any(self) -> bool:
        """Whether there is something to look at."""
        return bool(self.guards or self._eager)

    def violations(self, dtype: tf.DType, known: int = 0, nan_too: bool = True) -> tf.Tensor:
        """How many do not hold, scalar.

        Args:
          known: the first so many guards do not count.
          nan_too: whether those count where NaN tells already; a flag costs some microseconds.
        """
        new = [guard for guard in self.guards[known:] if nan_too or not guard.is_nan]
        flags = [*(self._eager if nan_too else []), *(tf.reduce_any(guard.bad) for guard in new)]
        if not flags:
            return tf.zeros([], dtype)
        counts = [tf.cast(flag, dtype) for flag in flags]
        return counts[0] if len(counts) == 1 else tf.reduce_sum(tf.stack(counts))


def claim_classes(labels: tf.Tensor, classes: int) -> None:
    """Says that labels must be from 0 to classes - 1; what is computed from others is NaN."""
    watches = getattr(_local, "watches", [])
    if not tf.executing_eagerly():  # a mark that whoever reads the trace finds, also in a function that is called
        tf.raw_ops.PreventGradient(input=labels, message=f"{CLAIM}{classes}")
    elif watches:
        watches[-1].claim(below(labels, classes)[0])


def made(batch: Mapping[str, Any]) -> None:
    """Says that these are tensors of the batch, to who watches how it is made."""
    for watch in getattr(_local, "watches", [])[-1:]:
        if any(map(tf.is_symbolic_tensor, batch.values())):  # else it is made aside, for its shapes
            watch.batch.update(batch)


@contextlib.contextmanager
def watched(batch: Mapping[str, tf.Tensor]) -> Iterator[Watch]:
    """Reads what is traced while it is open: indices that depend on the tensors of `batch`, and assertions.

    Raises:
      UserError: XLA compiles this, and there is something that cannot be read.
    """
    watch = Watch(batch, None if tf.executing_eagerly() else tf.compat.v1.get_default_graph())
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
    """Those of all that was `watched` while a graph was traced."""
    return [guard for watch in getattr(graph, _WATCHES, []) for guard in watch.guards]


def unread_of(graph: Any) -> list[str]:
    """Names of operations of a trace whose guards cannot be read."""
    return [name for watch in getattr(graph, _WATCHES, []) for name in watch.unread]


def refuse_unread(unread: list[str]) -> None:
    """Raises UserError if there is something that XLA would pass over in silence."""
    if unread:
        raise UserError(
            f"{unread[0]} is in a loop or function of its own, where XLA would pass over an index that is out of range,"
            " or an assertion that does not hold, without a word. Use --config.train.compile=graph."
        )


class _Scope(NamedTuple):
    """How the tensors of a trace, or of a function that it calls, are had where flags are computed.

    Attributes:
      resolve: tensor -> the same in the trace; None if that would take the model.
      fields: tensor -> names of the tensors of the batch that it depends on.
    """

    resolve: Callable[[tf.Tensor], tf.Tensor | None]
    fields: Callable[[tf.Tensor], set[str]]


class _Reader:
    """Adds the guards of a trace to a watch.

    Args:
      graph: in which flags are computed.
    """

    def __init__(self, watch: Watch, graph: Any) -> None:
        self._watch = watch
        symbolic = {name: tensor for name, tensor in watch.batch.items() if tf.is_symbolic_tensor(tensor)}
        names = {id(tensor): name for name, tensor in symbolic.items()}
        self._batch = {tensor.op: name for name, tensor in symbolic.items() if tensor.graph is graph}
        self._batch |= {inner.op: names[id(outer)] for outer, inner in graph.captures if id(outer) in names}

    def read(self, operations: list[Any]) -> None:
        """Reads what the trace itself has made."""
        scope = _Scope(lambda tensor: tensor, self._fields)
        for operation in operations:
            self._read(operation, operation, scope, None)

    def _fields(self, tensor: tf.Tensor) -> set[str]:
        return {self._batch[operation] for operation in ancestors(tensor, shapes=False) & self._batch.keys()}

    def _read(self, operation: Any, at: Any, scope: _Scope, taken: tf.Tensor | None) -> None:
        """One operation; `at` is that of the trace in which it happens, `taken` whether its branch is."""
        if operation.type == "Assert":
            condition = scope.resolve(operation.inputs[0])
            if condition is None:
                self._watch.unread.append(f"'{at.name}'")
            else:
                fields = scope.fields(operation.inputs[0])
                self._add(at, ~condition, None, _message(operation, scope), fields, taken)
        elif (kind := BOUNDS.get(operation.type)) is not None:
            for bound in kind(operation) if IN_RANGE not in operation.name else ():
                index = bound.inputs[0]
                fields = set() if index.op.type in _SAFE else scope.fields(index)
                resolved = [scope.resolve(tensor) for tensor in bound.inputs] if fields else [None]
                if not _is_any_missing(resolved):
                    self._add(at, *bound.outside(*resolved), bound.problem, fields, taken)
        else:
            for place_of, function in enumerate(called(operation)):
                self._call(operation, function, place_of, at, scope, taken)

    def _add(
        self,
        at: Any,
        bad: tf.Tensor,
        value: tf.Tensor | None,
        problem: str,
        fields: set[str],
        taken: tf.Tensor | None,
    ) -> None:
        bad = bad if taken is None else bad & taken
        is_nan = at.type == "PreventGradient"  # see claim_classes
        self._watch.guards.append(Guard(at, bad, value, problem, tuple(sorted(fields)), is_nan))

    def _call(
        self, operation: Any, function: Any, place_of: int, at: Any, scope: _Scope, taken: tf.Tensor | None
    ) -> None:
        """A function that an operation calls: what is in it is computed once more from what it is given."""
        inside = _inside(operation, function, scope)
        if inside is None or hasattr(function, _WATCHES):  # which has been read while it was traced
            return
        if operation.type in _LOOPS:
            self._watch.unread += _steering(function, {t.op for t in function.inputs if inside.fields(t)})
            return
        if operation.type in (*_IFS, *_CASES) and _steering(function, {t.op for t in function.inputs}):
            choice = scope.resolve(operation.inputs[0])
            if choice is None:
                self._watch.unread += _steering(function, {t.op for t in function.inputs if inside.fields(t)})
                return
            is_here = tf.equal(choice, place_of) if operation.type in _CASES else tf.cast(choice, tf.bool)
            is_here = ~is_here if operation.type in _IFS and place_of else is_here
            taken = is_here if taken is None else taken & is_here
        for inner in function.get_operations():
            self._read(inner, at, inside, taken)


def _is_any_missing(tensors: Iterable[tf.Tensor | None]) -> bool:
    return any(tensor is None for tensor in tensors)


def _inside(operation: Any, function: Any, outer: _Scope) -> _Scope | None:
    """The scope of a function that an operation of another scope calls; None if it is called in some other way."""
    skipped = len(operation.inputs) - len(function.inputs)  # such as the condition of an If
    if skipped < 0:
        return None
    given = {inner.op: operation.inputs[skipped + place_of] for place_of, inner in enumerate(function.inputs)}

    def resolve(tensor: tf.Tensor) -> tf.Tensor | None:
        if tensor.op in given:
            return outer.resolve(given[tensor.op])
        needed = ancestors(tensor)
        if any(map(_is_of_model, needed)):
            return None
        feeds = {op.outputs[0].name: outer.resolve(given[op]) for op in needed & given.keys()}
        return None if _is_any_missing(feeds.values()) else imported(function, [tensor], feeds, "guard")[0]

    def fields(tensor: tf.Tensor) -> set[str]:
        return set().union(*(outer.fields(given[op]) for op in ancestors(tensor, shapes=False) & given.keys()))

    return _Scope(resolve, fields)


def _is_of_model(operation: Any) -> bool:
    """Whether an operation is a variable, or what is done with it."""
    return any(tensor.dtype == tf.resource for tensor in (*operation.inputs, *operation.outputs))


def _steering(function: Any, tainted: set[Any]) -> list[str]:
    """Names of the assertions of a function, and of the operations whose index comes from what is tainted alone."""
    found = []
    for operation in function.get_operations():
        if operation.type == "Assert":
            found.append(f"'{operation.name}'")
        elif (kind := BOUNDS.get(operation.type)) is not None:
            for bound in kind(operation):
                before = ancestors(bound.inputs[0], shapes=False)
                if bound.inputs[0].op.type not in _SAFE and before & tainted and not any(map(_is_of_model, before)):
                    found.append(f"'{operation.name}'")
        else:
            for deeper in called(operation):
                skipped = len(operation.inputs) - len(deeper.inputs)
                pairs = zip(deeper.inputs, operation.inputs[max(0, skipped) :], strict=False)
                found += _steering(
                    deeper, {inner.op for inner, outer in pairs if ancestors(outer, shapes=False) & tainted}
                )
    return found


def _message(operation: Any, scope: _Scope) -> str:
    """The text of an assertion."""
    texts = []
    for tensor in operation.inputs[1:]:
        static = tf.get_static_value(tensor)
        static = tf.get_static_value(scope.resolve(tensor)) if static is None and tensor.dtype == tf.string else static
        text = "" if static is None or tensor.dtype != tf.string else tf.compat.as_str(static.item())
        texts += [text.rstrip(" :")] if text and not text.endswith("= ") else []
    return ASSERTED + (": ".join(texts) or f"'{operation.name}'")
