"""Fresh processes: what they load, what they give back, and how they fail."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from framework.errors import RunError
from framework.export import Lite, Runtime, SavedModel, Signature, export_all, lite_runtime, processes, worker
from tests.export.fakes import SIGNATURE, Fake, Scale, X, make_batch

MULTIPLY = """
import os, sys
import numpy as np
print("to standard output")
def load(path, **settings):
    open(path + ".pids", "a").write(f"{os.getpid()} {'tensorflow' in sys.modules} {'framework' in sys.modules}\\n")
    factor = np.float32(open(path).read())
    if factor == 13:
        os.kill(os.getpid(), 11)
    if factor == 7:
        raise ValueError("not a factor: 7")
    def call(inputs):
        if factor == 5 and len(inputs["x"]) == 1:
            print("dying", file=sys.stderr, flush=True)
            os._exit(3)
        if factor == 3:
            import time
            time.sleep(60)
        return {"logits": inputs["x"] * factor + np.float32(settings.get("shift", 0))}
    return {"serving_default": call}
"""


@dataclasses.dataclass(frozen=True)
class Remote(Fake):
    """Is loaded by the file alone."""

    runtime: Runtime | None = None

    def load(self, path):
        raise AssertionError("loaded in this process")


@pytest.fixture
def runtime(tmp_path):
    (tmp_path / "multiply.py").write_text(MULTIPLY)
    return Runtime(tmp_path / "multiply.py")


def export(folder, factor, *hooks):
    return export_all(hooks, Scale(factor), [make_batch(X), make_batch(X[:2])], {}, folder / "exports", is_fresh=True)


def test_hooks_of_a_runtime_share_a_process_that_has_the_runtime_alone(tmp_path, runtime):
    reports = export(tmp_path, 2.0, Remote("one", runtime=runtime), Remote("two", runtime=runtime))
    assert [report.failure for report in reports] == ["", ""]
    assert reports[0].outputs["logits"]["max_error"] == 0 and reports[0].examples == 5
    assert 0 < reports[0].latency_ms["1"]["p50"] <= reports[0].latency_ms["1"]["p99"]


def test_the_process_is_another_and_ends(tmp_path, runtime):
    (tmp_path / "factor").write_text("2.0")
    with processes.Processes() as fresh:
        first = fresh.load(runtime, tmp_path / "factor")
        outputs = first.calls["serving_default"]({"x": X})
        fresh.load(dataclasses.replace(runtime, settings={"shift": 1}), tmp_path / "factor")
        shifted = fresh.load(dataclasses.replace(runtime, settings={"shift": 1}), tmp_path / "factor")
        np.testing.assert_array_equal(shifted.calls["serving_default"]({"x": X})["logits"], 2 * X + 1)
    np.testing.assert_array_equal(outputs["logits"], 2 * X)
    told = [line.split() for line in (tmp_path / "factor.pids").read_text().splitlines()]
    [pid] = {pid for pid, *_ in told}
    assert {(with_tensorflow, with_us) for _, with_tensorflow, with_us in told} == {("False", "False")}
    assert int(pid) != os.getpid() and not Path("/proc", pid).exists()


@pytest.mark.parametrize(
    ("factor", "failure"),
    [
        (13.0, "the fresh process of multiply.py ended by SIGSEGV (load); its last words: to standard output"),
        (7.0, "in the fresh process of multiply.py, ValueError: not a factor: 7"),
        (
            5.0,
            "the fresh process of multiply.py ended with status 3 (call); its last words: to standard output dying",
        ),
    ],
)
def test_a_crash_fails_one_export_in_one_line(tmp_path, runtime, factor, failure):
    bad, good = export(tmp_path, factor, Remote("bad", runtime=runtime), Fake("good"))
    assert (bad.failure, good.failure) == (failure, "")
    assert bad.path == "bad.failed/factor.txt"
    report = json.loads((tmp_path / "exports/report.json").read_text())
    assert [entry["passed"] for entry in report] == [False, True]


def test_after_a_crash_the_next_artefact_has_a_new_process(tmp_path, runtime):
    for name, factor in (("bad", "13"), ("good", "2")):
        (tmp_path / name).write_text(factor)
    with processes.Processes() as fresh:
        with pytest.raises(RunError, match="ended by SIGSEGV"):
            fresh.load(runtime, tmp_path / "bad")
        outputs = fresh.load(runtime, tmp_path / "good").calls["serving_default"]({"x": X})
    np.testing.assert_array_equal(outputs["logits"], 2 * X)


def test_a_process_that_hangs_is_given_up(tmp_path, runtime, monkeypatch):
    (tmp_path / "slow").write_text("3")
    with processes.Processes() as fresh:
        artefact = fresh.load(runtime, tmp_path / "slow")
        monkeypatch.setattr(processes, "_LONGEST_SECONDS", 0.5)
        with pytest.raises(RunError, match=r"the fresh process of multiply.py gave no answer for 0 s \(call\)"):
            artefact.calls["serving_default"]({"x": X})


def test_arrays_pass_through_files_as_they_are(tmp_path):
    arrays = {
        "logits": np.float32([[1, np.nan], [-np.inf, 0]]),
        "none": np.zeros([0, 3], np.int64),
        "text": np.array([[b"a\0\0", b""], [b"\xff\xfe", "ü".encode()]], object),
        "one": np.array([b"alone"], object),
        "fixed": np.array([b"ab", b"c"]),
        "half": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
        "is_true": np.array([True, False]),
    }
    worker.write_arrays(tmp_path / "arrays.npz", arrays)
    read = worker.read_arrays(tmp_path / "arrays.npz")
    assert [*read] == [*arrays]
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(read[name], array)


def test_litert_needs_nothing_else():
    script = (
        "import runpy, sys; runpy.run_path(sys.argv[1]);"
        " print(sorted({name.partition('.')[0] for name in sys.modules} & {'tensorflow', 'framework', 'tf_keras'}))"
    )
    command = [sys.executable, "-P", "-c", script, lite_runtime.__file__]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_formats_of_ours_in_fresh_processes(tmp_path):
    """A SavedModel of texts and a .tflite, each by its own runtime, give what they give in this process."""
    texts = Signature(
        lambda model, inputs: {"text": tf.strings.join(["<", inputs["word"], ">"])},
        {"word": tf.TensorSpec([None], tf.string)},
    )
    saved = SavedModel({"serving_default": SIGNATURE, "texts": texts})
    batch = {**make_batch(X), "word": np.array([b"a", b"\xff\0", b""], object)}
    reports = export_all([saved, Lite(SIGNATURE)], Scale(1.5), [batch], {}, tmp_path, is_fresh=True)
    assert [report.failure for report in reports] == ["", ""]
    assert reports[0].outputs["texts/text"]["agreement"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lite", "report.html", "report.json", "saved_model"]
