"""PyTorch on batches of many shapes: a plain loop over resident tensors, eager or compiled for each shape.

    .venv-peers/bin/python -m tests.benchmarks.peers.pytorch_buckets --workload buckets --option eager:epoch.npz

The model is that of `pytorch_models.py` with the masks of padding and one table, as `workloads/buckets.py` has it.
"""

import math
from collections.abc import Callable

import torch
import torch._dynamo.config
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.peers import epochs, protocol, pytorch, pytorch_models
from tests.benchmarks.workloads import arrays

LONGEST = 64


class Translator(nn.Module):
    """Encoder and decoder with one table; the loss is the mean over all target tokens that are no padding."""

    def __init__(self, dropout: pytorch_models.Dropout):
        super().__init__()
        width = arrays.WIDTH
        self.dropout = dropout
        self.table = nn.Embedding(arrays.VOCABULARY, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.encoder = nn.ModuleList(pytorch_models.Layer(dropout, False) for _ in range(arrays.LAYERS))
        self.decoder = nn.ModuleList(pytorch_models.Layer(dropout, True) for _ in range(arrays.LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.register_buffer("positions", pytorch_models.sinusoids(LONGEST, width))
        self.register_buffer("causal", torch.full([LONGEST] * 2, float("-inf")).triu(1))

    def forward(self, source: Tensor, input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        padded = torch.zeros(source.shape).masked_fill_(source == 0, -1e9)[:, None, None]  # [batch, 1, 1, time]
        memory, x = self._embed(source), self._embed(input)
        for layer in self.encoder:
            memory = layer(memory, bias=padded)
        memory = self.norms[0](memory)
        length = input.shape[1]
        for layer in self.decoder:
            x = layer(x, memory, self.causal[:length, :length], padded)
        logits = F.linear(self.norms[1](x), self.table.weight).float()
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        return losses @ weight.flatten() / weight.sum()

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) * math.sqrt(arrays.WIDTH) + self.positions[: tokens.shape[1]]
        return self.dropout(x, arrays.DROPOUT)


def prepare(workload: str, precision: str, option: str) -> protocol.Peer:
    """Trains in the faster of two dropouts.

    Args:
      option: 'eager' or 'compile', and the file of the epoch: 'eager:epoch.npz'.
    """
    how, _, path = option.partition(":")
    pytorch.tune()
    torch._dynamo.config.recompile_limit = 64  # a program for each shape
    batches = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in epochs.read(path)]
    for batch in batches:
        batch["target"] = batch["target"].long()  # as cross_entropy wants classes
    last: list[Tensor] = []
    dropouts = {"library dropout": pytorch_models.library_dropout, "uniform dropout": pytorch_models.uniform_dropout}
    ways = {name: _training(batches, precision, dropout, how == "compile", last) for name, dropout in dropouts.items()}
    variant, variants = protocol.fastest(ways, first=len(batches))
    return protocol.Peer(ways[variant], {"torch": torch.__version__}, lambda: last[0].item(), variant, variants)


def _training(
    batches: list[dict[str, Tensor]],
    precision: str,
    dropout: pytorch_models.Dropout,
    is_compiled: bool,
    last: list[Tensor],
) -> Callable[[int], None]:
    torch.manual_seed(0)
    model = Translator(dropout)
    betas, epsilon = (arrays.ADAM["beta_1"], arrays.ADAM["beta_2"]), arrays.ADAM["epsilon"]
    optimizer = torch.optim.Adam(model.parameters(), arrays.LEARNING_RATE["transformer"], betas, epsilon, fused=True)
    turns = epochs.Turns(len(batches))

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model(**batch)

    if is_compiled:
        loss_of = pytorch.compiler({"fallback_random": True})(loss_of)

    def steps(count: int) -> None:
        for number in turns.take(count):
            loss = loss_of(batches[number])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        last[:] = [loss.detach()]

    return steps


if __name__ == "__main__":
    protocol.serve(prepare)
