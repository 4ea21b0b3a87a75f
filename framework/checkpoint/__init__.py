"""Saving the state of a run and starting from one that was saved."""

from framework.checkpoint.checkpoints import Checkpoints, digest, read_arrays

__all__ = ["Checkpoints", "digest", "read_arrays"]
