"""Hyperparameters of runs as TensorBoard's own HParams plugin serves them over HTTP, beside the metrics of the runs."""

import json

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
from werkzeug.test import Client
from werkzeug.wrappers import Response

from framework.run.loop import train
from framework.writers import TensorBoard
from tests import small

ANY = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


def groups(folder):
    """{hyperparameters as JSON: {tag of a metric: value}} of the table of the plugin."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    context = TBContext(logdir=str(folder), data_provider=MultiplexerDataProvider(multiplexer, str(folder)))
    app = HParamsPlugin(context).get_plugin_apps()["/session_groups"]
    response = Client(app, Response).post("/", json={"startIndex": 0, "sliceSize": 9, "allowedStatuses": ANY})
    assert response.status_code == 200, response.get_data(as_text=True)
    return {
        json.dumps(group["hparams"], sort_keys=True): {
            f"{value['name']['group']}/{value['name']['tag']}": value["value"] for value in group["metricValues"]
        }
        for group in json.loads(response.get_data())["sessionGroups"]
    }


def test_the_table_has_the_values_and_metrics_of_each_run(tmp_path):
    expected = {}
    for name, rate, accuracy in (("a", 0.1, 0.5), ("b", 0.2, 0.75)):
        values = {"schedule.learning_rate": rate, "model.hidden": 64, "data.flip": True, "optimizer.name": "sgd"}
        writer = TensorBoard(tmp_path / name / "tensorboard")
        writer.hyperparameters(values)
        writer.scalars(3, {"eval/test/accuracy": 0.25})
        writer.scalars(6, {"eval/test/accuracy": accuracy, "loss": 1.5})
        writer.close()
        expected[json.dumps(values, sort_keys=True).replace("64", "64.0")] = {
            "eval/test/accuracy": accuracy,
            "train/loss": 1.5,
        }
    assert groups(tmp_path) == expected


def test_a_run_writes_its_seed_and_what_is_no_default_once(tmp_path):
    for _ in range(2):  # the second start finds that the run has ended
        train(small.build(tmp_path, **{"optimizer.name": "sgd"}))
    ((values, metrics),) = groups(tmp_path).items()
    found = json.loads(values)
    assert (found["seed"], found["optimizer.name"], found["schedule.learning_rate"]) == (0, "sgd", 0.01)
    assert "train.on_nonfinite" not in found  # a default
    assert metrics["train/loss"] > 0


def test_a_value_that_was_typed_is_written_also_if_it_is_the_default(tmp_path):
    """As those of a sweep are: a trial may have the default by chance."""
    train(
        small.build(tmp_path, **{"train.duration": "4 steps", "train.compile": "eager"}),
        ["--config.optimizer.beta_1=0.9", "--noconfig.optimizer.nesterov"],
    )
    (values,) = groups(tmp_path)
    found = json.loads(values)
    assert (found["optimizer.beta_1"], found["optimizer.nesterov"]) == (0.9, False)
