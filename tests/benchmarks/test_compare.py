"""tests/benchmarks/compare.py: pairs, ratios, table and file, with processes that only say how long they took."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import compare
from tests.benchmarks.peers import protocol
from tests.benchmarks.peers.gate import Gate
from tests.benchmarks.ratios import interval
from tests.benchmarks.turns import PeerError, Process, sequence

# Says the numbers of its arguments one after the other; 'break' ends it. Notes its turns beside its script.
FAKE = """
import json, sys
from pathlib import Path
import tests.benchmarks.ratios  # a peer imports from the project, whatever environment it has

ready = {"versions": {"fake": sys.argv[1]}, "variant": "fast", "variants": {"fast": 1.0, "slow": 2.5}}
print(json.dumps({**ready, "compile_seconds": float(sys.argv[2])}), flush=True)
for line, number in zip(sys.stdin, sys.argv[3:]):
    if number == "break":
        sys.exit("RuntimeError: out of\\n  Error: memory\\n\\n")
    with Path(__file__).with_name("turns.txt").open("a") as turns:
        turns.write(f"{sys.argv[1]} {line}")
    print(json.dumps({"ms": float(number), "loss": float(number)}), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts fakes by what they are to say; the first number is that of the warm-up."""
    (tmp_path / "fake.py").write_text(FAKE)

    def starter(said):
        return lambda name, workload, precision: Process(
            [sys.executable, str(tmp_path / "fake.py"), name, *map(str, said[name])]
        )

    return starter


def test_ratios_are_of_neighbours_and_the_warm_up_is_not_counted(start, tmp_path):
    said = {
        "ours": (9, 99, 2, 4, 6, 3, 8, 5),  # two turns a repetition: one for a and b, one for c
        "a": (1, 99, 4, 4, 4),
        "b": (61, 99, 1, 2, 3),
        "c": (1, 99, 2, 2, 2),
    }
    results, failed = compare.measure("mlp", "float32", ["a", "b", "c"], start(said), steps=7, repetitions=3)
    assert failed == {}
    there, back = ["a", "ours", "b", "c", "ours"], ["ours", "c", "b", "ours", "a"]
    turns = (tmp_path / "turns.txt").read_text().splitlines()
    assert turns == [f"{name} run 7" for name in ["ours", "a", "b", "c", *there, *back, *there]]
    a, b, c = results
    assert (a.ours, a.theirs) == ([2, 3, 8], [4, 4, 4])
    assert (b.ours, b.theirs) == ([2, 3, 8], [1, 2, 3])
    assert (c.ours, c.theirs) == ([4, 6, 5], [2, 2, 2])
    assert a.row() == {
        **{"workload": "mlp", "precision": "float32", "peer": "a"},
        **{"peer_ms": 4, "ours_ms": 3, "ratio": 0.75, "low": 0.5, "high": 2.0},
    }
    assert b.row()["ratio"] == 2.0  # the median of 2, 1.5 and 2.67, not 3 / 2
    assert a.line() == (
        "| mlp | float32 | a | fast | 4.000 (4.000 to 4.000) | fast | 3.000 (2.000 to 8.000) | 0.750 [0.500, 2.000] |"
    )
    assert "| fast; 61 s to compile |" in b.line()


@pytest.mark.parametrize(("numbers", "after"), [((1, "break"), "warm-up"), ((1, 1, 1, "break"), "repetition")])
def test_a_peer_that_fails_is_told_and_the_others_go_on(start, numbers, after):
    said = {"ours": (1, 99, 2, 2, 2), "a": (1, *numbers[1:]), "b": (1, 99, 4, 4, 4)}
    results, failed = compare.measure("cnn", "bfloat16", ["a", "b"], start(said), steps=1, repetitions=3)
    assert failed == {"a": "Error: memory"}
    assert [(result.peer, result.row()["ratio"]) for result in results] == [("b", 0.5)]


def test_a_peer_that_does_not_train_is_no_peer(start):
    said = {"ours": (1, 99, 2), "a": (1, 99, "nan")}
    assert compare.measure("mlp", "float32", ["a"], start(said), 1, 1) == ([], {"a": "its loss is nan"})


def test_without_ours_there_is_no_ratio(start):
    said = {"ours": (1, "break"), "a": (1, 9, 9, 9)}
    assert compare.measure("mlp", "float32", ["a"], start(said), 1, 3) == ([], {"ours": "Error: memory"})


def test_whoever_has_no_turn_is_stopped(start):
    with start({"a": (1, 5, 6)})("a", "", "") as a:
        assert a.ready()["variant"] == "fast"
        assert state(a.id) == "T"
        assert a.run(3) == 5
        assert state(a.id) == "T"
    with pytest.raises(ProcessLookupError):
        os.kill(a.id, 0)


def state(process, seconds=5):
    """Its letter in /proc once it is stopped, or whatever it is by then."""
    deadline = time.monotonic() + seconds
    while True:
        letter = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        if letter == "T" or time.monotonic() > deadline:
            return letter
        time.sleep(0.01)


def test_no_answer_in_time(monkeypatch):
    monkeypatch.setattr("tests.benchmarks.turns.PREPARE_SECONDS", 0.2)
    asleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with Process(asleep) as process, pytest.raises(PeerError, match="no answer after 0 s"):
        process.ready()


def test_table_file_and_status(start, tmp_path, capsys, monkeypatch):
    said = {"ours": (1, 99, *[3] * 5), "bare": (1, 99, *[2] * 5), "tf_keras": (1, "break")}
    monkeypatch.setattr(compare, "start_peer", start(said))
    path = tmp_path / "rows.json"
    arguments = ["--workloads=two_tower", "--peers=bare,tf_keras", "--quick", f"--json={path}"]
    assert compare.main(arguments) == 1
    out, err = capsys.readouterr()
    assert err == "tf_keras failed: Error: memory\n"
    assert re.search(r"^.+, \d+ cores, \d+ GB, .+, Python [\d.]+; load at the start [\d.]+$", out, re.MULTILINE)
    assert (
        "| two_tower | float32 | bare | fast | 2.000 (2.000 to 2.000) | fast | 3.000 (3.000 to 3.000)"
        " | 1.500 [1.500, 1.500] |\n"
    ) in out
    assert out.endswith(
        "\nours: fake ours\nbare: fake bare\nbare on two_tower in float32 chose among, ms a step: fast 1, slow 2.5\n"
        "tf_keras failed on two_tower in float32: Error: memory\n"
    )
    (row,) = json.loads(path.read_text())
    assert row["workload"] == "two_tower" and row["peer"] == "bare"
    assert (row["peer_ms"], row["ours_ms"], row["ratio"]) == (2, 3, 1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--workloads=mpl"],
            "--workloads=mpl: there is no 'mpl'. Did you mean 'mlp'? Known: mlp, cnn, transformer, two_tower.",
        ),
        (["--precisions=float8"], "--precisions=float8: there is no 'float8'."),
        (["--peers=bare,toch"], "--peers=bare,toch: there is no 'toch'. Did you mean 'torch'?"),
        (
            ["--workloads=mlp", "--precisions=bfloat16"],
            "only cnn and transformer are trained in bfloat16. Use e.g. --workloads=cnn.",
        ),
        (["--repetitions=-1"], "--repetitions=-1 is negative. Use e.g. --repetitions=7."),
        (["--json=nowhere/rows.json"], "--json=nowhere/rows.json: there is no folder nowhere. Make it first."),
        (["--peers=bare,torch,jax"], "nowhere/python is missing, which torch, jax need. Type: make peers"),
        (
            ["--before=nowhere"],
            "--before=nowhere is no checkout of the project. Type: git worktree add FOLDER HEAD~1",
        ),
        (["--repetitions=many"], "argument --repetitions: invalid int value: 'many'."),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(compare, "ENVIRONMENT", Path("nowhere/python"))
    assert compare.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and err.count("\n") == 1


def test_what_is_asked_for_without_flags(monkeypatch):
    monkeypatch.setattr(compare, "ENVIRONMENT", Path(sys.executable))
    options = compare.parse([])
    assert options.work == [
        *[("mlp", "float32"), ("cnn", "float32"), ("cnn", "bfloat16")],
        *[("transformer", "float32"), ("transformer", "bfloat16"), ("two_tower", "float32")],
    ]
    assert options.peers == list(compare.PEERS) and options.repetitions == 7
    assert compare.parse(["--peers=ours,bare", "--quick"]).peers == ["bare"]


def test_another_checkout_is_measured_from_its_own_files(tmp_path):
    script = tmp_path / "tests" / "benchmarks" / "peers" / "ours.py"
    script.parent.mkdir(parents=True)
    script.write_text("import json, os, sys\nprint(json.dumps([os.getcwd(), sys.argv[1:], os.environ['PYTHONPATH']]))")
    assert compare.parse([f"--before={tmp_path}", "--peers=bare"]).peers == ["before"]
    with compare.start_peer("before", "mlp", "float32", tmp_path) as process:
        arguments = ["--workload=mlp", "--precision=float32", "--option="]
        assert process.ready() == [str(tmp_path), arguments, str(tmp_path)]


def test_turns_of_ours_are_next_to_each_peer():
    for count in range(1, 9):
        peers = [str(number) for number in range(count)]
        for repetition in range(2):
            turns = sequence(peers, "ours", repetition)
            for place, (name, group) in enumerate(turns):
                neighbours = turns[max(place - 1, 0) : place] + turns[place + 1 : place + 2]
                assert name == "ours" or ("ours", group) in neighbours
            assert sorted(name for name, _ in turns if name != "ours") == peers
        assert sequence(peers, "ours", 1) == sequence(peers, "ours", 0)[::-1]


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(3)
    inside = [low <= 1 <= high for low, high in (interval(rng.normal(1, 0.1, 25)) for _ in range(300))]
    assert 0.9 < np.mean(inside) < 0.995
    assert interval(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)


# ---- What a peer's script is made of ----


def test_protocol_over_pipes(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(
        "import protocol\n"
        "made = []\n"
        "def prepare(workload, precision, option):\n"
        "    print('noise of a framework')\n"
        "    return protocol.Peer(made.append, {'fake': f'{workload} {precision} {option}'}, lambda: sum(made))\n"
        "protocol.serve(prepare)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(protocol.__file__).parent)}
    command = [sys.executable, str(script), "--workload=cnn", "--precision=bfloat16", "--option=eager"]
    done = subprocess.run(
        command, input="run 3\nrun 4\n", capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    ready, first, second = map(json.loads, done.stdout.splitlines())
    assert ready["versions"] == {"fake": "cnn bfloat16 eager"} and ready["compile_seconds"] < 60
    assert (first["loss"], second["loss"]) == (3, 7) and first["ms"] > 0
    assert 0 <= first["processor_ms"] < 60_000
    assert done.stderr == "noise of a framework\n"


def test_the_fastest_way_is_taken_whatever_a_call_costs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: now[0])

    def way(call, step):
        def steps(count):
            now[0] += call + step * count

        return steps

    def broken(count):
        raise ValueError("no such op")

    name, times = protocol.fastest({"eager": way(0.0, 2e-3), "fit": way(0.05, 1e-3), "broken": broken})
    assert name == "fit" and set(times) == {"eager", "fit"}
    assert times["eager"] == pytest.approx(2) and 1 < times["fit"] < 1.15
    assert protocol.compile_seconds["fit"] == pytest.approx(0.051)
    with pytest.raises(ValueError, match="no such op"):
        protocol.fastest({"broken": broken})


def test_what_compiles_only_when_it_makes_several_steps_is_not_slow(monkeypatch):
    now, compiled = [0.0], set()
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: now[0])

    def five_at_once(count):
        for program, runs in (("five", count // 5), ("one", count % 5)):
            if runs and program not in compiled:
                compiled.add(program)
                now[0] += 8.0
            now[0] += runs * (3e-3 if program == "five" else 2e-3)

    name, times = protocol.fastest(
        {"one": lambda count: now.__setitem__(0, now[0] + 1e-3 * count), "five": five_at_once}
    )
    assert name == "five" and times["five"] == pytest.approx(0.6, rel=0.02)
    assert protocol.compile_seconds["five"] == pytest.approx(16, rel=0.01)


def test_the_loss_is_not_taken_for_the_number_of_steps():
    with pytest.raises(TypeError):
        protocol.fastest({"loss": lambda count: 0.25})


def test_a_loop_waits_at_the_gate():
    blocks = []

    def loop(gate):
        while allowed := gate.allowed():
            blocks.append(min(allowed, 4))
            gate.made(blocks[-1])

    gate = Gate(loop)
    gate.steps(6)
    assert blocks == [4, 2]
    gate.steps(1)
    assert blocks == [4, 2, 1]
    gate.close()
    Gate(loop).close()  # never begun


def test_what_ends_the_loop_is_told():
    def loop(gate):
        gate.made(gate.allowed())
        gate.allowed()
        raise ValueError("diverged")

    gate = Gate(loop)
    gate.steps(2)
    with pytest.raises(RuntimeError, match="the loop ended") as error:
        gate.steps(1)
    assert str(error.value.__cause__) == "diverged"

    def too_far(gate):
        gate.made(gate.allowed() + 1)

    with pytest.raises(RuntimeError) as error:
        Gate(too_far).steps(2)
    assert str(error.value.__cause__) == "the loop made 3 steps, but 2 were allowed"
    assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL
