"""framework/writers/console.py: exact lines, and a bar in a terminal."""

import io
import math

import numpy as np
import pytest

from framework.writers import Console
from tests.writers.recorded import Clock, Terminal

ROW = {"loss": 0.5, "learning_rate": 1e-3, "gradient_norm": 0.8, "skipped": 0.0, "empty_terms": 0.0, "accuracy": 0.9}
ROW |= {"parameter_norm": 3.0, "mean/loss": 0.21341, "mean/accuracy": 0.934, "examples_per_second": 12345.4}


def test_console_prints_exact_lines_where_there_is_no_terminal() -> None:
    """Means instead of the step's own numbers; counts that are not zero alone; what there is room for."""
    stream, clock = io.StringIO(), Clock()
    writer = Console(2344, 0, stream, clock, steps_per_epoch=468.75)
    writer.scalars(200, ROW)
    clock.now += 2.0  # 100 steps a second
    writer.scalars(400, ROW)
    writer.scalars(469, {"eval/test/loss": 0.1, "eval/test/accuracy": 0.97})
    clock.now += 3598.0  # 1,000 steps in 3,600 seconds
    bad = {"mean/loss": math.nan, "mean/other": math.inf, "examples_per_second": math.nan, "skipped": 2.0}
    writer.scalars(1200, {**bad, "learning_rate": 1e-3})
    clock.now += 10 * 86400
    writer.scalars(1201, {"loss": 2.0, "accuracy": 0.5})
    writer.close()
    assert stream.getvalue().splitlines() == [
        "step 200/2344  epoch 0.43  loss 0.2134  accuracy 0.934  12,345 examples/s",
        "step 400/2344  epoch 0.85  loss 0.2134  accuracy 0.934  eta 0:00:19",
        "step 469/2344  eval/test/loss 0.1  eval/test/accuracy 0.97",
        "step 1200/2344  epoch 2.56  loss nan  other inf  skipped 2  eta 1:08:38",
        "step 1201/2344  epoch 2.56  loss 2  accuracy 0.5  eta 11d 11:11",
    ]


def test_console_has_no_time_left_at_the_end_of_a_resumed_run() -> None:
    stream, clock = io.StringIO(), Clock()
    writer = Console(500, 300, stream, clock)
    writer.scalars(400, {"loss": 1.0})
    clock.now += 5.0
    writer.scalars(500, {"loss": 0.5})
    writer.scalars(500, {"loss": 0.5})
    assert stream.getvalue().splitlines() == [
        "step 400/500  loss 1",
        "step 500/500  loss 0.5  eta 0:00:00",
        "step 500/500  loss 0.5  eta 0:00:00",
    ]


