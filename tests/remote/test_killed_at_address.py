"""A run that is killed while it copies leaves a whole checkpoint at the address, from which it goes on exactly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The moments of tests/killed_at_address.py: the steps of the whole checkpoints at the address then.
WHOLE = {"arrays": [2], "manifest": [2], "pointer": [2, 4], "deletion": [4], "marker": [4], "end": [6]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_while_it_copies_ends_in_the_same_bits_here_and_on_another_machine(tmp_path):
    command = [sys.executable, "-m", "tests.killed_at_address", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=880, cwd=ROOT)
    results = json.loads((tmp_path / "results.json").read_text())
    alone = results.pop("alone")
    assert {moment: found["whole"] for moment, found in results.items()} == WHOLE
    for moment, found in results.items():
        ended = {"exit": 0, "status": "finished", "sha256": alone}
        assert found["status"] == -9
        assert found["cache"] == ended | {"begin": 6 if moment == "end" else 4}, moment
        assert found["another"] == ended | {"begin": WHOLE[moment][-1]}, moment
        assert " is in use by process " in found["refused"] and "If it has died, the same" in found["refused"]
