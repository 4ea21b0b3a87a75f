"""Sources that read files: TFRecord, ArrayRecord, folders of pictures, columns of Parquet and CSV.

source = tf_records("cifar10/train-*.tfrecord", Examples({"image": Image((32, 32)), "label": Label(classes=10)}))
source.take(np.array([3, 20_000]))        # {"image": uint8 [2, 32, 32, 3], "label": int32 [2]}
"""

from framework.data.files.examples import Examples, Label
from framework.data.files.opening import array_records, image_folder, tf_records
from framework.data.files.pictures import Image
from framework.data.files.tables import columns

__all__ = ["Examples", "Image", "Label", "array_records", "columns", "image_folder", "tf_records"]
