"""Data: sources of examples, and the batches that the step reads.

    source = data.load_mnist("mnist", "train")              # or data.Source({"x": x, "y": y}, origin="simulation")
    return data.make_batches(source, cfg, training=split == "train", transform=to_float)

A `Source` is read by index, `make_batches` orders its examples, `ReplayBuffer` is filled by the step itself, and
`Batches` is the protocol of all of them. `Buckets` give
batches of several shapes. `IndexedSource` is the protocol of sources; a map-style data set of another
library is a source as it is, and `from_items` gives it a name. `data/files/` reads TFRecord, ArrayRecord, folders of
pictures and columns, `data/sets/` has the data sets that come by name, `augment` the functions of a batch that change
pictures at random, and `text` vocabularies and readers of texts.
"""

from framework.data import augment, text
from framework.data.batches import Batches, make_batches
from framework.data.buckets import Buckets
from framework.data.files import Examples, Image, Label, array_records, columns, image_folder, tf_records
from framework.data.items import from_items
from framework.data.replay_buffer import ReplayBuffer
from framework.data.sets.cifar import load_cifar10
from framework.data.sets.cmudict import load_cmudict
from framework.data.sets.mnist import load_mnist
from framework.data.sets.movielens import load_movielens
from framework.data.sources import IndexedSource, Source

__all__ = [
    "Batches",
    "Buckets",
    "Examples",
    "Image",
    "IndexedSource",
    "Label",
    "ReplayBuffer",
    "Source",
    "array_records",
    "augment",
    "columns",
    "from_items",
    "image_folder",
    "load_cifar10",
    "load_cmudict",
    "load_mnist",
    "load_movielens",
    "make_batches",
    "text",
    "tf_records",
]
