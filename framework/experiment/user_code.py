"""Turns an exception of the experiment's code into one line, and writes its traceback to a file.

    with user_code.explained(run.workdir):
        train(run)       # UserError: x.py:12: loss: ValueError: … The traceback is in runs/first/failure/traceback.txt.

An exception belongs to the experiment if a line of its file, or of an own module, led to it. An exception of the
framework alone is a fault of the framework and passes through. Nothing here imports TensorFlow.
"""

import contextlib
import errno
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from framework.errors import XLA_LISTS, RunError, UserError, said_by_tensorflow
from framework.files import write_bytes

KERAS_3 = "It is of Keras 3, whose layers, models and optimizers are others: write `import tf_keras as keras`."
TRACEBACK = Path("failure", "traceback.txt")  # of a run folder

_MOST_CHARACTERS = 300
_FUNCTION = "function_of_the_experiment"  # attribute of an exception
_OBJECT = "object_of_the_experiment"  # another
_FRAMEWORK = Path(__file__).resolve().parents[1]
_NOT_OWN = (
    f"{_FRAMEWORK}{os.sep}",
    str(_FRAMEWORK.parent / "launch.py"),
    *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
# The form in which TensorFlow lists the lines that made a failed op, and AutoGraph the lines of a converted function.
_LISTED = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')

# What TensorFlow says of an operation of a gradient, which no line of the experiment made.
_OF_GRADIENT = re.compile(
    r"do not yet have a deterministic XLA|gradient registry has no entry|Detected unsupported operations"
)
_NODE = re.compile(r"\{\{node (?:gradient_tape/)?(?:while(?:_\d+)?/)*([^}]+)\}\}")

_NO_VALUE = "A tensor has no value while the step is traced"
# (regex searched in the message, text that replaces the message or '' to keep it, what to write)
_ADVICE = (
    (
        r"symbolic `?tf\.Tensor`? as a Python `?bool",
        f"{_NO_VALUE}, so Python's `if`, `while`, `and`, `or` and `not` cannot ask for it.",
        "Write tf.where(condition, a, b), tf.cond, tf.while_loop or tf.logical_and.",
    ),
    (
        r"Iterating over a symbolic",
        f"{_NO_VALUE}, so Python's `for` cannot run over it.",
        "Write tf.unstack(x), tf.map_fn or tf.while_loop.",
    ),
    (
        r"SymbolicTensor' object (has no attribute 'numpy'|cannot be)|not '?SymbolicTensor|passed to SymbolicTensor"
        r"|Cannot convert a symbolic|NumPy array conversion is not supported|Tensor is unhashable",
        f"{_NO_VALUE}, so float(), int(), range(), .numpy(), a list and NumPy cannot take it.",
        "Write tf.cast and other functions of tf.",
    ),
    (
        r"Detected unsupported operations when trying to compile graph .* on XLA_\w+: (\w+(?:, \w+)*) \(",
        r"XLA has no operation \1.",
        "Use --config.train.compile=graph, or write it with other functions of tf.",
    ),
    (
        r"MaxPool gradient ops do not yet have a deterministic XLA",
        "XLA has no deterministic gradient of max pooling.",
        "Use layers.MaxPooling2D of the framework, for windows that do not overlap, or --config.train.compile=graph, or"
        " --config.runtime.deterministic=False.",
    ),
    (
        r"gradient registry has no entry for: (\w+)",
        r"TensorFlow has no gradient of \1.",
        "Do it in the transform of the data, or write it with other functions of tf.",
    ),
    (r"A KerasTensor cannot be used as input to a TensorFlow", "a layer of tf_keras got a KerasTensor.", KERAS_3),
    (r"<class 'keras\.|keras\.src\.", "", KERAS_3),
    (r"No module named '([\w.]+)'", "", "Install it, or put the file beside the experiment."),
    (r"attempted relative import", "", "The experiment is a file, not a package: write `import helpers`."),
    (r"Cannot parse tensor from proto", "A tensor of this size does not fit memory.", "Make it smaller."),
    (r"maximum recursion depth", "", "A function calls itself without end."),
)


@contextlib.contextmanager
def explained(folder: Path | None = None) -> Iterator[None]:
    """Raises a UserError for an exception of the experiment's code inside the context, which is its cause.

    Args:
      folder: a run folder; if it has a config.json, the traceback is written there.

    Raises:
      UserError: with file, line, function, type and message.
    """
    try:
        yield
    except (UserError, RunError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{error.filename} is too long for the name of a file. Type a shorter one.") from error
        places = [getattr(error, _OBJECT, None), _place(error)]
        place = ": ".join(filter(None, places)) or _in_step(error)
        if place is None:
            raise
        said = f"{place}: {_kind(error)}: {_message(error)} {_kept(error, folder)}"
        raise UserError(said) from error


@contextlib.contextmanager
def calling(name: str) -> Iterator[None]:
    """Blames a function of the experiment for an exception inside the context to which no line of its file led.

    An example is a function of a library that the experiment gives one of the names of `FUNCTIONS`.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(AttributeError):
            setattr(error, _FUNCTION, name)
        raise


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Begins the line about an exception inside the context with `what`, such as "evaluator 'mistakes'".

    A file and a line alone do not say which of several objects that one function made has failed.
    """
    try:
        with staying(what):
            yield
    except BaseException as error:
        with contextlib.suppress(AttributeError):
            setattr(error, _OBJECT, what)
        raise


@contextlib.contextmanager
def staying(what: str) -> Iterator[None]:
    """Refuses a change of the working folder inside the context: --workdir and --config, as typed, are relative to it.

    An exception goes on once the folder is that of before, so that the traceback is written into the run folder.

    Args:
      what: the function or object that is called, for the message.
    """
    before = _working_folder()
    try:
        yield
    except BaseException:
        _go_back(before)
        raise
    if now := _go_back(before):
        raise UserError(
            f"{what} changed the working folder from {before} to {now}, but the run folder and other paths, as typed,"
            " are relative to the first. Open files by absolute paths, or go back with os.chdir before it returns."
        )


def _go_back(before: str) -> str:
    """Makes `before` the working folder, and returns the one that was; '' if nothing had changed."""
    now = _working_folder()
    if not before or now in ("", before):
        return ""
    with contextlib.suppress(OSError):  # it was removed meanwhile
        os.chdir(before)
    return now


def _working_folder() -> str:
    """Returns the working folder; '' if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def one_line(text: str, most: int = 800) -> str:
    """Returns `text` on one line for a terminal: unprintable characters escaped, very long words and texts cut."""
    words = [word if len(word) <= _MOST_CHARACTERS else f"{word[:120]}…{word[-40:]}" for word in text.split()]
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(words))
    return line if len(line) <= most else f"{line[: most - most // 4]} … {line[3 - most // 4 :]}"


def check_text(name: str, text: str) -> None:
    """Raises UserError if `text`, called `name`, cannot be part of a path or of a message."""
    is_broken = any("\ud800" <= letter <= "\udfff" for letter in text)  # from bytes of an argument that are not UTF-8
    if is_broken or "\0" in text:
        raise UserError(f"{name} has {'bytes that are not UTF-8' if is_broken else 'a NUL character'}. Type it again.")


def is_own(file: str) -> bool:
    """Returns whether a file is the user's: not of the framework, of Python or of an installed package."""
    if file.startswith("<") or file.endswith(".pyx") or "__autograph_generated_file" in file:
        return False  # made at run time, or in a compiled package such as 'numpy/random/_common.pyx'
    path = os.path.abspath(file)
    return not path.startswith(_NOT_OWN) and not {"site-packages", "dist-packages"} & set(Path(path).parts)


def shown_path(file: str | os.PathLike[str]) -> str:
    """Returns a path as a user would type it: relative below the working folder, else absolute."""
    path = os.path.abspath(file)
    try:
        below = os.path.relpath(path)
    except (OSError, ValueError):
        return path
    return path if below.startswith(os.pardir) else below


def _place(error: BaseException) -> str | None:
    """Returns 'x.py:12: loss' for the innermost line of the experiment that led to `error`; None if none did."""
    if isinstance(error, SyntaxError) and error.filename and is_own(error.filename):
        return f"{shown_path(error.filename)}:{error.lineno}"
    lines = [(file, line, name) for file, line, name in _frames(error.__traceback__) if is_own(file)]
    # The message of an exception of AutoGraph, or of a running op, lists the lines, the innermost last.
    if hasattr(error, "ag_error_metadata") or not lines:
        lines = _listed(error) or lines
    if not lines:
        return getattr(error, _FUNCTION, None)
    file, line, name = lines[-1]
    return f"{shown_path(file)}:{line}{'' if name == '<module>' else f': {name}'}"


def _in_step(error: BaseException) -> str | None:
    """Returns where a step fails without a wrong line of the experiment; None if it does not."""
    if _is_out_of_memory(error):  # the sizes in the config are too large
        return "a step"
    if not _OF_GRADIENT.search(_raw(error)):
        return None
    node = _NODE.search(_raw(error))
    return f"a step, at {node[1]}" if node else "a step"


def _listed(error: BaseException) -> list[tuple[str, int, str]]:
    """Returns the lines of the experiment in a message of TensorFlow, without the lines that called the framework."""
    for block in _raw(error).split(XLA_LISTS):
        # XLA omits the first slash.
        entries = [(os.path.join(os.sep, file), int(line), name) for file, line, name in _LISTED.findall(block)]
        first = next((place for place, entry in enumerate(entries) if entry[0].startswith(_NOT_OWN[:2])), 0)
        if own := [entry for entry in entries[first:] if is_own(entry[0])]:
            return own
    return []


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, int, str]]:
    for frame, line in traceback.walk_tb(trace):
        yield frame.f_code.co_filename, line, frame.f_code.co_name


