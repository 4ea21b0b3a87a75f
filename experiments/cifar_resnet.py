"""CIFAR-10 with residual networks: from the network of a tutorial to the one of He et al., 2015.

    python launch.py --config=experiments/cifar_resnet.py --workdir=runs/cifar

Without --data_dir, the archive is downloaded (170 MB, once). Presets, by --config=experiments/cifar_resnet.py:NAME:

* `small`, the default: a convolution, a residual block, a dense layer. About three minutes on two free CPU cores;
  expect a test accuracy of 0.77 (experiments/README.md).
* `resnet20`: He et al., 2015, 64,000 steps of 128 pictures, about two hours on two free cores; it resumes. The paper
  has 0.9125; pictures re-encoded as JPEG gave 0.8777.
* `fast`: the network and optimizers of airbench (Jordan, 2024) with Muon, 750 steps of 2,000 pictures in bfloat16, 35
  minutes on two free cores. It reports the accuracy by six views of each picture as `eval/views/accuracy`. Evaluate at
  its end: before the rate has fallen, the weights move faster than the averages of BatchNormalization.
* `fine_tune`: from a run of `resnet20` to Fashion-MNIST (experiments/README.md, "Fine-tune").

On several GPUs (not run): --config.runtime.strategy=mirrored --config.data.replica_batch_size=128.
There, BatchNorm normalises by the pictures of its replica; --config.model.normalization=sync_batch by those of all.
On a CPU, float16 takes --config.train.compile=xla_gradients; bfloat16 is faster. Over 500 steps of `small` the loss of
both, and of two replicas, stays within a tenth of that of float32 on one device (tests/test_cifar_resnet.py).
"""

import functools
import itertools

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import config, data, evaluators, export, layers, losses, metrics, precision
from framework.data import augment

SHAPE = (32, 32, 3)
MEAN = np.array([0.4914, 0.4822, 0.4465])  # of red, green and blue in the training pictures, from 0 to 1
DEVIATION = np.array([0.2470, 0.2435, 0.2616])
CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion_mnist": ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    "mnist": tuple("0123456789"),
}
GREY = 120  # about the mean of the training pictures, from 0 to 255
SHOWN = 16  # worst mistakes
WHITENED = 5000  # training pictures whose windows the kernel of `fast` makes white

PRESETS = {
    "small": {},
    "resnet20": {
        "model.net": "resnet",
        "model.weight_decay": 1e-4,
        "train.duration": "64000 steps",
        "optimizer.nesterov": False,
        "schedule.name": "piecewise",
        "schedule.warmup": "",
        "schedule.boundaries": ("32000 steps", "48000 steps"),
        "schedule.factors": (0.1, 0.01),
        "eval.every": "4000 steps",
        "checkpoint.every": "1000 steps",
    },
    "fast": {
        "model.net": "fast",
        "model.weight_decay": 0.0,
        "model.smoothing": 0.2,
        "data.batch_size": 2000,
        "data.remainder": "drop",
        "data.crop": 4,
        "data.fill": "reflect",
        "data.flip": "alternating",
        "data.cutout": 8,
        "data.views": True,
        "train.duration": "30 epochs",  # published: 8, with a crop of 2 and no cutout
        "train.precision": "bfloat16",
        "train.block_steps": 5,
        "optimizer.name": "muon",
        "optimizer.momentum": 0.6,
        "optimizer.newton_schulz_steps": 3,
        "optimizer.newton_schulz_dtype": "bfloat16",
        "optimizer.rescale_weights": True,
        # The recipe sums the loss over 2,000 pictures; for a mean its rates of SGD are 2,000 times 0.053 and 0.67: here
        # as factors of 0.24. Its decay, 0.004 a step, goes through the momentum, which makes it 1 / 0.15 as large.
        "optimizer.weight_decay": 0.004 / 0.15 / (2000 * 0.053),
        "optimizer.groups": (
            "conv_.*/kernel: decay=0",
            f"whiten/bias: name=sgd momentum=0.85 nesterov=True lr={2000 * 0.053 / 0.24:.6g} until=3epochs",
            f"norm_.*/beta: name=sgd momentum=0.85 nesterov=True lr={2000 * 0.053 / 0.24:.6g}",
            f"head/kernel: name=sgd momentum=0.85 nesterov=True lr={2000 * 0.67 / 0.24:.6g} decay={0.053 / 0.67:.6g}",
        ),
        "schedule.name": "polynomial",
        "schedule.learning_rate": 0.24,
        "schedule.warmup": "",
        "eval.every": "",
        "checkpoint.every": "50 steps",
    },
    "fine_tune": {
        "model.net": "resnet",
        "model.weight_decay": 1e-4,
        "data.name": "fashion_mnist",
        "train.duration": "3 epochs",
        "schedule.learning_rate": 0.02,
        # Stage 1 stays as it is; the later a stage, the faster it learns; the new head learns at the full rate.
        "optimizer.groups": (
            "resnet_.*/(stem.*|stage_1.*)/.*: frozen",
            "resnet_.*/stage_2.*: lr=0.1",
            "resnet_.*/stage_3.*: lr=0.3",
        ),
    },
}


