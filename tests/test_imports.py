"""The direction of the arrows: a framework file imports only rows above its own."""

import ast
from pathlib import Path

import pytest

from tests.imported import ROOT, imported, shown

# Rooms, top to bottom: a file imports what stands above it. Modules of one row do not import each other, except below a
# package that ends in '/*'.
ROWS = (
    # the ground floor
    ("moved", "errors"),
    ("config.key",),
    ("config.keys/*",),
    ("config.keys",),
    ("config.base", "config.durations"),
    ("config.former", "config.handling", "config.listing"),
    ("config.contradictions",),
    ("config.check",),
    ("config.overrides",),
    ("config",),
    ("files", "extras"),
    ("folder", "manifest"),
    ("remote.address",),
    ("remote.holder", "remote.mirror", "remote.run_files"),
    ("remote.run_copy",),
    ("remote",),
    ("pages.html",),
    ("pages.charts", "pages.curves", "pages.shown"),
    ("pages.exports", "pages.splits"),
    ("pages.stored",),
    ("pages.report",),
    ("pages.listing",),
    ("pages.comparison",),
    ("pages",),
    ("compat",),
    ("layer_names",),
    ("paths",),
    ("compile",),
    ("rng",),
    # what a trace contains, and the experiment file
    ("trace.graphs", "trace.assigned"),
    ("trace.indices",),
    ("trace.activations", "trace.repeated_draws"),
    ("trace.guards",),
    ("trace",),
    ("experiment.user_code",),
    ("experiment.own_modules",),
    ("experiment.returns",),
    ("experiment.load",),
    ("experiment",),
    # where a run computes
    ("distribute.cluster", "distribute.lifeline"),
    ("distribute.devices", "distribute.memory", "distribute.strategies"),
    ("distribute.replicas",),
    ("distribute",),
    # what an experiment is made of
    ("data.draws", "data.order"),
    ("data.fields",),
    ("data.timetable", "data.shapes"),
    ("data.sources",),
    ("data.buckets",),
    ("data.bucketed",),
    ("data.fetch", "data.reading", "data.items"),
    ("data.mixture",),
    ("data.augment.base",),
    ("data.augment.draws", "data.augment.sampling"),
    ("data.augment.geometry", "data.augment.colour", "data.augment.erasing"),
    ("data.augment.mixing", "data.augment.rand_augment"),
    ("data.augment",),
    ("data.files.shards", "data.files.manifest", "data.files.notes", "data.files.crc32c", "data.files.pictures"),
    ("data.files.index",),
    ("data.files.records",),
    ("data.files.examples", "data.files.folder", "data.files.tables"),
    ("data.files.source", "data.prepare"),
    ("data.files.opening",),
    ("data.files",),
    ("data.sets/*",),
    ("data.sets",),
    ("data.text.segmentation", "data.text.lines"),
    ("data.text.vocabulary", "data.text.dictionary"),
    ("data.text.training", "data.text.source"),
    ("data.text",),
    ("data.skipping",),
    ("data.resident", "data.streaming", "data.dataset"),
    ("data.batches", "data.overlap"),
    ("data.replay_buffer", "data.one_batch"),
    ("data",),
    ("layers/*",),
    ("layers",),
    ("decoding.methods", "decoding.prompt", "decoding.row_state"),
    ("decoding.task",),
    ("decoding.single", "decoding.beam"),
    ("decoding.search",),
    ("decoding",),
    ("retrieval.top_k", "retrieval.approximate"),
    ("retrieval.index", "retrieval.of_all"),
    ("retrieval.compared",),
    ("retrieval",),
    ("losses.base",),
    ("losses.classification",),
    (
        "losses.regression",
        "losses.sequence",
        "losses.ordinal",
        "losses.retrieval",
        "losses.sampling",
    ),
    ("losses.distribution",),
    ("losses",),
    ("metrics.base",),
    ("metrics.results", "metrics.inputs"),
    (
        "metrics.accuracy",
        "metrics.classification",
        "metrics.regression",
        "metrics.scores",
        "metrics.text",
        "metrics.ranking",
    ),
    ("metrics",),
    ("precision",),
    ("optim.groups", "optim.options", "optim.masked", "optim.extension", "optim.fake_quantization", "optim.selection"),
    ("optim.due",),
    ("optim.quantized_layers",),
    ("optim.sgd", "optim.adam", "optim.lamb"),
    ("optim.muon",),
    ("optim.schedules", "optim.optimizers", "optim.clipping", "optim.average", "optim.lookahead", "optim.pruning"),
    ("optim.clustering",),
    ("optim.quantization",),
    ("optim.checked", "optim.checked_extensions", "optim.freezing", "optim.stateful"),
    ("optim.building",),
    ("optim",),
    ("state",),
    # the step
    ("step.scopes", "step.draws"),
    ("step.normalizers", "step.added_losses"),
    ("step.penalties",),
    ("step.forward", "step.layer_calls", "step.penalty_checks"),
    ("step.metric_row", "step.micro_batches"),
    ("step.gradients", "step.update"),
    ("step.parts",),
    ("step.step",),
    ("step.tools", "step.coverage", "step.counted", "step.blame"),
    ("step.repeat", "step.shards", "step.probe_checks"),
    ("step.probe",),
    ("step.size",),
    ("step.padding",),
    ("step.additivity", "step.examples_apart"),
    ("step.block",),
    ("step.asynchronous",),
    ("step.evaluation_probe", "step.kept"),
    ("step.evaluation",),
    ("step.compile_choice",),
    ("step.diagnose", "step.learning"),
    ("step",),
    # what is written
    ("writers.base",),
    ("writers.jsonl", "writers.console", "writers.tensorboard", "writers.projector"),
    ("writers",),
    ("checkpoint.storage",),
    ("checkpoint.snapshot",),
    ("checkpoint.directory", "checkpoint.warm_start", "checkpoint.mean"),
    ("checkpoint.checkpoints", "checkpoint.other_runs"),
    ("checkpoint.start",),
    ("checkpoint",),
    ("export.bounds",),
    ("export.base",),
    ("export.worker", "export.page"),
    ("export.report", "export.processes"),
    ("export.difference",),
    ("export.verify",),
    ("export.runner",),
    ("export.lite_formats", "export.lite_runtime", "export.saved_model_runtime", "export.serving"),
    ("export.saved_model", "export.lite"),
    ("export.lite_decoder", "export.lite_rules"),
    ("export.formats",),
    ("export",),
    ("serving.errors", "serving.signatures", "serving.values"),
    ("serving.fitting", "serving.transport"),
    ("serving.rest", "serving.rpc", "serving.model"),
    ("serving.client", "serving.versions"),
    ("serving.http_server", "serving.rpc_server", "serving.model_server"),
    ("serving.development",),
    ("serving",),
    ("evaluators.base",),
    ("evaluators.compiled", "evaluators.shown", "evaluators.ranking"),
    ("evaluators",),
    # a run
    ("run.arguments", "run.command"),
    ("run.interval", "run.stored_config", "run.code_copies", "run.own_files", "run.snapshot"),
    ("run.environment", "run.interrupt", "run.progress", "run.averaging"),
    ("run.continuity", "run.metric_names"),
    ("run.run", "run.request"),
    ("run.build",),
    ("run.longer", "run.lookback", "run.reports", "run.fresh"),
    ("run.evaluation",),
    ("run.exporting", "run.summary"),
    ("run.preview",),
    ("run.nonfinite",),
    ("run.guards.waiting", "run.guards.retracing", "run.guards.memory", "run.guards.spikes"),
    ("run.guards.loss_scale", "run.guards.learning"),
    ("run.guards",),
    ("run.hooks", "run.outputs", "run.profiling", "run.result"),
    ("run.previous",),
    ("run.built_in", "run.own_hooks", "run.forecast"),
    ("run.loop",),
    ("run.replay",),
    ("run",),
    ("sweep.choices", "sweep.grid", "sweep.worker"),
    ("sweep.study",),
    ("sweep.runner",),
    ("sweep",),
    ("cli.flags", "cli.quiet_import", "cli.local_cluster", "cli.server"),
    ("cli.on_ray",),
    ("cli",),
    ("modes/*",),
    ("modes",),
    ("testing.function", "testing.runs", "testing.replicas"),
    ("testing.comparison",),
    ("testing.gradients", "testing.compiled", "testing.built_layer", "testing.attributes"),
    ("testing.layer_checks",),
    ("testing.layer_files", "testing.layer_jumps"),
    ("testing.layer",),
    ("testing",),
    ("",),  # framework/__init__.py
)
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}