def _kind(error: BaseException) -> str:
    return "sys.exit" if isinstance(error, SystemExit) else type(error).__name__


def _message(error: BaseException) -> str:
    """Returns the message of the exception, with advice if there is some; it ends with a full stop."""
    if isinstance(error, SystemExit):
        return (
            f"status {error.code}. An experiment does not end the process: raise an exception that says what is wrong."
        )
    raw = _text(error)
    if isinstance(error, ModuleNotFoundError) and (beside := _beside(error)):
        return f"{_sentence(raw)} {beside} is found by `import {error.name}` alone, not by importlib."
    for pattern, instead, advice in _ADVICE:
        if match := re.search(pattern, raw):
            return f"{match.expand(instead) or _sentence(raw)} {advice}"
    if isinstance(error, AttributeError) and (
        key := re.fullmatch(r"\"'(\w+)'\"", raw)
    ):  # the wording of ml_collections
        return f"the config has no key '{key[1]}'. Set it in get_config, in config.model or config.data."
    if _is_out_of_memory(error):
        return f"{_sentence(raw or 'out of memory')} Use a smaller --config.data.batch_size, or train.micro_batches."
    return _sentence(raw or "it has no message")


def _beside(error: ModuleNotFoundError) -> str | None:
    """Returns the file of a missing module if it lies beside the code that imports it."""
    name = Path(*(error.name or "").split("."))
    for file, _, _ in _frames(error.__traceback__):
        for path in (Path(file).parent / name.with_suffix(".py"), Path(file).parent / name / "__init__.py"):
            if error.name and is_own(file) and path.is_file():
                return shown_path(path)
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


def _text(error: BaseException) -> str:
    """Returns the message; for an error in a function that AutoGraph converted, the message of the original error."""
    cause = getattr(error, "ag_error_metadata", None)
    return _raw(error) if cause is None else str(cause.cause_message).removeprefix(f"{_kind(error)}: ")


def _raw(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception of the experiment whose __str__ fails too
        return ""


def _sentence(raw: str) -> str:
    """Returns the message without the text that TensorFlow and Keras wrap around it."""
    said = one_line(said_by_tensorflow(raw), _MOST_CHARACTERS)
    return said if said.endswith((".", "!", "?", "…")) else f"{said}."


def _kept(error: BaseException, folder: Path | None) -> str:
    """Writes the traceback into `folder` if that is a run folder; returns a sentence that says where to find it."""
    if folder is not None and (folder / "config.json").is_file():
        path = folder / TRACEBACK
        with contextlib.suppress(OSError):  # a full disk must not hide the exception itself
            path.parent.mkdir(exist_ok=True)
            text = "".join(traceback.format_exception(error))
            write_bytes(path, text.encode(errors="backslashreplace"))
            return f"The traceback is in {path}."
    return "--debug shows the traceback."
