"""--mode=export: exports a checkpoint of a run by every export hook, and verifies each artefact."""

from collections.abc import Iterator, Mapping, Sequence

from framework.export.formats import select
from framework.folder import PAGE
from framework.pages.exports import ExportReport
from framework.run import lookback
from framework.run.exporting import check_declared, export_run
from framework.run.run import Run


def main(run: Run, overrides: Sequence[str], checkpoint: str | int | None = None, formats: str | None = None) -> int:
    """Exports a checkpoint, by default that of `export.checkpoint`; returns 1 if an artefact fails its verification.

    Args:
      run: as built.
      overrides: as typed.
      checkpoint: 'last', 'best' or the number of a step.
      formats: 'saved_model,lite_int8', the names of the formats; None exports every hook of `make_exports`.
    """
    check_declared(run)
    names = [name.strip() for name in formats.split(",")] if formats is not None else []
    select(run.exports, names)  # a wrong name is told before the checkpoint is read
    step = run.restore(checkpoint or run.resolved.export.checkpoint, average=run.resolved.checkpoint.average)
    run.recall()
    print(f"exporting step {step} of {run.typed_workdir}")
    for line in lookback.lines(run):
        print(f"  {line}")
    return print_reports(run, names)


def print_reports(run: Run, formats: Sequence[str] = ()) -> int:
    """Exports the present state, prints a line for each hook, and returns the exit status."""
    reports = export_run(run, formats)
    for report in reports:
        print(f"  {report.hook:<14} {describe(report)}")
        for line in notes(report):
            print(f"    {line}")
    print(f"  exports/{PAGE} compares them")
    return 0 if all(report.passed for report in reports) else 1


def describe(report: ExportReport) -> str:
    """Returns 'exports/lite/model.tflite  403 kB, max error 1.2e-06 (bound 5.1e-05), p50 0.02 ms', or why it failed."""
    if not report.passed:
        return f"FAILED: {report.failure}"
    worst = report.worst_output
    return (
        f"exports/{report.path}  {report.size}, max error {worst['max_error']:.2g}"
        f" (bound {worst['bound']:.2g}), p50 {report.latency_ms['1']['p50']:.3f} ms"
    )


def notes(report: ExportReport) -> Iterator[str]:
    """Yields 'approximate_index: recall@10 0.9987, exact_ms 0.2', and whose data the artefact holds."""
    for name, value in report.measured.items():
        numbers = value.items() if isinstance(value, Mapping) else [("", value)]
        yield f"{name}: " + ", ".join(
            f"{key} {number:.4g}".strip() if isinstance(number, float) else f"{key} {number}".strip()
            for key, number in numbers
        )
    for text in report.holds:
        yield f"holds {text}"
