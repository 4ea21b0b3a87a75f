"""Bad settings of the step through launch.py: one line, status 2, before anything is trained or written."""

from pathlib import Path

import pytest

import launch

EXPERIMENT = """
from framework import losses
from tests import tiny
from tests.tiny import get_config, make_data, make_exports, make_metrics, make_model, make_schedule


def make_loss(cfg):
    def loss(model, batch, training):
        terms, outputs = tiny.make_loss(cfg)(model, batch, training)
        return {"matching": losses.BatchDependent(*terms["cross_entropy"])}, outputs

    return loss
"""
PARAMETERS = "dense/kernel, dense/bias, dense_1/kernel, dense_1/bias"
COVERED = (
    " Each pattern must cover a parameter, and no parameter may be in two groups; those in none have lr=1 and decay=1."
)
NO_AVERAGE = ", but no average is kept: ema.decay=0. Type e.g. --config.ema.decay=0.999."


def no_effect(key, value, decider, wanted, default, chosen):
    return (
        f"{key}={value} has no effect with {decider}='{chosen}'. Use --config.{decider}={wanted} or"
        f" --config.{key}={default}."
    )


CASES = {
    "micro-batches that do not divide the batch": (
        ["train.micro_batches=3"],
        "data.batch_size=128 is not divisible by train.micro_batches=3. Use --config.data.batch_size=129.",
    ),
    "coupled terms in micro-batches": (
        ["train.micro_batches=2"],
        "train.micro_batches=2: term 'matching' compares the examples of a batch with one another, and micro-batches"
        " would hide most of them. Use --config.train.micro_batches=1.",
    ),
    "float16 without a scale": (
        ["train.precision=float16", "loss_scale.name=none"],
        "train.precision='float16' needs a loss scale, or small gradients become 0, but loss_scale.name='none'."
        " Use --config.loss_scale.name=dynamic.",
    ),
    "a scale that nothing uses": (
        ["loss_scale.initial=1024"],
        "loss_scale.initial=1024.0 has no effect: with loss_scale.name='auto' only train.precision='float16' has a loss"
        " scale, and it is 'float32'. Use --config.loss_scale.name=dynamic.",
    ),
    "a static scale that grows": (
        ["loss_scale.name=static", "loss_scale.growth_factor=4"],
        no_effect("loss_scale.growth_factor", 4.0, "loss_scale.name", "dynamic", 2.0, "static"),
    ),
    "a static scale with patience": (
        ["loss_scale.name=static", "loss_scale.patience=5"],
        no_effect("loss_scale.patience", 5, "loss_scale.name", "dynamic", 20, "static"),
    ),
    "a scale below its floor": (
        ["loss_scale.name=dynamic", "loss_scale.initial=2", "loss_scale.floor=8"],
        "loss_scale.initial=2 is not between loss_scale.floor=8 and loss_scale.ceiling=1.67772e+07."
        " Use --config.loss_scale.initial=8.",
    ),
    "a threshold without clipping": (
        ["clip.threshold=0.5"],
        no_effect("clip.threshold", 0.5, "clip.name", "global_norm", 1.0, "none"),
    ),
    "clipping that leaves out nothing": (
        ["clip.name=adaptive", "clip.exclude=heads/.*"],
        f"clip.exclude='heads/.*' matches no trained parameter. Parameters: {PARAMETERS}."
        " Use --config.clip.exclude='' to leave out none.",
    ),
    "a group that covers nothing": (
        ["optimizer.groups=('dense_2/.*: lr=0.1','.*: lr=1')"],
        f"optimizer.groups: 'dense_2/.*' covers nothing (did you mean 'dense_1/bias'?).{COVERED}",
    ),
    "a parameter in two groups": (
        ["optimizer.groups=('dense_1/bias: lr=0.1','.*: lr=1')"],
        f"optimizer.groups: 'dense_1/bias', '.*' all cover 'dense_1/bias'.{COVERED}",
    ),
    "a decay that decays nothing": (
        ["optimizer.groups=('.*: decay=2',)"],
        "optimizer.groups: '.*: decay=2' has no effect with optimizer.weight_decay=0."
        " Type e.g. --config.optimizer.weight_decay=0.01.",
    ),
    "rematerialisation of nothing": (
        ["train.remat=block_.*"],
        "train.remat='block_.*' matches no layer. Layers: dense, dense_1, dropout, flatten.",
    ),
    "evaluation of an average that is not kept": (
        ["eval.splits=('test','test@ema')"],
        f"eval.splits has 'test@ema'{NO_AVERAGE}",
    ),
    "export of an average that is not kept": (["export.weights=ema"], f"export.weights='ema'{NO_AVERAGE}"),
    "a limit of what is not counted": (
        ["train.nonfinite_limit=3"],
        no_effect("train.nonfinite_limit", 3, "train.on_nonfinite", "skip", 10, "stop"),
    ),
}


@pytest.mark.parametrize(("settings", "expected"), CASES.values(), ids=CASES)
def test_one_line_before_training(tmp_path, capsys, settings, expected):
    (tmp_path / "coupled.py").write_text(EXPERIMENT)
    file = tmp_path / "coupled.py" if "matching" in expected else "tests/tiny.py"
    workdir = tmp_path / "run"
    arguments = [f"--config={file}", f"--workdir={workdir}", *(f"--config.{setting}" for setting in settings)]
    assert launch.main(["launch.py", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == f"error: {expected}"
    assert not Path(workdir).exists()