def get_config(arg: str) -> ConfigDict:
    """Returns the defaults, those of the preset `small`, and the preset `arg` on top."""
    cfg = config.base_config()
    cfg.data.name = "cifar10"  # or, for fine-tuning, fashion_mnist or mnist: framed to 32 x 32 pixels, in grey
    cfg.data.crop = 4  # the widest shift of a training picture, in pixels
    cfg.data.fill = "zeros"  # what a shift uncovers; or edge, reflect, symmetric
    cfg.data.flip = "random"  # or alternating, none
    cfg.data.cutout = 0  # side of the square of a training picture that turns grey, in pixels
    cfg.data.views = False  # whether evaluations also look at mirrored and shifted views of each picture
    cfg.model.net = "small"  # or resnet, fast
    cfg.model.depth = 20  # of resnet: 6 n + 2
    cfg.model.normalization = "batch"  # or sync_batch, layer, none: layers.make_normalization
    cfg.model.weight_decay = 5e-4  # of kernels: adds weight_decay / 2 * sum(w**2) to the loss
    cfg.model.smoothing = 0.0  # of labels
    cfg.train.duration = "10 epochs"
    cfg.train.compile = "graph"  # on a CPU, XLA takes twice the time for convolutions
    cfg.optimizer.name = "sgd"
    cfg.optimizer.momentum = 0.9
    cfg.optimizer.nesterov = True
    cfg.schedule.name = "cosine"
    cfg.schedule.learning_rate = 0.1
    cfg.schedule.warmup = "10%"
    cfg.checkpoint.best_metric = "test/accuracy"
    return config.apply_preset(cfg, arg, PRESETS)


def check_config(cfg: ConfigDict) -> None:
    """Refuses values of this file's own keys that the functions below cannot use."""
    config.check_choice("data.name", cfg.data.name, tuple(CLASSES))
    config.check_range("data.crop", cfg.data.crop, 0, 16)
    config.check_range("data.cutout", cfg.data.cutout, 0, 32)
    config.check_choice("data.flip", cfg.data.flip, ("random", "alternating", "none"))
    config.check_choice("model.net", cfg.model.net, ("small", "resnet", "fast"))
    config.check_choice("model.normalization", cfg.model.normalization, ("batch", "sync_batch", "layer", "none"))
    if cfg.model.net == "fast" and cfg.data.name != "cifar10":
        raise config.UserError(f"model.net=fast whitens pictures of cifar10, not data.name={cfg.data.name}.")
    config.check_range("model.smoothing", cfg.model.smoothing, 0, 0.99)
    config.check_range("model.weight_decay", cfg.model.weight_decay, 0, None)
    if any(group.endswith("frozen") for group in cfg.optimizer.groups) and not (cfg.init_from or cfg.resume_from):
        raise config.UserError(
            "optimizer.groups freezes layers, but without init_from their weights are random. Type e.g."
            " --config.init_from=runs/resnet20 --config.init_map=\"('.*/head/.* -> ',)\"."
        )


# ---- Data ----


