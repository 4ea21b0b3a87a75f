"""The fine-tuning of experiments/README.md from keras.applications, with made-up weights and pictures."""

import re
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

import framework
from framework import testing
from framework.errors import UserError
from tests.made_up import made_up, write_set

pytestmark = pytest.mark.slow

SIZE = 32
VALUES = {
    "model.size": SIZE,
    "train.duration": "2 steps",
    "data.batch_size": 4,
    "eval.batch_size": 10,
    "schedule.warmup": "",
    "checkpoint.best_metric": "",
    "log.histograms_every": "",
}


@pytest.fixture
def experiment(tmp_path):
    """The file as the page has it."""
    page = Path("experiments/README.md").read_text()
    (text,) = re.findall(r"```python experiments/fine_tune\.py\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "fine_tune.py"
    path.write_text(text)
    return path


@pytest.mark.timeout(900)
def test_fine_tuning_of_an_application(experiment, tmp_path):
    for split, count in (("train", 16), ("test", 10)):
        write_set(tmp_path / "data" / "cifar10", split, *made_up(split, count))
    pretrained = keras.applications.EfficientNetV2B0(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    rng = np.random.default_rng(0)
    for weights in pretrained.weights:  # also of the averages of BatchNormalization
        weights.assign(weights * rng.uniform(0.9, 1.1, weights.shape))
    pretrained.save_weights(tmp_path / "weights.h5")
    with pytest.raises(UserError, match=r"model\.weights is empty"):
        framework.build(experiment, VALUES, tmp_path / "none")

    values = VALUES | {"model.weights": str(tmp_path / "weights.h5"), "data.dir": str(tmp_path / "data")}
    ends = []
    for name in ("one", "two"):
        run = framework.build(experiment, values, tmp_path / name)
        before = testing.bits(run.model)
        for weights in pretrained.weights:
            assert before[f"efficientnetv2-b0/{weights.name.removesuffix(':0')}"] == weights.numpy().tobytes()
        framework.train(run)
        ends.append(testing.bits(run.model))
    assert not testing.differing(*ends)  # Dropout of the network draws by the seed of the run
    moved = testing.differing(before, ends[0])
    frozen = {path for path in before if re.match(r"efficientnetv2-b0/(stem|block[1-4]|normalization|rescaling)", path)}
    assert moved == before.keys() - frozen
