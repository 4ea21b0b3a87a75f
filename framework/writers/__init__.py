"""Where the numbers, pictures and texts of a run go; `base` says what a writer is and shows one of your own."""

from framework.writers.base import AsyncWriter, MultiWriter, Writer
from framework.writers.console import Console
from framework.writers.jsonl import Jsonl
from framework.writers.projector import write_projector
from framework.writers.tensorboard import TensorBoard

__all__ = ["AsyncWriter", "Console", "Jsonl", "MultiWriter", "TensorBoard", "Writer", "write_projector"]