def make_data(cfg: ConfigDict, split: str):
    """Returns the batches of a split: uint8 pictures [batch, 32, 32, 3], which the model normalises."""
    members = [] if cfg.data.name == "cifar10" else [framed]
    if split == "train":
        flips = {"random": [augment.Flip()], "alternating": [augment.AlternatingFlip()], "none": []}
        cutouts = [augment.Cutout(cfg.data.cutout, value=GREY)] if cfg.data.cutout else []
        members += [augment.PadAndCrop(cfg.data.crop, cfg.data.fill), *flips[cfg.data.flip], *cutouts]
    return data.make_batches(
        load(cfg.data.name, split, cfg.data.dir), cfg, training=split == "train", transform=augment.Chain(*members)
    )


def load(name: str, split: str, folder: str) -> data.Source:
    """Returns the source of a split."""
    return data.load_cifar10(split, folder) if name == "cifar10" else data.load_mnist(name, split, folder)


def framed(batch):
    """Returns the batch with grey pictures [batch, 28, 28] in a black frame, as colours [batch, 32, 32, 3]."""
    image = tf.pad(batch["image"], [[0, 0], [2, 2], [2, 2]])
    return {**batch, "image": tf.repeat(image[..., tf.newaxis], 3, axis=-1)}


# ---- Model ----


def make_model(cfg: ConfigDict) -> keras.Model:
    """Returns the network: pictures of 0..255 [batch, 32, 32, 3] -> logits [batch, 10]."""
    body = {"small": small, "resnet": resnet, "fast": fast}[cfg.model.net](cfg)
    return keras.Sequential([keras.Input(SHAPE), normalize(), *body])


def normalize() -> keras.layers.Layer:
    """Returns the layer that makes each channel of mean 0 and deviation 1; layers cast their input themselves."""
    return keras.layers.Rescaling(list(1 / (255 * DEVIATION)), list(-MEAN / DEVIATION), name="normalize")


def small(cfg: ConfigDict) -> list[keras.layers.Layer]:
    """Returns the residual network of a tutorial. The block projects its 32 channels to 64 for the sum."""
    norm = layers.make_normalization(cfg.model.normalization, name="stem_norm")
    return [
        keras.layers.Conv2D(32, 3, padding="same", use_bias=norm is None, kernel_initializer="he_normal", name="stem"),
        *([] if norm is None else [norm]),
        keras.layers.ReLU(),
        layers.MaxPooling2D(),
        layers.BasicBlock(64, normalization=cfg.model.normalization, name="block"),
        layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(10, dtype=precision.full(cfg.train.precision), name="head"),
    ]


def resnet(cfg: ConfigDict) -> list[keras.layers.Layer]:
    """Returns the residual network of He et al. for CIFAR."""
    return [layers.cifar_resnet(cfg.model.depth, normalization=cfg.model.normalization)]


def fast(cfg: ConfigDict) -> list[keras.layers.Layer]:
    """Returns the network of airbench (Jordan, 2024), whose first layer whitens windows of 2 x 2 pixels."""

    def conv_and_norm(number: int, filters: int, pool: bool) -> list[keras.layers.Layer]:
        others = keras.initializers.VarianceScaling(1 / 3, distribution="uniform")
        kernel = layers.Dirac(others)
        conv = keras.layers.Conv2D(
            filters, 3, padding="same", use_bias=False, kernel_initializer=kernel, name=f"conv_{number}"
        )
        norm = keras.layers.BatchNormalization(momentum=0.6, epsilon=1e-5, scale=False, name=f"norm_{number}")
        return [conv, *([layers.MaxPooling2D()] if pool else []), norm, keras.layers.Activation("gelu")]

    whiten = layers.WhiteningConv2D(name="whiten")
    source = load(cfg.data.name, "train", cfg.data.dir)
    pixels = source.take(np.arange(min(WHITENED, len(source))))["image"]
    whiten.adapt((pixels / 255 - MEAN) / DEVIATION)
    widths = (64, 64, 256, 256, 256, 256)
    groups = [conv_and_norm(number, width, number % 2 == 1) for number, width in enumerate(widths, 1)]
    head = keras.layers.Dense(
        10,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomUniform(-(3**0.5), 3**0.5),  # of deviation 1
        dtype=precision.full(cfg.train.precision),
        name="head",
    )
    last = [layers.MaxPooling2D(3), keras.layers.Flatten(), head]
    scale = keras.layers.Rescaling(1 / widths[-1], dtype=precision.full(cfg.train.precision), name="scale")
    return [whiten, keras.layers.Activation("gelu"), *itertools.chain(*groups), *last, scale]


