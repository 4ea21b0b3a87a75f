"""What the signatures of a served model take and give, as NumPy dtypes and shapes.

    specs = of_json(answer["metadata"]["signature_def"]["signature_def"])
    specs["serving_default"].inputs["image"]        # Tensor(dtype=dtype('float32'), shape=(None, 28, 28))

Nothing here imports TensorFlow.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

# Names of tensorflow.DataType, and the dtypes that NumPy arrays of them have; texts are bytes in object arrays.
DTYPES = {
    "DT_FLOAT": np.dtype(np.float32),
    "DT_DOUBLE": np.dtype(np.float64),
    "DT_HALF": np.dtype(np.float16),
    "DT_BFLOAT16": np.dtype(ml_dtypes.bfloat16),
    "DT_INT8": np.dtype(np.int8),
    "DT_INT16": np.dtype(np.int16),
    "DT_INT32": np.dtype(np.int32),
    "DT_INT64": np.dtype(np.int64),
    "DT_UINT8": np.dtype(np.uint8),
    "DT_UINT16": np.dtype(np.uint16),
    "DT_UINT32": np.dtype(np.uint32),
    "DT_UINT64": np.dtype(np.uint64),
    "DT_BOOL": np.dtype(np.bool_),
    "DT_STRING": np.dtype(object),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a signature.

    Attributes:
      dtype: of its NumPy arrays; object for texts, which are bytes. None if NumPy has no such dtype.
      shape: None for a dimension of any size; None as a whole if the number of dimensions is free.
    """

    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        name = "unknown" if self.dtype is None else "bytes" if self.dtype == object else self.dtype.name
        shape = "of any shape" if self.shape is None else list(self.shape)
        return f"{name} {shape}"

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Returns whether an array of this shape fits."""
        if self.shape is None:
            return True
        sizes = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(size in (None, given) for size, given in sizes)


@dataclasses.dataclass(frozen=True)
class Served:
    """A signature of a served model: {name: Tensor} of its inputs and outputs."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def of_json(signatures: Mapping[str, Any]) -> dict[str, Served]:
    """Returns {name: signature} of the SignatureDefs of a model, in the JSON form of their proto.

    Those of TensorFlow's own, such as __saved_model_init_op, are left out.
    """
    return {
        name: Served(_tensors(of.get("inputs", {})), _tensors(of.get("outputs", {})))
        for name, of in signatures.items()
        if not name.startswith("__")
    }


def _tensors(infos: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: Tensor(DTYPES.get(info.get("dtype", "")), _shape(info.get("tensor_shape", {})))
        for name, info in infos.items()
    }


def _shape(shape: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    if shape.get("unknown_rank"):
        return None
    sizes = [int(dimension.get("size", 0)) for dimension in shape.get("dim", ())]
    return tuple(None if size < 0 else size for size in sizes)
