"""Examples and their order: `sources` (where they come from), `batches` (which one stands where)."""

from framework.data.batches import Batches, make_batches
from framework.data.replay_buffer import ReplayBuffer
from framework.data.sets.mnist import load_mnist
from framework.data.sources import Source

__all__ = ["Batches", "ReplayBuffer", "Source", "load_mnist", "make_batches"]
