"""The cost model of SCALING.md: step time against the number of replicas, from constants; nothing is measured here.

    python tests/benchmarks/scaling_model.py

Prints the tables of the page: what the model says of the machine that scaling_measured.py measured, and of hosts of
eight H100. Each constant says whether it was measured, published by its vendor, or is an assumption of ours.
"""

import dataclasses
import math

FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class System:
    """An experiment, as far as its speed is concerned.

    Attributes:
      batch: examples of a replica.
      flops: of forward and backward pass of an example: 6 a weight and use, 2 of them forward.
      weights: all are trained.
      kernels: launches of a step on a GPU, an assumption: about 20 a convolution, 10 a dense layer, 3 a variable.
      messages: sums over replicas in a step: weights of terms, gradients, BatchNorm's averages.
      gathered: floats of an example that every replica needs of all others, for in-batch negatives.
    """

    batch: int
    flops: float
    weights: int
    kernels: int
    messages: int = 2
    gathered: int = 0


SYSTEMS = {
    "MNIST net": System(128, 6 * 101_632, 101_770, 60),
    "ResNet-20": System(128, 6 * 40.6e6, 269_722, 600, messages=3),
    # 64 pairs of 32 + 32 tokens, one table of embeddings for both sides and the output.
    "transformer": System(64, 6 * 32 * (393e3 + 524e3 + 512e3), 1_436_000, 900),
    # Two tables and a layer of 64 x 64 for each side; the tables' gradients travel dense.
    "two towers": System(1024, 6 * 8_192, 9_994 * 64 + 8_320, 90, gathered=128),
}

# NVIDIA's data sheets: H100 SXM, dense TF32, NVLink 4 in one direction; Quantum-2 InfiniBand NDR, 400 Gb/s a GPU.
PEAK, NVLINK, INFINIBAND = 494.5e12, 450e9, 50e9
# Ours: what small layers reach of the peak, what transfers reach of the link, seconds of a launch and of a message.
SHARE, LINK_SHARE, LAUNCH, HOP, NETWORK_HOP = 0.1, 0.7, 5e-6, 5e-6, 15e-6
HOST = 8  # GPUs

COUNTS = (1, 2, 4, 8, 64, 1000)


def parts(system: System, replicas: int, batch: float) -> dict[str, float]:
    """{part of a step: seconds}, one after the other, on GPUs.

    Args:
      batch: examples of each replica.
    """
    here, hosts = min(replicas, HOST), math.ceil(replicas / HOST)
    size, link, network = FLOAT * system.weights, LINK_SHARE * NVLINK, LINK_SHARE * INFINIBAND
    pairs = 6 * batch * replicas * system.gathered / 2 if system.gathered else 0
    across = 2 * math.ceil(math.log2(hosts)) * NETWORK_HOP  # a tree; a ring would be 2 * (hosts - 1)
    latency = system.messages * (2 * (here - 1) * HOP + across)
    ring = 2 * (here - 1) / here * size / link + 2 * (hosts - 1) / hosts * size / here / network
    gathered = 2 * batch * FLOAT * system.gathered  # forward, and its sum backward
    gather = gathered * ((here - 1) / link + (replicas - here) / network)
    return {
        "launches": system.kernels * LAUNCH,
        "compute": batch * (system.flops + pairs) / (SHARE * PEAK),
        "latency": latency,
        "bytes": ring,
        "copies": (here - 1) * (HOP + size / link),
        "features": gather,
    }


def gpu_table(is_weak: bool) -> None:
    """Milliseconds, what is most of it, and the throughput of a replica beside that of one alone."""
    print(f"\n| {'batch a replica' if is_weak else 'global batch'} | {' | '.join(f'N = {n:,}' for n in COUNTS)} |")
    print("|---" * (len(COUNTS) + 1) + "|")
    for name, system in SYSTEMS.items():
        cells, alone = [], 0.0
        for count in COUNTS:
            batch = system.batch if is_weak else system.batch / count
            if batch < 1:
                cells.append("–")
                continue
            found = parts(system, count, batch)
            seconds = sum(found.values())
            alone = alone or seconds
            share = alone / seconds / (1 if is_weak else count)
            cells.append(f"{1e3 * seconds:.2f} {max(found, key=found.get)} ({share:.0%})")
        print(f"| {name}, {system.batch} | {' | '.join(cells)} |")