FRAMEWORK_FILES = sorted((ROOT / "framework").rglob("*.py"))


def place(module: str) -> tuple[int, str] | None:
    """Row and group of 'data.batches'; None if the table does not know it. Free siblings share a group."""
    if module in ROW_OF:
        return ROW_OF[module], module
    package = module.rpartition(".")[0] + "/*"
    return (ROW_OF[package], package) if package in ROW_OF else None


def import_problems(source: str, module: str, is_package: bool, modules: set[str]) -> list[str]:
    """What is wrong with the imports of one framework file.

    Args:
      source: its text.
      module: its name below framework: 'data.batches', 'data' for data/__init__.py, '' for framework/__init__.py.
      is_package: whether it is an `__init__.py`.
      modules: names of all framework modules, to tell a module from a function in `from framework.x import y`.
    """
    own = place(module)
    if own is None:
        return [f"framework.{module} has no row: add it to ROWS in tests/test_imports.py"]
    full = f"framework.{module}".rstrip(".")
    package = full if is_package else full.rpartition(".")[0]
    problems = []
    for line, name in imported(ast.parse(source), package):
        top, _, rest = name.partition(".")
        if top in ("experiments", "launch", "tests"):
            problems.append(f"line {line}: {full} imports {name}, which is not part of the framework")
        if top != "framework":
            continue
        target = _module_of(rest, modules)
        other = place(target)
        if other is None or other[0] < own[0] or (other[1] == own[1] and own[1].endswith("/*")):
            continue
        problems.append(f"line {line}: {full} imports framework.{target}".rstrip(".") + ", which is not above it")
    return problems


