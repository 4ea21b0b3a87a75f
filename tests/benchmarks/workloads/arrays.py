"""The examples and sizes of the four workloads, the same for every peer. Made up from a fixed seed, with NumPy alone.

arrays('mlp')      # {'image': float32 [60000, 784], 'label': int32 [60000]}
"""

import numpy as np

BATCH = {"mlp": 128, "cnn": 128, "transformer": 64, "two_tower": 1024}
# All take Adam but the CNN, which takes SGD with momentum.
LEARNING_RATE = {"mlp": 1e-3, "cnn": 0.05, "transformer": 1e-3, "two_tower": 1e-3}
MOMENTUM = 0.9
ADAM = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}

# The Transformer: 2 + 2 layers; tokens 0 … VOCABULARY - 1, of which 1 begins a target.
LAYERS, WIDTH, HEADS, FEED_FORWARD, DROPOUT, VOCABULARY, LENGTH = 2, 128, 4, 512, 0.1, 4_000, 32

MLP_DROPOUT = 0.2
USERS, ITEMS, TOWER_WIDTH, MEAN_RATING = 6_041, 3_953, 64, 3.5


def arrays(workload: str) -> dict[str, np.ndarray]:
    """{name: [examples, ...]} of a workload; something can be learned from each."""
    return {"mlp": _digits, "cnn": _pictures, "transformer": _sentences, "two_tower": _ratings}[workload]()


def _digits() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 10, 60_000).astype(np.int32)
    centres = rng.random((10, 784), np.float32)
    image = 0.5 * centres[label] + 0.5 * rng.random((60_000, 784), np.float32)
    return {"image": image, "label": label}


def _pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    label = rng.integers(0, 10, 10_000).astype(np.int32)
    image = rng.standard_normal((10_000, 32, 32, 3), np.float32) + label[:, None, None, None].astype(np.float32) / 5 - 1
    return {"image": image, "label": label}


def _sentences() -> dict[str, np.ndarray]:
    """Target tokens are the source's, reversed; 'input' is the target shifted right by one."""
    rng = np.random.default_rng(3)
    source = rng.integers(2, VOCABULARY, (20_000, LENGTH)).astype(np.int32)
    target = source[:, ::-1].copy()
    begun = np.concatenate([np.ones((len(target), 1), np.int32), target[:, :-1]], axis=1)
    return {"source": source, "input": begun, "target": target}


def _ratings() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    user = rng.integers(0, USERS, 1_000_000).astype(np.int32)
    item = rng.integers(0, ITEMS, 1_000_000).astype(np.int32)
    taste, kind = rng.integers(0, 2, USERS), rng.integers(0, 2, ITEMS)
    rating = np.clip(3.5 + (2 * (taste[user] == kind[item]) - 1) + rng.normal(0, 0.5, len(user)), 1, 5)
    return {"user": user, "item": item, "rating": rating.astype(np.float32)}
