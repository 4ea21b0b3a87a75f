"""Checks of the arguments of `framework.build`, and of overrides on top of the config of a trained run.

    name, overrides = check_build('experiments/mnist_mlp.py', {'train.compile': 'graph'}, 'runs/first')
    refuse_unread('evaluate', flatten(stored), flatten(final))     # UserError: --config.ema.decay=0.5 has no effect …

Nothing here imports TensorFlow: `launch.py` checks its flags against LOOK_BACK before TensorFlow is loaded.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from framework.config import base_config, flatten, typed
from framework.config.overrides import keys_of
from framework.errors import UserError
from framework.experiment.user_code import check_text

_LOST_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")  # str(Path("s3://bucket/run")) is "s3:/bucket/run"
_DATA = ("name", "dir", "placement", "resident_limit_mb", "parallel_calls", "prefetch_batches")
_EVALUATION = (
    *(f"data.{name}" for name in (*_DATA, "retries", "retry_seconds")),
    *("checkpoint.average", "eval.splits", "eval.batch_size"),
    *("train.compile", "train.precision", "train.block_steps", "runtime"),
)
# The modes that look at a trained run and take its config. Each reads these keys and whole sections of the framework
# from the command line as well, and refuses the others. Keys of the experiment's own are always read.
LOOK_BACK = {
    "evaluate": _EVALUATION,
    "export": (*_EVALUATION, "export"),
    "replay": (
        *("seed", "resume_from", "init_from", "init_map", "init_weights", "data", "model", "train"),
        *("loss_scale", "clip", "optimizer", "ema", "lookahead", "prune", "cluster", "quantize", "schedule", "runtime"),
    ),
}


def check_build(name: Any, overrides: Any, workdir: Any) -> tuple[str, Mapping[str, Any] | tuple[str, ...]]:
    """Checks the arguments of `framework.build`; returns the path of the experiment file as text, and the overrides.

    Args:
      name: path of the experiment file, a str or os.PathLike.
      overrides: {key: value}, or texts such as '--config.train.compile=graph', which are returned as a tuple.
      workdir: path of the run folder, or None.

    Raises:
      UserError: an argument has another type, or a path has a NUL character or bytes that are not UTF-8.
    """
    if not isinstance(name, str | os.PathLike):
        kind = type(name).__name__
        raise UserError(
            f"build takes the experiment file, e.g. 'experiments/mnist_mlp.py', not a value of type {kind}."
        )
    if workdir is not None and not isinstance(workdir, str | os.PathLike):
        raise UserError(f"workdir is a folder, e.g. 'runs/first', not a value of type {type(workdir).__name__}.")
    if isinstance(workdir, os.PathLike) and _LOST_SLASH.match(os.fsdecode(workdir)):
        raise UserError(f"workdir={os.fsdecode(workdir)!r} was an address before it became a path. Give it as a text.")
    is_list = isinstance(overrides, Iterable) and not isinstance(overrides, str | bytes)
    given = overrides if isinstance(overrides, Mapping) or not is_list else tuple(overrides)
    if not is_list or not all(isinstance(override, str) for override in given):
        raise UserError(
            f"overrides={given!r} is neither {{'train.compile': 'graph'}} nor ['--config.train.compile=graph']."
        )
    for what, text in {"the experiment's name": os.fsdecode(name), "workdir": os.fsdecode(workdir or "")}.items():
        check_text(what, text)
    return os.fsdecode(name), given


def refuse_unread(mode: str, own: Mapping[str, Any], final: Mapping[str, Any]) -> None:
    """Raises UserError if an override sets a key that a look at a trained run does not read.

    Args:
      mode: one of LOOK_BACK.
      own: {key: value} of the run's config.
      final: the same with the overrides on top.
    """
    base = flatten(base_config())
    for key, value in final.items():
        if value == own[key] or key not in base or _reads(mode, key):
            continue
        hint = f"Type --checkpoint={value}, or leave it out." if key == "export.checkpoint" else "Leave it out."
        raise UserError(
            f"--config.{key}={typed(value)} has no effect with --mode={mode}, which takes the {key} of the run"
            f" ({typed(own[key])}). {hint}"
        )


def taken_of_run(mode: str, overrides: Mapping[str, Any] | Iterable[str], message: str) -> str:
    """Returns the message of a contradiction, with advice that a look at a trained run can follow.

    Args:
      mode: one of LOOK_BACK.
      overrides: as they were typed.
      message: of `config.finalize`, which ends with what to type if the run were trained.
    """
    advice = re.search(r" (?:Type|Use) (?:e\.g\. )?--config\.", message)
    advised = re.findall(r"--config\.([\w.]+)=", message[advice.start() :]) if advice else []
    if not advised or any(_reads(mode, key) or key not in flatten(base_config()) for key in advised):
        return message
    assert advice is not None
    typed_keys = list(overrides) if isinstance(overrides, Mapping) else keys_of(overrides)
    culprits = [key for key in typed_keys if key in message] or typed_keys
    return (
        f"{message[: advice.start()]} --mode={mode} takes the {advised[0]} of the run. Leave out"
        f" {' and '.join(f'--config.{key}' for key in culprits)}."
    )


def _reads(mode: str, key: str) -> bool:
    return bool({key, key.partition(".")[0]} & set(LOOK_BACK[mode]))
