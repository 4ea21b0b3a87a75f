"""What an export says of itself, in its report and on the console: numbers of a hook's own, whose data it holds."""

import dataclasses
import json

from framework.modes.export import notes
from tests.export.fakes import SIGNATURE, Fake, Scale, export_one

HOLDS = "titles of made-up films: not to be passed on"


@dataclasses.dataclass(frozen=True)
class Measuring(Fake):
    """A hook that measures the factor of the model and the examples."""

    signature: object = dataclasses.replace(SIGNATURE, holds=HOLDS)

    def measure(self, model, batches):
        numbers = {"factor": float(model.factor), "examples": sum(len(batch["x"]) for batch in batches)}
        return {"scale": numbers, "note": "as it is"}


def test_the_report_has_what_the_hook_measured_and_whose_data_it_holds(tmp_path):
    report = export_one(tmp_path, Measuring(), model=Scale(1.5))
    assert (report.measured, report.holds) == ({"scale": {"factor": 1.5, "examples": 3}, "note": "as it is"}, [HOLDS])
    stored = json.loads((tmp_path / "report.json").read_text())[0]
    assert (stored["measured"], stored["holds"]) == (report.measured, [HOLDS])
    assert [*notes(report)] == ["scale: factor 1.5, examples 3", "note: as it is", f"holds {HOLDS}"]


def test_an_artefact_that_fails_measures_nothing_and_one_without_a_measure_says_nothing(tmp_path):
    failed = export_one(tmp_path, Measuring(spoil=lambda outputs: {"logits": outputs["logits"] + 1}))
    assert not failed.passed and failed.measured == {} and failed.holds == [HOLDS]
    plain = export_one(tmp_path, Fake())
    assert plain.passed and [*notes(plain)] == []
