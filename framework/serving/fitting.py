"""Inputs that fit a signature, and batches of them.

    arrays = checked({"image": images}, served, "serving_default")      # a ServingError says what does not fit
    batches = [*parts(arrays, 32)]
    put_together([send(batch) for batch in batches], batches)

Nothing here imports TensorFlow.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from framework.errors import near
from framework.serving.errors import DtypeError, InputNameError, ShapeError
from framework.serving.signatures import Served, Tensor

SERVING = "serving_default"  # the signature that servers call by default
Arrays = dict[str, np.ndarray]


def checked(inputs: Mapping[str, Any], served: Served, name: str) -> Arrays:
    """Returns inputs as the arrays that a signature takes; texts as bytes in object arrays.

    Args:
      inputs: {name: array or nested lists}.
      served: the signature.
      name: its name, for errors.

    Raises:
      InputNameError, DtypeError, ShapeError: what does not fit; nothing is converted but str to bytes (UTF-8).
    """
    wanted = sorted(served.inputs)
    for key in inputs:
        if key not in served.inputs:
            raise InputNameError(
                f"signature '{name}' has no input '{key}', but {', '.join(wanted)}.{near(key, wanted)}"
            )
    for key in wanted:
        if key not in inputs:
            raise InputNameError(f"signature '{name}' needs the input '{key}' as {served.inputs[key]}.")
    return {key: _array(key, inputs[key], served.inputs[key], name) for key in wanted}


def _array(key: str, value: Any, tensor: Tensor, name: str) -> np.ndarray:
    if np.ma.is_masked(value):
        raise DtypeError(f"input '{key}' is masked, and masks are not sent. Type e.g. .filled(0).")
    is_text = tensor.dtype is not None and tensor.dtype.kind == "O"
    try:
        array = np.asarray(value, object if is_text else None)
    except ValueError as error:
        raise ShapeError(f"input '{key}' is no array: its rows have different lengths.") from error
    if is_text:
        array = _texts(key, array, name)
    elif array.dtype != tensor.dtype:
        hint = f" Type .astype('{tensor.dtype.name}')." if tensor.dtype is not None and array.dtype != object else ""
        kind = array.dtype.name if array.dtype.isnative else f"{array.dtype.name} in the byte order of other machines"
        raise DtypeError(f"input '{key}' is {kind}; signature '{name}' takes {tensor}.{hint}")
    if not tensor.takes(array.shape):
        raise ShapeError(f"input '{key}' has shape {list(array.shape)}; signature '{name}' takes {tensor}.")
    return array


def _texts(key: str, array: np.ndarray, name: str) -> np.ndarray:
    """Returns an object array of bytes, of an array of bytes or str."""
    texts = np.empty(array.shape, object)
    for place, value in np.ndenumerate(array):
        if not isinstance(value, str | bytes):
            kind = type(value).__name__
            raise DtypeError(f"input '{key}' has a value of type {kind}; signature '{name}' takes bytes or str.")
        try:
            texts[place] = value.encode() if isinstance(value, str) else bytes(value)
        except UnicodeEncodeError as error:
            raise DtypeError(f"input '{key}' has the text {value!r}, which is no UTF-8. Send bytes.") from error
    return texts


def rows_of(arrays: Arrays) -> int:
    """Returns the number of rows, the first dimension of every input.

    Raises:
      ShapeError: inputs have different numbers of rows, or one has none, so that they cannot be sent in parts.
    """
    sizes = {key: len(array) if array.ndim else None for key, array in arrays.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        shown = ", ".join(f"'{key}' {'has no rows' if size is None else size}" for key, size in sizes.items())
        raise ShapeError(f"inputs cannot be sent in parts, because their numbers of rows differ: {shown}.")
    return len(next(iter(arrays.values())))


def check_divisible(served: Served) -> None:
    """Raises ShapeError if the signature says of an input or output that its first dimension is not the rows.

    Sizes of an answer may agree with the rows of a part by chance.
    """
    for kind, tensors in (("input", served.inputs), ("output", served.outputs)):
        for key, tensor in tensors.items():
            if tensor.shape is not None and (not tensor.shape or tensor.shape[0] is not None):
                raise ShapeError(
                    f"{kind} '{key}' is {tensor}, with no dimension for the rows, so they cannot be sent in parts."
                    " Leave max_batch out."
                )


def parts(arrays: Arrays, max_batch: int) -> Iterator[Arrays]:
    """Yields the rows of inputs, `max_batch` at a time."""
    for start in range(0, rows_of(arrays), max_batch):
        yield {key: array[start : start + max_batch] for key, array in arrays.items()}


def put_together(answers: Sequence[Arrays], batches: Sequence[Arrays]) -> Arrays:
    """Returns the outputs of parts as those of the whole.

    Args:
      answers: the outputs of each part.
      batches: its inputs.

    Raises:
      ShapeError: an output does not have a row for each row of its part.
    """
    for answer, part in zip(answers, batches, strict=True):
        for key, output in answer.items():
            if not output.ndim or len(output) != rows_of(part):
                raise ShapeError(
                    f"output '{key}' has shape {list(output.shape)} for {rows_of(part)} rows, so answers of several"
                    " requests cannot be put together. Leave max_batch out."
                )
    return {key: np.concatenate([answer[key] for answer in answers]) for key in answers[0]}
