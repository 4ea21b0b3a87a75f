"""Floating-point operations and bytes of a step of each workload, by formula from the shapes of its layers.

    step = work("cnn", "bfloat16")
    step.flops, step.moved            # 3.1e10, 2.9e8

What is counted: every matrix product and convolution, forward and for the gradient of each operand, reads two operands
and writes one result; looked-up rows are read and written; the update reads gradient, weights and slots and writes the
latter two. All else (activation functions, normalisation, softmax, dropout, sums) is taken to be fused into these, and
the finite check and the norms to come for free. So no program of separate products takes less.
"""

from typing import NamedTuple

from tests.benchmarks.workloads import arrays

_FLOAT = 4


class Product(NamedTuple):
    """A matrix product, or a convolution as one; also many of the same shape at once.

    Attributes:
      flops: of one of its passes; a multiplication and an addition are two.
      left, right, out: elements of operands and result.
      has_left_gradient: False where the left operand is data.
    """

    flops: int
    left: int
    right: int
    out: int
    has_left_gradient: bool = True

    @property
    def passes(self) -> int:
        """Forward, and the gradient of each operand."""
        return 3 if self.has_left_gradient else 2


class Layers(NamedTuple):
    """What a model is made of, as far as it is counted.

    Attributes:
      weights: trained, outside of tables.
      table: elements of all embedding tables; every one is updated at each step.
      looked_up: elements of the rows that a batch looks up.
    """

    products: list[Product]
    weights: int
    table: int = 0
    looked_up: int = 0


class Update(NamedTuple):
    """Of one weight: operations, slots."""

    flops: int
    slots: int


class Work(NamedTuple):
    """Of one step.

    Attributes:
      flops: of all products and of the update.
      moved: bytes read and written at the least.
      kept: bytes that have to lie somewhere from one pass to the next: weights, slots, operands of the products.
    """

    flops: int
    moved: int
    kept: int


class Machine(NamedTuple):
    """What it can do at best.

    Attributes:
      flops: {precision: operations a second of a matrix product}.
      copies: [(bytes that the memory holds, bytes read and written a second)], the smallest memory first.
    """

    flops: dict[str, float]
    copies: list[tuple[float, float]]

    def better(self, other: "Machine") -> "Machine":
        """The better of two measurements of one machine, number by number."""
        flops = {precision: max(speed, other.flops[precision]) for precision, speed in self.flops.items()}
        pairs = zip(self.copies, other.copies, strict=True)
        return Machine(flops, [(size, max(speed, again)) for (size, speed), (_, again) in pairs])

    def roof(self, step: Work, precision: str) -> tuple[float, float]:
        """Seconds of a step's operations, and of its bytes."""
        speed = next(speed for size, speed in self.copies if step.kept <= size)
        return step.flops / self.flops[precision], step.moved / speed


# average += (gradient - average) (1 - beta_1) and the same of the squares: 3 + 4; their quotient, subtracted: 5.
_ADAM, _MOMENTUM = Update(12, 2), Update(4, 1)


def work(workload: str, precision: str = "float32") -> Work:
    """Of a step of a workload.

    Args:
      precision: 'float32' or 'bfloat16', of products and what goes in and out of them; weights, slots and their update
        are float32.
    """
    layers = _LAYERS[workload]()
    update = _MOMENTUM if workload == "cnn" else _ADAM
    size = {"float32": 4, "bfloat16": 2}[precision]
    weights = layers.weights + layers.table
    flops = sum(product.passes * product.flops for product in layers.products) + update.flops * weights
    elements = sum(product.passes * (product.left + product.right + product.out) for product in layers.products)
    moved = size * (elements + 4 * layers.looked_up)  # rows and their gradients, read and written
    moved += _FLOAT * (2 * (1 + update.slots) * weights + layers.weights)
    kept = size * sum(product.left for product in layers.products) + _FLOAT * (1 + update.slots) * weights
    return Work(flops, moved, kept)


def products(workload: str) -> list[Product]:
    """Of a workload's model."""
    return _LAYERS[workload]().products


def _dense(rows: int, inner: int, columns: int, of_data: bool = False) -> Product:
    return Product(2 * rows * inner * columns, rows * inner, inner * columns, rows * columns, not of_data)


def _mlp() -> Layers:
    batch = arrays.BATCH["mlp"]
    return Layers([_dense(batch, 784, 128, of_data=True), _dense(batch, 128, 10)], weights=101_770)


def _cnn() -> Layers:
    """ResNet-20: a convolution, three stages of three blocks of two, a dense layer."""
    found = [_convolution(32, 1, 3, 16, of_data=True)]
    side, channels = 32, 16
    for width in (16, 32, 64):
        for block in range(3):
            stride = 2 if width > 16 and block == 0 else 1
            side //= stride
            found += [_convolution(side, stride, channels, width), _convolution(side, 1, width, width)]
            channels = width
    return Layers([*found, _dense(arrays.BATCH["cnn"], 64, 10)], weights=269_722)


def _convolution(side: int, stride: int, channels: int, width: int, of_data: bool = False) -> Product:
    """3 x 3, to [batch, side, side, width]; what it multiplies with zeros at the border counts."""
    places, batch = 9 * channels, arrays.BATCH["cnn"]
    flops = 2 * batch * side**2 * places * width
    return Product(flops, batch * (side * stride) ** 2 * channels, places * width, batch * side**2 * width, not of_data)


def _transformer() -> Layers:
    width, hidden, layers = arrays.WIDTH, arrays.FEED_FORWARD, arrays.LAYERS
    tokens = arrays.BATCH["transformer"] * arrays.LENGTH  # of each side
    attention = [*[_dense(tokens, width, width)] * 4, *_attending(tokens)]
    network = [_dense(tokens, width, hidden), _dense(tokens, hidden, width)]
    found = layers * (3 * attention + 2 * network)  # an encoder layer has one attention, a decoder layer two
    logits = _dense(tokens, width, arrays.VOCABULARY)
    biased = layers * (3 * 4 * (width + 1) * width + 2 * ((width + 1) * hidden + (hidden + 1) * width))
    norms = 2 * width * (layers * (2 + 3) + 2)
    weights = biased + norms + (width + 1) * arrays.VOCABULARY
    return Layers([*found, logits], weights, 2 * arrays.VOCABULARY * width, 2 * tokens * width)


def _attending(queries: int) -> list[Product]:
    """Scores of each query with the keys of its sequence, for each head, and sums of the values by them."""
    flops, scores = 2 * queries * arrays.LENGTH * arrays.WIDTH, queries * arrays.HEADS * arrays.LENGTH
    vectors = queries * arrays.WIDTH
    return [Product(flops, vectors, vectors, scores), Product(flops, scores, vectors, vectors)]


def _two_tower() -> Layers:
    """A user's vector times an item's, [1, width] x [width, 1] for each rating."""
    batch, width = arrays.BATCH["two_tower"], arrays.TOWER_WIDTH
    vectors = batch * width
    return Layers(
        [Product(2 * vectors, vectors, vectors, batch)], 0, (arrays.USERS + arrays.ITEMS) * width, 2 * vectors
    )


_LAYERS = {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer, "two_tower": _two_tower}