def _module_of(name: str, modules: set[str]) -> str:
    """The longest prefix of 'data.batches.Batches' that is a module; '' is the package framework itself."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def _name_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "framework").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {_name_of(path) for path in FRAMEWORK_FILES}


@pytest.mark.parametrize("path", FRAMEWORK_FILES, ids=shown)
def test_framework_files_import_only_rows_above(path: Path) -> None:
    assert import_problems(path.read_text(), _name_of(path), path.name == "__init__.py", MODULES) == []


PLANTED_MODULES = {
    "config",
    "rng",
    "data",
    "data.sources",
    "data.batches",
    "losses",
    "metrics",
    "run",
    "run.loop",
    "layers",
    "",
} | {
    "layers.dropout",
    "layers.towers",
    "modes.train",
    "modes.sweep",
}

BAD_IMPORTS = [
    ("rng", "from framework.run.loop import train", "framework.rng imports framework.run.loop, which is not above it"),
    ("rng", "from framework.run import loop", "framework.rng imports framework.run.loop, which is not above it"),
    ("rng", "import framework.run.loop as l", "framework.rng imports framework.run.loop, which is not above it"),
    ("rng", "from .run import loop", "framework.rng imports framework.run.loop, which is not above it"),
    (
        "rng",
        "def f():\n    from .run.loop import train",
        "framework.rng imports framework.run.loop, which is not above it",
    ),
    (
        "rng",
        "importlib.import_module('framework.run.loop')",
        "framework.rng imports framework.run.loop, which is not above it",
    ),
    ("rng", "from framework import build", "framework.rng imports framework, which is not above it"),
    ("rng", "from framework.rng import x", "framework.rng imports framework.rng, which is not above it"),
    ("losses", "from framework import metrics", "framework.losses imports framework.metrics, which is not above it"),
    (
        "data.sources",
        "from . import batches",
        "framework.data.sources imports framework.data.batches, which is not above it",
    ),
    (
        "data.sources",
        "from framework.data import x",
        "framework.data.sources imports framework.data, which is not above it",
    ),
    (
        "data.batches",
        "from ..run.loop import x",
        "framework.data.batches imports framework.run.loop, which is not above it",
    ),
    (
        "layers.towers",
        "from framework.layers import D",
        "framework.layers.towers imports framework.layers, which is not above it",
    ),
    (
        "modes.train",
        "from experiments import x",
        "framework.modes.train imports experiments.x, which is not part of the framework",
    ),
    ("", "import launch", "framework imports launch, which is not part of the framework"),
]


@pytest.mark.parametrize(("module", "source", "problem"), BAD_IMPORTS)
def test_the_check_finds_a_planted_import(module: str, source: str, problem: str) -> None:
    found = import_problems(source, module, module in ("", "data", "layers"), PLANTED_MODULES)
    assert [text.partition(": ")[2] for text in found] == [problem]


def test_the_check_wants_a_row_for_every_file() -> None:
    assert import_problems("", "novelty", False, PLANTED_MODULES) == [
        "framework.novelty has no row: add it to ROWS in tests/test_imports.py"
    ]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("run.loop", "from framework import rng\nfrom framework.config import UserError\nfrom ..data.batches import B"),
        ("data", "from .sources import Source\nfrom framework.data.batches import B"),
        ("layers.towers", "from framework.layers.dropout import Dropout"),
        ("modes.sweep", "from framework.modes.train import main\nimport numpy as np"),
        ("", "from framework.run.loop import train"),
    ],
)
def test_the_check_lets_proper_imports_pass(module: str, source: str) -> None:
    assert import_problems(source, module, module in ("", "data", "layers"), PLANTED_MODULES) == []
