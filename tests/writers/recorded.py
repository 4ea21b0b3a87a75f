"""Writers and terminals that remember what they got, for tests of writers."""

import io
import json
from pathlib import Path

from framework.writers import Jsonl


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Recorder:
    """A writer that keeps the calls it gets."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda *arguments: self.calls.append((name, *arguments))


def write_rows(path: Path, steps: range) -> None:
    writer = Jsonl(path)
    for step in steps:
        writer.scalars(step, {"loss": step / 10})
    writer.close()


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]
