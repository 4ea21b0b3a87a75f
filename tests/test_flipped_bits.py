"""A single flipped bit in any file of a run folder: the run goes on or says one line, and never ends in other numbers.

Each flip hits a copy of a folder, of a run that has ended or of one that was killed. Then the run is started and
evaluated, its best restored, a step replayed, and its export compared. `python -m tests.flipped` counts by file.
"""

import pytest

from tests.flipped import Bench

SEED = 16


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("flipped"))


def test_the_folders_hold_every_kind_of_file(bench):
    names = {name for _, name, _ in bench.flips(2000, SEED)}
    kinds = {name.rpartition("/")[2].partition(".tfevents")[0] for name in names}
    assert kinds >= {
        "config.json", "environment.json", "metrics.jsonl", "result.json", "overrides.txt", "flipped.py", "report.json",
        "numbers.json", "last.json", "best.json", "manifest.json", "arrays.bin", "events.out",
    }  # fmt: skip
    assert bench.entered(bench.folders["ended"]) == 0 and bench._outcome(bench.folders["ended"]) == bench.expected


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in (2, 3))])
def test_a_few_flips(bench, part):
    for number, flip in enumerate(bench.flips(40, SEED)):
        if number % 4 == part:
            assert bench.flip(*flip), flip


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(6))
def test_three_thousand_flips(bench, part):
    found = {}
    for flip in bench.flips(500, 100 + part):
        try:
            bench.flip(*flip)
        except Exception as error:
            found[flip] = f"{type(error).__name__}: {error}"
    assert not found
