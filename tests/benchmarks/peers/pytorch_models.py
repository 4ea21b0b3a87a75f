"""The four models in PyTorch; called with a batch, each returns its mean loss.

    make_model("cnn")(image=image, label=label)      # float32 []

Dropout is a function that is given, `dropout(x, rate)`: which is the fastest depends on how the model is run.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.workloads import arrays

Dropout = Callable[[Tensor, float], Tensor]


def library_dropout(x: Tensor, rate: float) -> Tensor:
    """PyTorch's own. On a CPU its bits come from MKL's Bernoulli generator, in one thread."""
    return F.dropout(x, rate)


def uniform_dropout(x: Tensor, rate: float) -> Tensor:
    """The same from uniform numbers, which are drawn in half of the time."""
    kept = torch.rand(x.shape) >= rate
    return x * kept.to(x.dtype).mul_(1 / (1 - rate))


def make_model(workload: str, dropout: Dropout = library_dropout) -> nn.Module:
    """The model of a workload, float32, in training mode."""
    return {
        "mlp": lambda: Mlp(dropout),
        "cnn": ResNet20,
        "transformer": lambda: Transformer(dropout),
        "two_tower": TwoTower,
    }[workload]()


class Mlp(nn.Module):
    """784 - 128 - 10."""

    def __init__(self, dropout: Dropout):
        super().__init__()
        self.dropout = dropout
        self.hidden, self.out = nn.Linear(784, 128), nn.Linear(128, 10)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.hidden(image)), arrays.MLP_DROPOUT)
        return F.cross_entropy(self.out(x), label)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 and BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01))


class Residual(nn.Module):
    """Two convolutions beside a shortcut that is thinned out and padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first, self.second = convolution(inputs, outputs, stride), convolution(outputs, outputs)
        self.padding, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(F.relu(self.first(x), inplace=True))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(inner + x, inplace=True)


class ResNet20(nn.Module):
    """Takes pictures as [batch, height, width, 3]: its view as NCHW is channels_last in memory."""

    def __init__(self):
        super().__init__()
        blocks, inputs = [convolution(3, 16), nn.ReLU(inplace=True)], 16
        for width in (16, 32, 64):
            for block in range(3):
                blocks.append(Residual(inputs, width, 2 if width > 16 and block == 0 else 1))
                inputs = width
        self.blocks, self.out = nn.Sequential(*blocks), nn.Linear(64, 10)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        x = self.blocks(image.permute(0, 3, 1, 2))
        return F.cross_entropy(self.out(x.mean((2, 3))).float(), label)


class Attention(nn.Module):
    """Multi-head attention with dropout on the probabilities; projections of the same tensor are one product.

    With dropout `scaled_dot_product_attention` has no kernel of its own on a CPU: it took 2 to 8 % longer a step.
    """

    def __init__(self, dropout: Dropout, self_attention: bool):
        super().__init__()
        width = arrays.WIDTH
        self.dropout, self.self_attention = dropout, self_attention
        self.inwards = nn.Linear(width, 3 * width) if self_attention else nn.Linear(width, width)
        self.memory = None if self_attention else nn.Linear(width, 2 * width)
        self.outwards = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if self.self_attention:
            query, key, value = self.inwards(x).chunk(3, -1)
        else:
            query = self.inwards(x)
            key, value = self.memory(memory).chunk(2, -1)
        query, key, value = (t.unflatten(-1, (arrays.HEADS, -1)).transpose(1, 2) for t in (query, key, value))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # [batch, head, time, time]
        if bias is not None:
            scores = scores + bias
        probabilities = F.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
        mixed = self.dropout(probabilities, arrays.DROPOUT) @ value
        return self.outwards(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-LN layer of the encoder, or with `crossing` of the decoder."""

    def __init__(self, dropout: Dropout, crossing: bool):
        super().__init__()
        width = arrays.WIDTH
        self.dropout = dropout
        self.attention = Attention(dropout, True)
        self.crossing = Attention(dropout, False) if crossing else None
        self.wide, self.narrow = nn.Linear(width, arrays.FEED_FORWARD), nn.Linear(arrays.FEED_FORWARD, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(3 if crossing else 2))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        bias: Tensor | None = None,
        memory_bias: Tensor | None = None,
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norms[0](x), None, bias), arrays.DROPOUT)
        if self.crossing is not None:
            x = x + self.dropout(self.crossing(self.norms[1](x), memory, memory_bias), arrays.DROPOUT)
        return x + self.dropout(self.narrow(F.relu(self.wide(self.norms[-1](x)))), arrays.DROPOUT)


class Transformer(nn.Module):
    """Encoder and decoder; the loss is the mean over all target tokens."""

    def __init__(self, dropout: Dropout):
        super().__init__()
        width = arrays.WIDTH
        self.dropout = dropout
        self.tables = nn.ModuleList(nn.Embedding(arrays.VOCABULARY, width) for _ in range(2))
        for table in self.tables:
            nn.init.normal_(table.weight, std=width**-0.5)
        self.encoder = nn.ModuleList(Layer(dropout, False) for _ in range(arrays.LAYERS))
        self.decoder = nn.ModuleList(Layer(dropout, True) for _ in range(arrays.LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.out = nn.Linear(width, arrays.VOCABULARY)
        self.register_buffer("positions", sinusoids(arrays.LENGTH, width))
        self.register_buffer("causal", torch.full([arrays.LENGTH] * 2, float("-inf")).triu(1))

    def forward(self, source: Tensor, input: Tensor, target: Tensor) -> Tensor:
        memory, x = (self._embed(table, tokens) for table, tokens in zip(self.tables, (source, input), strict=True))
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.norms[0](memory)
        for layer in self.decoder:
            x = layer(x, memory, self.causal)
        logits = self.out(self.norms[1](x)).float()
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    def _embed(self, table: nn.Embedding, tokens: Tensor) -> Tensor:
        x = table(tokens) * math.sqrt(arrays.WIDTH) + self.positions
        return self.dropout(x, arrays.DROPOUT)


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed positions [length, width] (Vaswani et al., 2017, section 3.5)."""
    angle = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angle.sin(), angle.cos()], -1)


class TwoTower(nn.Module):
    """A mean rating and the product of two embeddings; the loss is the mean squared error."""

    def __init__(self):
        super().__init__()
        self.users = nn.Embedding(arrays.USERS, arrays.TOWER_WIDTH)
        self.items = nn.Embedding(arrays.ITEMS, arrays.TOWER_WIDTH)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, user: Tensor, item: Tensor, rating: Tensor) -> Tensor:
        predicted = arrays.MEAN_RATING + (self.users(user) * self.items(item)).sum(-1)
        return F.mse_loss(predicted, rating)
