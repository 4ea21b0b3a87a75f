"""tests/benchmarks: first_step.py and cost_growth.py, what they compute, draw and read; numbers by hand."""

import re
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import tf_keras as keras

from framework.run.hooks import Context, Hooks
from framework.run.progress import Progress
from framework.writers import Writer
from tests.benchmarks import bare_mnist, cost_growth, first_step, growth_hooks
from tests.benchmarks.cost_growth import Row
from tests.benchmarks.growth_hooks import Cost
from tests.benchmarks.peers import protocol
from tests.benchmarks.peers.protocol import WORKLOADS
from tests.benchmarks.plot import Panel, short, svg, ticks

# ---- first_step.py ----


def test_the_time_ends_with_the_line_and_the_process_with_it():
    endless = "import time\nprint('first, loading')\nprint('the first step is made', flush=True)\ntime.sleep(60)"
    assert 0 < first_step.seconds_to("first step", [sys.executable, "-c", endless]) < 30


def test_a_process_that_never_says_so_is_an_error():
    command = [sys.executable, "-c", "import sys; sys.exit('no data')"]
    with pytest.raises(RuntimeError, match="ended without 'first step': no data"):
        first_step.seconds_to("first step", command)


def test_the_ratio_is_that_of_a_repetition():
    took = {"bare": [2.0, 4.0, 5.0], "auto": [3.0, 4.0, 10.0]}  # 1.5, 1 and 2: not 4 / 4
    assert first_step.rows(took)[2:] == [
        "| `bare` | 4.00 (2.00 to 5.00) |  |",
        "| `auto` | 4.00 (3.00 to 10.00) | 1.500 [1.000, 2.000] |",
    ]


def test_every_side_starts_in_turn_and_the_first_is_not_counted(tmp_path, monkeypatch):
    started = []

    def seconds_to(said, command):
        started.append("bare" if "bare_mnist" in command[1] else command[-1].rpartition("=")[2])
        return float(len(started))

    monkeypatch.setattr(first_step, "seconds_to", seconds_to)
    took = first_step.measure(2, ["graph", "xla"], tmp_path)
    assert started == ["xla", "graph", "bare", "bare", "graph", "xla", "xla", "graph", "bare"]
    assert took == {"bare": [4, 9], "graph": [5, 8], "xla": [6, 7]}


def test_sides_say_the_same(tmp_path):
    sides = first_step.commands(["auto", "xla"], tmp_path, tmp_path / "runs")
    assert first_step.SAID in bare_mnist.FIRST_STEP
    assert sides["bare"][-1] == f"--folder={tmp_path}"
    assert sides["auto"][-1] == f"--workdir={tmp_path / 'runs' / 'auto'}"
    assert sides["xla"][-1] == "--config.train.compile=xla"


# ---- cost_growth.py ----

ROWS = [
    Row("batch", 32, 32, [0.5, 0.25, 1.0]),
    Row("batch", 128, 128, [1.0, 1.0, 1.0]),
    Row("examples", 1_000_000, 128, [0.1, 0.2, 0.3]),
]


def test_a_row_has_rates_of_the_median():
    assert ROWS[0].line() == "| batch | 32 | 32 | 0.500 (0.250 to 1.000) | 2,000 | 64,000 |"
    assert ROWS[2].line() == "| examples | 1,000,000 | 128 | 0.200 (0.100 to 0.300) | 5,000 | 640,000 |"


@pytest.mark.parametrize("count", [10_000, 1_000_000, 50_000_000])
def test_the_width_gives_so_many_parameters(count):
    width = cost_growth.width_for(count, 784, 10)
    parameters = 784 * width + width + width * width + width + width * 10 + 10
    assert abs(parameters - count) <= (784 + 2 * width + 13) / 2 + 1  # half of what one more unit brings


def test_the_model_of_a_width_has_them():
    width = cost_growth.width_for(20_000, 784, 10)
    dense = [keras.layers.Dense(units) for units in (width, width, 10)]
    model = keras.Sequential([keras.Input([784]), *dense])
    assert abs(model.count_params() - 20_000) < 600


def test_cost_of_hooks_at_default_settings():
    cost = Cost("cnn", "graph", 10, on=[1.1, 2.4, 3.0], off=[1.0, 2.0, 3.0])  # 1.1, 1.2, 1
    assert cost.percent() == pytest.approx((1.0, 0.0, 2.0))
    assert cost.line() == "| cnn | graph | 2.000 | 1.100 [1.000, 1.200] | 10 x | 1.0 % [0.0, 2.0] |"


def test_a_turn_has_whole_periods():
    """Of histograms: epochs of 469 and 977 steps, or what the settings say."""
    assert growth_hooks.STEPS.keys() == growth_hooks.COMPILE.keys() == {*WORKLOADS}
    assert growth_hooks.STEPS["mlp"] % 469 == growth_hooks.STEPS["two_tower"] % 977 == 0
    for workload, (often, text) in growth_hooks.OFTEN.items():
        periods = dict(part.split("=") for part in text.split(","))
        assert periods["log.every"] == f"{100 // often} steps"
        assert growth_hooks.STEPS[workload] % int(periods["log.histograms_every"].split()[0]) == 0