def make_loss(cfg: ConfigDict):
    """Returns the loss: the mean cross-entropy, and weight_decay / 2 times the sum of the squares of all kernels."""

    def loss(model, batch, training):
        logits = model(batch["image"], training=training)
        weight = batch["weight"]
        smoothing = cfg.model.smoothing if training else 0.0
        terms = {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], weight, smoothing)}
        if cfg.model.weight_decay:
            kernels = [variable for variable in model.trainable_variables if variable.shape.rank > 1]
            squares = cfg.model.weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])
            count = tf.cast(tf.reduce_sum(weight), squares.dtype)
            terms["weight_decay"] = losses.Term(squares * count, count)  # the same for every example
        return terms, {"logits": logits}

    return loss


# ---- Evaluation ----


def make_metrics(cfg: ConfigDict):
    """Returns what is measured beside the loss; training computes the accuracy alone."""
    return {
        "accuracy": metrics.Accuracy(),
        "top5": TopFive(),
        "calibration_error": metrics.CalibrationError(logged="evaluation"),
        "confusion": metrics.ConfusionMatrix(10),
    }


class TopFive(metrics.TopKAccuracy):
    """Share of pictures whose label is among the five most likely classes."""

    logged = "evaluation"


def make_evaluators(cfg: ConfigDict):
    """Returns the accuracy of each class with the worst mistakes, and the accuracy by several views of a picture."""
    names = CLASSES[cfg.data.name]
    chosen = {"classes": functools.partial(by_class, names=names)}
    return chosen | ({"views": Views()} if cfg.data.views else {})


def by_class(run, names):
    """Reports the accuracy of each class, and the pictures whose wrong class got the most more than the right one."""
    batches, outputs = zip(*evaluators.predictions(run), strict=True)
    image, label = (np.concatenate([batch[name] for batch in batches]) for name in ("image", "label"))
    logits = np.concatenate([output["logits"] for output in outputs])  # [examples, 10]
    guess = logits.argmax(axis=1)
    worst = (logits[np.arange(len(label)), label] - logits.max(axis=1)).argsort(kind="stable")[:SHOWN]
    return evaluators.Report(
        scalars={name: (guess[label == number] == number).mean() for number, name in enumerate(names)},
        images={"worst": image[worst]},
        texts={"worst": [f"{place}: {names[label[place]]}, taken for {names[guess[place]]}" for place in worst]},
    )


class Views:
    """Reports the accuracy by the mean logits of six views of each picture: mirrored or not, shifted by -1, 0, 1 pixel.

    The views that are not shifted have half of the weight. Source: airbench (Jordan, 2024), test-time augmentation of
    level 2.
    """

    def __init__(self):
        self.modes = {"accuracy": "max"}
        self._forward = None

    def __call__(self, run):
        if self._forward is None:
            self._forward = tf.function(functools.partial(self.logits, run.model), autograph=False)
        hits = np.concatenate(
            [
                self._forward(tf.constant(batch["image"])).numpy().argmax(axis=1) == batch["label"]
                for batch, _ in evaluators.predictions(run)
            ]
        )
        return evaluators.Report({"accuracy": hits.mean()})

    @staticmethod
    def logits(model, image):
        """Returns the weighted mean of the logits of the views, [batch, classes]."""

        def mirrored(view):
            return 0.5 * (model(view, training=False) + model(view[:, :, ::-1], training=False))

        padded = tf.pad(image, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
        shifted = mirrored(padded[:, :-2, :-2]) + mirrored(padded[:, 2:, 2:])
        return 0.5 * mirrored(image) + 0.25 * shifted


def make_exports(cfg: ConfigDict):
    """Returns the exports, for TensorFlow Serving and for LiteRT: pictures of 0..255 -> logits."""
    signature = export.Signature(
        fn=lambda model, inputs: {"logits": model(inputs["image"], training=False)},
        inputs={"image": tf.TensorSpec([None, *SHAPE], tf.uint8)},
    )
    return [export.SavedModel({export.SERVING: signature}), export.Lite(signature)]