# ---- This machine: what scaling_measured.py printed, medians of processor time in ms ----

# {batch: ms of a step on one device}
STEPS = {
    "ResNet-20": {16: 44.501, 32: 81.587, 64: 153.645, 128: 292.631},
    "MNIST net": {32: 0.79, 128: 1.206, 512: 2.704, 2048: 9.496},
}
# {where: {kB: ms of a sum}}
SUMS = {
    "2 virtual devices": {1: 0.022, 400: 0.088, 1000: 0.282, 2600: 0.577, 10000: 1.652, 40000: 6.195},
    "4 virtual devices": {1: 0.058, 400: 0.174, 1000: 0.468, 2600: 0.984, 10000: 3.173, 40000: 21.665},
    "2 local workers": {1: 1.227, 400: 3.337, 1000: 5.387, 2600: 10.576, 10000: 35.453, 40000: 160.595},
}
# {where: ms of a step of global batch 128}
MEASURED = {
    "ResNet-20": {"2 virtual devices": 301.533, "4 virtual devices": 313.663, "2 local workers": 312.969},
    "MNIST net": {"2 virtual devices": 2.107, "4 virtual devices": 3.379, "2 local workers": 6.622},
}


def fitted(points: dict[int, float]) -> tuple[float, float]:
    """(constant, slope) of a line that is least wrong in proportion."""
    weights = [1 / y**2 for y in points.values()]
    total = sum(weights)
    x0 = sum(w * x for w, x in zip(weights, points, strict=True)) / total
    y0 = sum(w * y for w, y in zip(weights, points.values(), strict=True)) / total
    cross = sum(w * (x - x0) * (y - y0) for w, (x, y) in zip(weights, points.items(), strict=True))
    slope = cross / sum(w * (x - x0) ** 2 for w, x in zip(weights, points, strict=True))
    return y0 - slope * x0, slope


def this_machine() -> None:
    """Constants fitted to what was measured, and the model beside the steps that no constant was taken from."""
    print("\n| | constant, ms | slope |\n|---|---|---|")
    for name, points in STEPS.items():
        constant, slope = fitted(points)
        print(f"| step of {name} | {constant:.2f} | {1e3 * slope:.2f} us an example |")
    for where, points in SUMS.items():
        constant, slope = fitted({kilobytes: ms for kilobytes, ms in points.items() if kilobytes <= 10_000})
        print(f"| sum, {where} | {constant:.3f} | {1 / slope / 1e3:.2f} GB/s |")
    print("\n| work of a step, ms of a processor | model | measured | model / measured |\n|---|---|---|---|")
    for name, rows in MEASURED.items():
        (fixed, example), system = fitted(STEPS[name]), SYSTEMS[name]
        for where, measured in rows.items():
            count = int(where[0])
            constant, slope = fitted({kb: ms for kb, ms in SUMS[where].items() if kb <= 10_000})
            model = count * fixed + 128 * example + system.messages * constant + slope * FLOAT * system.weights / 1e3
            print(f"| {name}, {where} | {model:.2f} | {measured:.2f} | {model / measured:.2f} |")


def main() -> None:
    """Prints the tables."""
    this_machine()
    gpu_table(is_weak=False)
    gpu_table(is_weak=True)
    print("\n| ms, batch a replica, N = 8 and 1,000 | launches | compute | latency | bytes | copies | features |")
    print("|---|---|---|---|---|---|---|")
    for name, system in SYSTEMS.items():
        for count in (8, 1000):
            values = parts(system, count, system.batch).values()
            print(f"| {name}, {count:,} | {' | '.join(f'{1e3 * seconds:.3f}' for seconds in values)} |")


if __name__ == "__main__":
    main()