def test_names_that_are_too_long_are_cut_and_the_last_metrics_counted() -> None:
    stream, clock = io.StringIO(), Clock()
    writer = Console(23440, 0, stream, clock, steps_per_epoch=469, style="plain")
    writer.scalars(200, ROW)
    clock.now += 2.0
    names = [f"mean/a_very_long_metric_name_{number}" for number in range(5)]
    writer.scalars(400, {"mean/loss": 0.25, **dict.fromkeys(names[:1], -1.2345e-5)})
    writer.scalars(400, {"mean/loss": 0.25, **dict.fromkeys(names[:2], 0.5)})
    writer.scalars(400, {"mean/loss": 0.25, **dict.fromkeys(names, 0.5), "skipped": 12.0})
    writer.scalars(400, {"eval/test/" + "x" * 90: 0.5, "eval/test/accuracy": 0.97, "eval/test/other": 0.25})
    assert stream.getvalue().splitlines()[1:] == [
        "step 400/23440  epoch 0.85  loss 0.25  a_very_long_metr… -1.234e-05  eta 0:03:50",
        "step 400/23440  epoch 0.85  loss 0.25  a_very_l… 0.5  a_very_l… 0.5  eta 0:03:50",
        "step 400/23440  epoch 0.85  loss 0.25  a_very_… 0.5  +4  skipped 12  eta 0:03:50",
        f"step 400/23440  eval/test/{'x' * 47}… 0.5",
        "step 400/23440  eval/test/accuracy 0.97  eval/test/other 0.25",
    ]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_no_line_has_more_than_80_columns(kind: type) -> None:
    """Loss and time left are always there; numbers, names and counts of any size."""
    draw, stream, clock = np.random.default_rng(0), kind(), Clock()
    style = "auto" if kind is Terminal else "plain"
    writer = Console(10**9, 0, stream, clock, steps_per_epoch=123.4, style=style)
    writer.scalars(1, {"mean/loss": 1.0})
    for step in range(2, 200):
        clock.now += float(draw.uniform(0, 10))
        counts = draw.integers(0, 40, 20)
        values = {f"mean/{'n' * count}{place}": float(draw.normal() * 10.0 ** draw.integers(-20, 20))
                  for place, count in enumerate(counts[: draw.integers(0, 20)])}  # fmt: skip
        values |= {"mean/loss": float(draw.normal()), "skipped": float(draw.integers(0, 2)), "mean/loss/ce": 1.0}
        writer.scalars(step * 10**6, {**values, "learning_rate": 1e-3, "examples_per_second": 1e5})
        writer.scalars(step * 10**6, {f"eval/test/{name[5:]}": value for name, value in values.items()})
    writer.close()
    lines = [line for line in stream.getvalue().replace("\r", "\n").split("\n") if line.strip()]
    assert max(map(len, lines)) <= 80
    shown = [line for line in lines if "epoch" in line and " eta " in line]
    assert len(shown) >= 198 and all(" loss " in line for line in shown)
    assert not any(" skipped 0" in line for line in lines)


def test_console_shows_a_bar_in_a_terminal() -> None:
    stream, clock = Terminal(), Clock()
    writer = Console(400, 100, stream, clock, steps_per_epoch=100)
    writer.scalars(200, ROW)
    writer.scalars(200, {"eval/test/loss": 0.25})
    clock.now += 10.0
    writer.scalars(300, {"loss": math.nan})
    writer.close()
    drawn = [text.rstrip() for text in stream.getvalue().replace("\n", "\r").split("\r")]
    assert any(text.startswith(" 25%|") for text in drawn)
    assert any(text.startswith(" 50%|") and text.endswith("| step 200/400  epoch 2.00  loss 0.2134  accuracy 0.934")
               for text in drawn)  # fmt: skip
    assert "step 200/400  eval/test/loss 0.25" in drawn
    assert any(text.startswith(" 75%|") and text.endswith("| step 300/400  epoch 3.00  loss nan  eta 0:00:10")
               for text in drawn)  # fmt: skip


def shown_steps(style: str, stream: io.StringIO) -> list[str]:
    """Writes a row each 0.5 s, and an evaluation after 3 s; returns the steps whose lines were written."""
    clock = Clock()
    writer = Console(1000, 0, stream, clock, style=style)
    writer.layers("layer  class")
    for step in range(100, 1001, 100):
        writer.scalars(step, ROW)
        if step == 700:
            writer.scalars(step, {"eval/test/loss": 0.1})
        clock.now += 0.5
    writer.close()
    return [line.partition("/")[0] for line in stream.getvalue().splitlines() if line]


def test_a_short_run_does_not_fill_the_screen() -> None:
    """The first and the last row, one in two seconds between them, and each evaluation."""
    assert shown_steps("auto", io.StringIO()) == [
        "layer  class", "step 100", "step 500", "step 700", "step 900", "step 1000",
    ]  # fmt: skip


def test_plain_is_a_line_for_each_row_in_a_terminal_too() -> None:
    steps = [f"step {step}" for step in range(100, 1001, 100)]
    assert shown_steps("plain", Terminal()) == ["layer  class", *steps[:7], "step 700", *steps[7:]]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_quiet_is_nothing(kind: type) -> None:
    assert shown_steps("quiet", kind()) == []