def test_a_repetition_has_hooks_at_work_once_and_orders_alternate():
    turns = [growth_hooks.is_on(turn) for turn in range(8)]
    assert all(sum(turns[first : first + 2]) == 1 for first in range(0, 8, 2))
    assert turns[:2] == turns[2:4][::-1] == turns[4:6]


def test_hooks_that_are_idle_are_due_at_the_same_steps(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(protocol.__file__).parent))
    from tests.benchmarks.peers.ours_by_turns import Turns

    turns, seen, written = Turns(), [], []
    hooks = Hooks([turns.hook(10, lambda context: seen.append(context.step), "log")], 0, 100)
    for step in (10, 20, 30):
        turns.is_on = step == 20
        assert hooks.next_step == step
        hooks.act(Context(step, None, None, None, Progress(1, 0.0, {}, {})))
    assert seen == [20] and hooks.next_step == 40

    class Slow(Writer):
        def scalars(self, step, values):
            time.sleep(0.2)
            written.append(step)

    writer = turns.asynchronous(Slow())
    writer.scalars(1, {})
    turns.wait()
    assert written == [1]
    writer.close()


def test_the_file_keeps_what_other_calls_measured(tmp_path):
    path = tmp_path / "growth.json"
    assert cost_growth.read(path) == cost_growth.read(None) == ([], [])
    costs = [Cost("mlp", "xla", 1, [2.0], [1.0])]
    cost_growth.write(path, ROWS, costs)
    assert cost_growth.read(path) == (ROWS, costs)


def test_new_rows_take_the_place_of_their_piece():
    new = [Row("batch", 8, 8, [3.0]), Row("replicas", 2, 384, [4.0])]
    found = cost_growth.merged(ROWS, new, lambda row: row.piece, list(cost_growth.SIZES))
    assert [(row.piece, row.size) for row in found] == [("batch", 8), ("replicas", 2), ("examples", 1_000_000)]


def test_the_table_has_everything_and_the_plot_a_panel_a_piece():
    lines = cost_growth.table(ROWS, [Cost("mlp", "xla", 1, [2.0], [1.0])])
    assert [line.count("|") for line in lines if line] == [7] * len(list(filter(None, lines)))
    assert lines[2] == ROWS[0].line() and lines[-1].startswith("| mlp | xla | 1.000 | 2.000 [2.000, 2.000] | 1 x |")
    assert cost_growth.panels(ROWS) == [
        Panel("batch size", "ms a step", [(32, 0.5), (128, 1.0)]),
        Panel("examples", "ms a step", [(1_000_000, 0.2)]),
    ]


def test_flags():
    options = cost_growth.parse(["--pieces=batch,hooks", "--workloads=mlp"])
    assert (options.pieces, options.workloads) == (["batch", "hooks"], ["mlp"])
    assert cost_growth.parse(["--pieces="]).pieces == []
    assert cost_growth.parse([]).pieces == [*cost_growth.SIZES, "hooks"]


def test_an_unknown_piece_is_refused(capsys):
    with pytest.raises(SystemExit):
        cost_growth.parse(["--pieces=bacth"])
    assert "--pieces: there is no bacth. Known: batch, parameters, replicas, examples, hooks" in capsys.readouterr().err


# ---- plot.py ----


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1, 1000, [1, 10, 100, 1000]), (8, 8192, [1, 10, 100, 1000, 10_000]), (0.2, 0.3, [0.1, 1]), (1, 1, [1, 10])],
)
def test_ticks_are_powers_of_ten_around_the_range(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_short_numbers():
    numbers = (0.1, 1, 10, 1e3, 1e4, 5e7)
    assert [short(number) for number in numbers] == ["0.1", "1", "10", "1k", "10k", "50M"]


def test_the_chart_is_svg_with_points_where_they_belong():
    text = svg([Panel("a < b", "ms", [(1, 1), (10, 10), (100, 100)]), Panel("level", "ms", [(1, 5), (100, 5)])] * 2)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    groups = root.findall(f"{space}g")
    assert [group.get("transform") for group in groups] == [
        *("translate(0 0)", "translate(300 0)", "translate(0 230)", "translate(300 230)")
    ]
    assert (root.get("width"), root.get("height")) == ("600", "460")
    first = [(float(c.get("cx")), float(c.get("cy"))) for c in groups[0].iter(f"{space}circle")]
    # The frame goes from (56, 186) to (276, 30); a power of ten is half of it.
    assert first == [(56.0, 186.0), (166.0, 108.0), (276.0, 30.0)]
    level = {c.get("cy") for c in groups[1].iter(f"{space}circle")}
    assert len(level) == 1
    assert "a < b" in [element.text for element in groups[0].iter(f"{space}text")]
    dashed = next(p.get("d") for p in groups[0].iter(f"{space}path") if p.get("stroke-dasharray"))
    assert re.findall(r"[\d.]+", dashed) == ["56.0", "186.0", "276.0", "30.0"]  # in proportion: along the points
