"""PyTorch: a plain loop over resident tensors, eager or compiled.

    .venv-peers/bin/python -m tests.benchmarks.peers.pytorch --workload mlp --option compile

`eager`: index_select of a permutation, fused optimizer, channels_last, autocast. `compile`: loss and gradient are
compiled as one; of the small models the whole step, Adam included, or five of them (`torch.func`).
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.func import functional_call, grad_and_value

from tests.benchmarks.peers import protocol, pytorch_models
from tests.benchmarks.peers.order import Order
from tests.benchmarks.workloads import arrays

Steps = Callable[[int], Tensor]
STEPS_OF_A_CALL = 5  # of the small models: 0.52 ms a step of `mlp`, where single ones take 0.63


def prepare(workload: str, precision: str, option: str) -> protocol.Peer:
    """Trains in the fastest of the ways that suit the workload."""
    if option not in ("eager", "compile"):
        raise SystemExit(f"--option={option} is neither eager nor compile")
    tune()
    data = {name: torch.from_numpy(array) for name, array in arrays.arrays(workload).items()}
    for name in data.keys() & {"label", "target"}:
        data[name] = data[name].long()  # as cross_entropy wants classes
    last: list[Tensor] = []

    def kept(way: Steps) -> Callable[[int], None]:
        def steps(count: int) -> None:
            last[:] = [way(count)]

        return steps

    make = _eager if option == "eager" else _compiled
    ways = {name: kept(way) for name, way in make(workload, precision, data).items()}
    variant, variants = protocol.fastest(ways)
    return protocol.Peer(ways[variant], {"torch": torch.__version__}, lambda: last[0].item(), variant, variants)


def tune() -> None:
    """As PyTorch's guide to performance on CPUs asks: all cores, no denormals, an allocator that keeps its pages."""
    torch.set_num_threads(os.cpu_count())
    torch.set_flush_denormal(True)
    protocol.keep_pages()
    # In compiled code: vectorised recomputation instead of masks of bool, whose stores are not vectorised ...
    torch._functorch.config.aggressive_recomputation = True


def _eager(workload: str, precision: str, data: dict[str, Tensor]) -> dict[str, Steps]:
    return {name: _training(workload, precision, data, dropout) for name, dropout in _dropouts(workload).items()}


def _compiled(workload: str, precision: str, data: dict[str, Tensor]) -> dict[str, Steps]:
    if workload in ("cnn", "transformer"):
        # ... and the library's random bits: with the compiler's own, Philox, `transformer` took 163 ms a step, not 147.
        compile_ = compiler({"fallback_random": True})
        return {
            name: _training(workload, precision, data, dropout, compile_)
            for name, dropout in _dropouts(workload).items()
        }
    return {
        "compiled loss": _training(workload, precision, data, pytorch_models.library_dropout, compiler({})),
        "compiled step": _whole(workload, data, 1),
        f"{STEPS_OF_A_CALL} compiled steps": _whole(workload, data, STEPS_OF_A_CALL),
    }


def _dropouts(workload: str) -> dict[str, pytorch_models.Dropout]:
    library = {"library dropout": pytorch_models.library_dropout}
    if workload in ("cnn", "two_tower"):
        return {"": pytorch_models.library_dropout}
    return {**library, "uniform dropout": pytorch_models.uniform_dropout}


def compiler(options: dict[str, Any]) -> Callable[[Callable], Callable]:
    return torch.compile(fullgraph=True, dynamic=False, options=options)


def _order(workload: str, data: dict[str, Tensor]) -> Order:
    return Order(len(next(iter(data.values()))), arrays.BATCH[workload])


def _training(
    workload: str,
    precision: str,
    data: dict[str, Tensor],
    dropout: pytorch_models.Dropout,
    compile_: Callable[[Callable], Callable] = lambda function: function,
) -> Steps:
    """The usual loop: loss, backward, optimizer."""
    torch.manual_seed(0)
    model = pytorch_models.make_model(workload, dropout).to(memory_format=torch.channels_last)
    order = _order(workload, data)
    if workload == "cnn":
        rate, momentum = arrays.LEARNING_RATE[workload], arrays.MOMENTUM
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum, fused=True)
    else:
        betas = arrays.ADAM["beta_1"], arrays.ADAM["beta_2"]
        rate, epsilon = arrays.LEARNING_RATE[workload], arrays.ADAM["epsilon"]
        optimizer = torch.optim.Adam(model.parameters(), rate, betas, epsilon, fused=True)

    @compile_
    def loss_of(indices: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model(**{name: array.index_select(0, indices) for name, array in data.items()})

    def steps(count: int) -> Tensor:
        for indices in torch.from_numpy(order.take(count)).unbind():
            loss = loss_of(indices)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return steps


def _whole(workload: str, data: dict[str, Tensor], steps_of_a_call: int) -> Steps:
    """Gathering, loss, gradient and Adam in one compiled function, `steps_of_a_call` times; the rest one by one."""
    torch.manual_seed(0)
    model = pytorch_models.make_model(workload)
    order = _order(workload, data)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    means, squares = ({name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    updates = torch.zeros(())
    beta_1, beta_2, epsilon = arrays.ADAM.values()

    def loss_of(weights: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return functional_call(model, weights, (), batch)

    def step(indices: Tensor) -> Tensor:
        batch = {name: array.index_select(0, indices) for name, array in data.items()}
        gradients, loss = grad_and_value(loss_of)(weights, batch)
        updates.add_(1)
        rate = arrays.LEARNING_RATE[workload] / (1 - beta_1**updates)
        correction = 1 - beta_2**updates
        for name, gradient in gradients.items():
            mean = means[name].lerp_(gradient, 1 - beta_1)
            square = squares[name].mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
            weights[name].sub_(rate * mean / ((square / correction).sqrt() + epsilon))
        return loss

    def several(rows: Tensor) -> Tensor:
        return [step(indices) for indices in rows.unbind()][-1]

    one, many = (compiler({})(function) for function in (step, several))

    @torch.no_grad()
    def steps(count: int) -> Tensor:
        rows = torch.from_numpy(order.take(count))
        calls = count // steps_of_a_call if steps_of_a_call > 1 else 0
        for call in range(calls):
            loss = many(rows[call * steps_of_a_call : (call + 1) * steps_of_a_call])
        for indices in rows[calls * steps_of_a_call :].unbind():
            loss = one(indices)
        return loss

    return steps


if __name__ == "__main__":
    protocol.serve(prepare)
