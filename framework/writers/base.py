"""What a writer is, and how one call reaches several of them.

A run writes to metrics.jsonl, to the console and to TensorBoard. An experiment adds writers of its own:

    from framework import writers

    def make_writers(cfg):
        return [Losses(), writers.AsyncWriter(Dashboard(cfg.model.url))]

    class Losses(writers.Writer):
        def open(self, folder, step):
            self._path = folder / "losses.csv"
            lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
            self._path.write_text("".join(line for line in lines if int(line.partition(",")[0]) <= step))

        def scalars(self, step, values):
            if "loss" in values:
                with self._path.open("a") as file:
                    file.write(f"{step},{values['loss']!r}\n")

A writer overrides the methods for what it can show. `AsyncWriter` runs a slow writer in a thread of its own, so that
training does not wait. Only the chief makes writers; other workers write nothing.

Resume: `open` comes first and says at which step the run goes on. A writer drops what it holds of later steps, because
the run writes those steps again. Before each checkpoint the run calls `flush`. A run that goes back before a non-finite
step closes its writers and makes new ones, as if it were resumed there.

Errors: an OSError, such as of a full disk, does what `checkpoint.on_error` says. Any other exception ends the run with
one line that names the writer. NaN and infinity are values like others.
"""

import abc
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from framework.errors import MachineError, RunError, UserError
from framework.experiment import user_code

_MOST_WAITING = 8  # calls
_CANNOT_WRITE = (OSError, tf.errors.OpError)


class Writer:
    """Takes what a run reports. A subclass overrides what it can show; the other methods do nothing."""

    @property
    def name(self) -> str:
        """The name of the writer in messages."""
        return type(self).__name__

    def open(self, folder: Path, step: int) -> None:
        """Begins to write; called once, before all other methods.

        Args:
          folder: the run folder.
          step: where the run continues; 0 for a new run. Drop what is stored of later steps: the run writes them again.
        """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a row of numbers; an evaluation names its numbers 'eval/<split>/<metric>'."""

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the distribution of each array, of any shape; names are like 'weights/dense/kernel'."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures: [n, height, width] or [n, height, width, 1 | 3 | 4], uint8, or float from 0 to 1."""

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts, in Markdown."""

    def graph(self, graph: tf.Graph) -> None:
        """Writes the graph of the model; once a run."""

    def layers(self, table: str) -> None:
        """Writes the table of the model's layers, in aligned columns; once a run."""

    def hyperparameters(self, values: Mapping[str, bool | float | str]) -> None:
        """Writes what the run is trained with: {key of the config: value}; once a run."""

    def flush(self) -> None:
        """Returns when everything written so far is on disk."""

    def close(self) -> None:
        """Flushes and ends; nothing is written afterwards."""


class _Relay(Writer, abc.ABC):
    """A writer that passes each call on."""

    def open(self, folder: Path, step: int) -> None:
        self._pass("open", folder, step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._pass("scalars", step, values)

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        self._pass("histograms", step, arrays)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._pass("images", step, images)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._pass("texts", step, texts)

    def graph(self, graph: tf.Graph) -> None:
        self._pass("graph", graph)

    def layers(self, table: str) -> None:
        self._pass("layers", table)

    def hyperparameters(self, values: Mapping[str, bool | float | str]) -> None:
        self._pass("hyperparameters", values)

    def flush(self) -> None:
        self._pass("flush")

    def close(self) -> None:
        self._pass("close")

    @abc.abstractmethod
    def _pass(self, method: str, *arguments: Any) -> None:
        """Passes a call of `method` on."""


class MultiWriter(_Relay):
    """Passes each call to every writer, in order; a context that closes the writers.

    Args:
      writers: where each call goes.
      on_error: what an OSError of a writer leads to: 'stop' raises RunError, 'continue' logs the error each time.
    """

    def __init__(self, writers: Sequence[Writer], on_error: str = "stop") -> None:
        self._writers = tuple(writers)
        self._goes_on = on_error == "continue"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Checks the numbers first, as `images` does, and passes them on as floats."""
        if "step" in values:
            raise ValueError("a row has its 'step' already: give this number another name")
        super().scalars(step, {name: _number(name, value) for name, value in values.items()})

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Checks the pictures first: the caller is told, and not a thread that comes upon them later."""
        for name, pictures in images.items():
            shape = np.shape(pictures)
            if len(shape) != 3 and (len(shape) != 4 or shape[3] not in (1, 3, 4)):
                raise ValueError(
                    f"the pictures '{name}' have shape {list(shape)}: write [n, height, width] or [n, height, width,"
                    " channels] with 1, 3 or 4 channels"
                )
        super().images(step, images)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Checks the texts first, as `images` does."""
        for name, text in texts.items():
            if not isinstance(text, str):
                raise ValueError(f"the text '{name}' is of type {type(text).__name__}: write a str")
        super().texts(step, texts)

    def close(self) -> None:
        """Closes every writer, also if one of them fails; the first error is raised at the end."""
        errors: list[Exception] = []
        for writer in self._writers:
            try:
                self._call(writer, "close")
            except (RunError, UserError) as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def __enter__(self) -> "MultiWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._goes_on = self._goes_on or kind is not None
        try:
            self.close()
        except (RunError, UserError) as second:
            if kind is None:
                raise
            logging.error("%s", second)  # the user sees the first error

    def _pass(self, method: str, *arguments: Any) -> None:
        for writer in self._writers:
            self._call(writer, method, *arguments)

    def _call(self, writer: Writer, method: str, *arguments: Any) -> None:
        try:
            getattr(writer, method)(*arguments)
        except _CANNOT_WRITE as error:
            message = f"{writer.name} cannot write: {' '.join(str(error).split())}."
            if not self._goes_on:
                raise MachineError(f"{message} Mend that and type the same command again.") from error
            logging.error("%s", message)


class OwnWriter(_Relay):
    """Passes each call to a writer of the experiment, and names that writer in the line about what it raises.

    Args:
      writer: of `make_writers`.
      folder: the run folder, which gets the traceback.
    """

    def __init__(self, writer: Writer, folder: Path) -> None:
        self._writer = writer
        self._folder = folder

    @property
    def name(self) -> str:
        return self._writer.name

    def _pass(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self._writer, method)(*arguments)
        except _CANNOT_WRITE:
            raise
        except BaseException:
            with user_code.explained(self._folder), user_code.named(f"writer '{self.name}'"):
                raise


class AsyncWriter(_Relay):
    """Passes each call to `writer` in a thread of its own, in order, while training goes on.

    Callers must not change what they have passed. A call raises what an earlier one raised in the thread; `flush` and
    `close`, which wait for the thread, raise the rest.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        # If the writer falls this many calls behind, the caller waits: histograms must not pile up in memory.
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def name(self) -> str:
        return self._writer.name

    def open(self, folder: Path, step: int) -> None:
        self._writer.open(folder, step)

    def flush(self) -> None:
        self._calls.join()
        self._raise()
        self._writer.flush()

    def close(self) -> None:
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None
        try:
            self._raise()
        finally:
            self._writer.close()

    def _pass(self, method: str, *arguments: Any) -> None:
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="writer")
            self._thread.start()
        self._calls.put(lambda: getattr(self._writer, method)(*arguments))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:
                self._error = self._error or error
            finally:
                self._calls.task_done()
        self._calls.task_done()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def _number(name: str, value: Any) -> float:
    """Returns a number as a float.

    Raises:
      ValueError: it is none; a text of digits is none either.
    """
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"the number '{name}' is of type {type(value).__name__}: write a float")
