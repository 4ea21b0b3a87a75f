"""A run at s3://: s3fs, and a server that moto starts."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_at_s3_goes_on_on_another_machine_to_the_same_bits(tmp_path):
    for package in ("s3fs", "moto", "flask"):
        if importlib.util.find_spec(package) is None:  # their import leaves threads
            pytest.skip(f"needs s3fs and moto[server], which no extra has: {package} is not installed")
    # s3fs leaves a thread, too, so that the run is in a process of its own.
    subprocess.run([sys.executable, "-m", "tests.at_s3", str(tmp_path)], check=True, timeout=880, cwd=ROOT)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["moved"] == results["alone"]
    saved = [name for name in results["names"] if name.startswith("checkpoints/")]
    step = "checkpoints/step-00000008"
    assert saved == ["checkpoints/last.json", f"{step}/arrays.bin", f"{step}/manifest.json"]
    assert {".copied.json", "config.json", "metrics.jsonl", "report.html", "result.json"} <= {*results["names"]}
    assert ".holder.json" not in results["names"]
