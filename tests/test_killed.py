"""A run that is killed in any phase of a save comes back from the last complete one and ends in the same bits."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The phases of tests/killed.py at the save of step 4: how the process ends, and from where the run goes on.
PHASES = {
    "none": (0, 6),
    "during the copy": (-signal.SIGKILL, 2),
    "before the write": (-signal.SIGKILL, 2),
    "in the middle of the arrays": (-signal.SIGKILL, 2),
    "before the manifest": (-signal.SIGKILL, 2),
    "before the rename": (-signal.SIGKILL, 2),
    "before the pointer": (-signal.SIGKILL, 4),
    "in the middle of pruning": (-signal.SIGKILL, 4),
    "SIGTERM twice": (-signal.SIGTERM, 2),
    "SIGINT twice": (-signal.SIGINT, 2),
}


@pytest.fixture(scope="module", params=["pruned", pytest.param("quantized", marks=pytest.mark.slow)])
def ended(request, tmp_path_factory):
    """The folder of all runs, and {phase: [how the killed process ended, how the next one]}."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.killed", str(folder), request.param]
    subprocess.run(command, check=True, capture_output=True, timeout=280, cwd=ROOT)
    return folder, json.loads((folder / "results.json").read_text())


def test_all_phases_are_listed_here(ended):
    assert list(ended[1]) == list(PHASES)


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_run_comes_back(ended, phase):
    folder, results = ended
    status, start = PHASES[phase]
    assert results[phase] == [status, 0]
    went_on = json.loads((folder / f"{phase}.1.json").read_text())
    whole = json.loads((folder / "none.0.json").read_text())
    assert went_on == {"start": start, "digest": whole["digest"]}
    assert sorted(path.name for path in (folder / phase / "checkpoints").iterdir()) == ["last.json", "step-00000006"]
