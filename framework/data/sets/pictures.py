"""TFRecord shards of pictures with a label, decoded once into arrays.

    arrays = read_pictures(folder, "train", (32, 32, 3), classes=10)
    arrays["image"], arrays["label"]                   # uint8 [n, 32, 32, 3], int32 [n], in the order of the files

Each record is a `tf.train.Example` with the features `image/encoded` (bytes of a JPEG or PNG) and `label` (int64). All
pictures have one shape, and together they fit memory.
"""

from pathlib import Path

import numpy as np

from framework.data.fetch import DamagedError
from framework.data.files.examples import Examples, Label
from framework.data.files.opening import tf_records
from framework.data.files.pictures import Image
from framework.data.files.records import in_threads
from framework.data.files.source import ADVICE
from framework.errors import DataError, UserError

_DECODED_AT_ONCE = 1000


def read_pictures(folder: Path, split: str, shape: tuple[int, int, int], classes: int) -> dict[str, np.ndarray] | None:
    """Returns the pictures and labels of the shards '<split>-00000-of-00004.tfrecord' … of a folder, in their order.

    Args:
      folder: where the shards are.
      split: the name at their beginning.
      shape: height, width and channels of every picture.
      classes: labels are from 0 to `classes - 1`.

    Returns:
      {'image': uint8 [n, *shape], 'label': int32 [n]}; None if there is no such shard.

    Raises:
      DamagedError: a shard is missing or has changed since its index was made, or a record is damaged; the message
        names the file, and the record.
    """
    shards = sorted(folder.glob(f"{split}-*-of-*.tfrecord"))
    if not shards:
        return None
    fields = Examples({"image": Image(shape[:2], channels=shape[2]), "label": Label(classes)})
    try:
        source = tf_records(shards, fields)
        rows = np.array_split(np.arange(len(source)), -(-len(source) // _DECODED_AT_ONCE))
        chunks = in_threads(source.take, rows)
    except (UserError, DataError) as error:
        problem = str(error).removesuffix(f" {ADVICE}").removesuffix(".")
        raise DamagedError(folder, f"cannot be read: {problem}") from error
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
