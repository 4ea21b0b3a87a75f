"""Made-up pictures: as JPEGs in TFRecord shards, and a set of the shape of CIFAR-10 that a network can learn."""

import numpy as np
import tensorflow as tf


def jpeg(image):
    return tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False).numpy()


def example(encoded, label):
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/format": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"jpeg"])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_records(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def write_set(folder, split, image, label, shards=1):
    for shard in range(shards):
        rows = range(shard * len(label) // shards, (shard + 1) * len(label) // shards)
        path = folder / f"{split}-{shard:05d}-of-{shards:05d}.tfrecord"
        write_records(path, [example(jpeg(image[row]), int(label[row])) for row in rows])


def made_up(split, count, noise=0.7, shape=(32, 32, 3)):
    """Ten fixed pictures of 4 x 4 squares, under noise: uint8 [count, *shape] and int32 [count], each as often.

    A shift by a few pixels leaves them alike, so that a network learns them under augmentation too.
    """
    rng = np.random.default_rng(0 if split == "train" else 1)
    squares = np.random.default_rng(7).uniform(0, 255, (10, shape[0] // 4, shape[1] // 4, *shape[2:]))
    prototypes = squares.repeat(4, axis=1).repeat(4, axis=2)
    label = (np.arange(count) % 10).astype(np.int32)
    image = (1 - noise) * prototypes[label] + noise * rng.uniform(0, 255, (count, *shape))
    return image.astype(np.uint8), label
