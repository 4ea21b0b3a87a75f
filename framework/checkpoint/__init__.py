"""Checkpoints: saving the state of a run, and starting from a saved one."""

from framework.checkpoint.checkpoints import Checkpoints, digest, read_arrays

__all__ = ["Checkpoints", "digest", "read_arrays"]
