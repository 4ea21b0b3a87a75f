"""framework/config/former.py: former keys and values are mapped in a stored config, and refused when they are typed."""

import json

import pytest

from framework.config import UserError, apply_preset, base_config, finalize, flatten, former, override
from framework.config.former import FORMER, Former
from framework.config.keys import KEYS
from framework.experiment.load import load
from framework.run import stored_config
from tests.config.finalized import message

WRAP = "data.remainder='carry' is called 'wrap' now. Use --config.data.remainder=wrap."


@pytest.fixture
def planted(monkeypatch):
    """A key that was renamed and one that is gone, beside the real ones."""
    more = {"train.rate": Former("schedule.learning_rate"), "train.gone": Former("", why="the model knows")}
    monkeypatch.setattr(former, "FORMER", {**FORMER, **more})


def test_the_table_is_of_today():
    for key, entry in FORMER.items():
        assert (entry.now in KEYS) if entry.now else (key not in KEYS and entry.why)
        assert entry.now == key or key not in KEYS
        for old, new in entry.values.items():
            assert new in KEYS[entry.now].choices and old not in KEYS[entry.now].choices


def test_a_stored_config(planted):
    values = {key: line.default for key, line in KEYS.items()}
    stored = {**values, "data.remainder": "carry", "train.rate": 0.5, "train.gone": True, "model.width": 3}
    del stored["schedule.learning_rate"], stored["log.images"]
    assert former.renamed(stored) == {**values, "schedule.learning_rate": 0.5, "model.width": 3}


def test_a_former_value_is_refused():
    assert message(finalize, override(base_config(), ["--config.data.remainder=carry"])) == WRAP
    assert message(finalize, override(base_config(), {"data.remainder": "carry"})) == WRAP
    assert message(finalize, apply_preset(base_config(), "x", {"x": {"data.remainder": "carry"}})) == WRAP
    config = base_config()
    config.data.remainder = "carry"
    assert message(finalize, config) == WRAP


def test_a_former_key_is_refused(planted):
    renamed = "'train.rate' is called 'schedule.learning_rate' now. Use --config.schedule.learning_rate."
    gone = "the key 'train.gone' is gone: the model knows. Leave it out."
    assert message(override, base_config(), ["--config.train.rate=1"]) == f"--config.train.rate=1: {renamed}"
    assert message(override, base_config(), {"train.gone": 1}) == f"--config.train.gone=1: {gone}"
    assert message(override, base_config(), ["--noconfig.train.gone"]) == f"--noconfig.train.gone: {gone}"
    preset = {"x": {"train.gone": 1}}
    assert message(apply_preset, base_config(), "x", preset) == f"preset 'x' sets 'train.gone': {gone}"


@pytest.mark.parametrize("key", ["checkpoint.best_mode", "early_stopping.mode"])
def test_the_mode_of_a_metric_is_gone(tmp_path, key):
    said = f"the key '{key}' is gone: the metric says whether its minimum or its maximum is best; of a loss it is the"
    said += " minimum. Leave it out."
    assert message(override, base_config(), [f"--config.{key}=max"]) == f"--config.{key}=max: {said}"
    file = tmp_path / "x.py"
    head = "from framework.config import base_config\ndef get_config(arg):\n    config = base_config()\n"
    functions = "def make_data(cfg, split): ...\ndef make_model(cfg): ...\ndef make_loss(cfg): ...\n"
    functions += "def make_schedule(cfg, total_steps): ...\n"
    file.write_text(f"{head}    config.{key} = 'max'\n    return config\n{functions}")
    assert message(load(str(file)).get_config) == f"{file}:4: config.{key} = 'max': {said}"


def test_a_former_key_that_get_config_sets(planted, monkeypatch):
    monkeypatch.setitem(former.FORMER, "data.order", Former("data.shuffle"))
    config = base_config()
    config.data.order = True
    assert message(finalize, config) == (
        "get_config set 'data.order': 'data.order' is called 'data.shuffle' now. Use --config.data.shuffle."
    )


def write(folder, values):
    nested = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    (folder / "config.json").write_text(json.dumps(nested))


def test_the_config_of_an_older_run_is_mapped_and_its_hash_still_known(planted, tmp_path):
    """Checkpoints from before and after the mapping know their config; one whose digit flipped does not."""
    flat = json.loads(json.dumps(flatten(base_config()))) | {"data.remainder": "carry", "train.gone": 7}
    older = {**flat, "train.rate": 0.5}
    del older["schedule.learning_rate"]
    begun = stored_config._hash(older)
    write(tmp_path, older)
    stored = stored_config.read(tmp_path)
    config = override(base_config(), {"schedule.learning_rate": 0.5})
    assert stored.differing(config) == {}
    ours = stored_config.of(config).hashes()[0]
    for hash_of in (begun, ours):
        stored_config.refuse_altered(tmp_path, stored, {"config": hash_of})
    # Written by a run that continues with another duration, which keeps all of them.
    longer = override(config, {"train.duration": "9 epochs"})
    stored_config.write(tmp_path, stored.changed(longer, 40))
    again = stored_config.read(tmp_path)
    assert again.values == stored_config.of(longer).values
    for hash_of in (begun, ours, stored_config.of(longer).hashes()[0]):
        stored_config.refuse_altered(tmp_path, again, {"config": hash_of})
    older["train.gone"] = 8
    write(tmp_path, older)
    with pytest.raises(UserError, match="is not what the checkpoints of the run were trained with"):
        stored_config.refuse_altered(tmp_path, stored_config.read(tmp_path), {"config": begun})


def test_a_config_of_today_is_read_as_it_stands(tmp_path):
    stored = stored_config.of(base_config())
    stored_config.write(tmp_path, stored)
    assert stored_config.read(tmp_path) == stored
