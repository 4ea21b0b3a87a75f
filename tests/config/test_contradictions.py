"""framework/config/contradictions.py: keys that contradict each other, by the exact message."""

import pytest

from framework.config import UserError, base_config, finalize, flatten
from framework.config.overrides import override
from tests.config.finalized import final, message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        *[
            (
                {key: value},
                f"{key}='{value}' is not split/metric with a split of eval.splits=('test',)."
                f" Type e.g. --config.{key}=test/{example}.",
            )
            for key in ("early_stopping.metric", "checkpoint.best_metric")
            for value, example in [
                ("loss", "loss"),
                ("accuracy", "loss"),
                ("/loss", "loss"),
                ("test/", "loss"),
                ("tset/accuracy", "accuracy"),
            ]
        ],
        (
            {"resume_from": "runs/a", "init_from": "runs/b"},
            "resume_from='runs/a' continues a whole state and init_from='runs/b' starts from weights alone. Use one"
            " of them: --config.resume_from= or --config.init_from=.",
        ),
        (
            {"init_map": ("head/.* -> ",)},
            "init_map=('head/.* -> ',) has no effect without init_from."
            " Type e.g. --config.init_from=runs/first, or --config.init_map='()'.",
        ),
        (
            {"init_weights": "ema", "resume_from": "runs/a"},
            "init_weights='ema' has no effect without init_from."
            " Type e.g. --config.init_from=runs/first, or --config.init_weights=model.",
        ),
        (
            {"early_stopping.metric": "test/loss", "eval.every": ""},
            "early_stopping.metric='test/loss' needs evaluations during training, but eval.every=''."
            " Type e.g. --config.eval.every='1 epoch'.",
        ),
        (
            {"export.checkpoint": "best"},
            "export.checkpoint='best' needs checkpoint.best_metric, which is ''."
            " Type e.g. --config.checkpoint.best_metric=test/accuracy.",
        ),
        (
            {"optimizer.name": "sgd", "optimizer.nesterov": True},
            "optimizer.nesterov=True needs optimizer.momentum > 0. Use --config.optimizer.momentum=0.9.",
        ),
        (
            {"runtime.devices": 2},
            "runtime.devices=2 has no effect with runtime.strategy='one_device'."
            " Use --config.runtime.strategy=mirrored or --config.runtime.devices=0.",
        ),
        (
            {"runtime.strategy": "mirrored", "runtime.devices": 4, "runtime.virtual_devices": 2},
            "runtime.devices=4 is more than runtime.virtual_devices=2. Use --config.runtime.virtual_devices=4.",
        ),
        (
            {"runtime.strategy": "mirrored", "train.compile": "xla_update"},
            "train.compile='xla_update' does not work with runtime.strategy='mirrored': XLA cannot assign to the copies"
            " of a variable. Use --config.train.compile=auto.",
        ),
        (
            {"runtime.strategy": "mirrored", "runtime.all_reduce": "ring"},
            "runtime.all_reduce='ring' is not one that runtime.strategy='mirrored' has: auto, nccl, hierarchical,"
            " one_device. Use --config.runtime.all_reduce=auto.",
        ),
        (
            {"optimizer.nesterov": True},
            "optimizer.nesterov=True has no effect with optimizer.name='adam'."
            " Use --config.optimizer.name=sgd or --config.optimizer.nesterov=False.",
        ),
        (
            {"optimizer.momentum": 0.9},
            "optimizer.momentum=0.9 has no effect with optimizer.name='adam'."
            " Use --config.optimizer.name=sgd or --config.optimizer.momentum=0.0.",
        ),
        (
            {"optimizer.weight_decay": 0.01},
            "optimizer.weight_decay=0.01 has no effect with optimizer.name='adam'."
            " Use --config.optimizer.name=adamw or --config.optimizer.weight_decay=0.0.",
        ),
        (
            {"optimizer.name": "sgd", "optimizer.beta_1": 0.8},
            "optimizer.beta_1=0.8 has no effect with optimizer.name='sgd'."
            " Use --config.optimizer.name=adam or --config.optimizer.beta_1=0.9.",
        ),
        (
            {"optimizer.name": "lion", "optimizer.epsilon": 1e-3},
            "optimizer.epsilon=0.001 has no effect with optimizer.name='lion'."
            " Use --config.optimizer.name=adam or --config.optimizer.epsilon=1e-07.",
        ),
        (
            {"schedule.final_fraction": 0.1},
            "schedule.final_fraction=0.1 has no effect with schedule.name='constant'."
            " Use --config.schedule.name=cosine or --config.schedule.final_fraction=0.0.",
        ),
        (
            {"schedule.boundaries": ("1 epoch",)},
            "schedule.boundaries=('1 epoch',) has no effect with schedule.name='constant'."
            " Use --config.schedule.name=piecewise or --config.schedule.boundaries='()'.",
        ),
        (
            {"schedule.factors": (0.1,), "schedule.name": "cosine"},
            "schedule.factors=(0.1,) has no effect with schedule.name='cosine'."
            " Use --config.schedule.name=piecewise or --config.schedule.factors='()'.",
        ),
        (
            {"train.micro_batches": 3},
            "data.batch_size=128 is not divisible by train.micro_batches=3. Use --config.data.batch_size=129.",
        ),
        (
            {"train.micro_batches": 5, "data.batch_size": 4},
            "data.batch_size=4 is not divisible by train.micro_batches=5. Use --config.data.batch_size=5.",
        ),
        (
            {"train.precision": "float16", "loss_scale.name": "none"},
            "train.precision='float16' needs a loss scale, or small gradients become 0, but loss_scale.name='none'."
            " Use --config.loss_scale.name=dynamic.",
        ),
        (
            {"loss_scale.initial": 2.0},
            "loss_scale.initial=2.0 has no effect: with loss_scale.name='auto' only train.precision='float16' has a"
            " loss scale, and it is 'float32'. Use --config.loss_scale.name=dynamic.",
        ),
        (
            {"loss_scale.name": "static", "loss_scale.growth_interval": 5},
            "loss_scale.growth_interval=5 has no effect with loss_scale.name='static'."
            " Use --config.loss_scale.name=dynamic or --config.loss_scale.growth_interval=2000.",
        ),
        (
            {"train.precision": "float16", "loss_scale.initial": 0.5},
            "loss_scale.initial=0.5 is not between loss_scale.floor=1 and loss_scale.ceiling=1.67772e+07."
            " Use --config.loss_scale.initial=1.",
        ),
        (
            {"train.nonfinite_limit": 5},
            "train.nonfinite_limit=5 has no effect with train.on_nonfinite='stop'."
            " Use --config.train.on_nonfinite=skip or --config.train.nonfinite_limit=10.",
        ),
        (
            {"clip.threshold": 0.5},
            "clip.threshold=0.5 has no effect with clip.name='none'."
            " Use --config.clip.name=global_norm or --config.clip.threshold=1.0.",
        ),
        (
            {"train.remat": "block_("},
            "train.remat='block_(' is not a regular expression: missing ), unterminated subpattern at position 6.",
        ),
        (
            {"clip.name": "adaptive", "clip.exclude": "*"},
            "clip.exclude='*' is not a regular expression: nothing to repeat at position 0.",
        ),
        (
            {"eval.splits": ("test", "test@ema")},
            "eval.splits has 'test@ema', but no average is kept: ema.decay=0. Type e.g. --config.ema.decay=0.999.",
        ),
        (
            {"export.weights": "ema"},
            "export.weights='ema', but no average is kept: ema.decay=0. Type e.g. --config.ema.decay=0.999.",
        ),
        (
            {"lookahead.alpha": 0.8},
            "lookahead.alpha=0.8 has no effect with lookahead.every=0."
            " Type e.g. --config.lookahead.every=5, or --config.lookahead.alpha=0.5.",
        ),
        (
            {"prune.end": "50%"},
            "prune.end='50%' has no effect with prune.sparsity=0."
            " Type e.g. --config.prune.sparsity=0.8, or --config.prune.end='75%'.",
        ),
        (
            {"prune.sparsity": 0.5, "prune.initial": 0.5},
            "prune.initial=0.5 is not below prune.sparsity=0.5, to which it rises."
            " Use --config.prune.initial=0, or --config.prune.schedule=constant.",
        ),
        (
            {"prune.sparsity": 0.5, "prune.schedule": "keep"},
            "prune.sparsity=0.5 has no effect with prune.schedule='keep'."
            " Use --config.prune.schedule=polynomial or --config.prune.sparsity=0.0.",
        ),
        (
            {"prune.sparsity": 0.8, "prune.pattern": "2:4"},
            "prune.pattern='2:4' is a sparsity of 0.5 from prune.begin on, but prune.sparsity=0.8 and"
            " prune.schedule='polynomial'. Use --config.prune.sparsity=0.5 --config.prune.schedule=constant.",
        ),
        (
            {"prune.sparsity": 0.8, "optimizer.table_gradients": "rows", "train.compile": "graph"},
            "prune.sparsity=0.8 does not work with optimizer.table_gradients='rows': masks would write whole tables"
            " after every update. Use --config.prune.sparsity=0.0, or --config.optimizer.table_gradients=dense.",
        ),
        (
            {"cluster.clusters": 8},
            "cluster.clusters=8 has no effect with cluster.name='none'."
            " Use --config.cluster.name=kmeans or --config.cluster.clusters=16.",
        ),
        (
            {"cluster.name": "kmeans"},
            "cluster.name='kmeans' with cluster.begin='' clusters the weights that training starts from, which are not"
            " trained without init_from. Type --config.init_from=RUN, or e.g. --config.cluster.begin=50%.",
        ),
        (
            {
                **{"cluster.name": "kmeans", "cluster.begin": "1 step"},
                **{"optimizer.table_gradients": "rows", "train.compile": "graph"},
            },
            "cluster.name='kmeans' does not work with optimizer.table_gradients='rows': clusters would write whole"
            " tables after every update. Use --config.cluster.name=none, or --config.optimizer.table_gradients=dense.",
        ),
        (
            {"quantize.begin": "50%"},
            "quantize.begin='50%' has no effect with quantize.name='none'."
            " Use --config.quantize.name=int8 or --config.quantize.begin=''.",
        ),
        (
            {"quantize.name": "int8", "train.remat": "block.*"},
            "train.remat='block.*' does not work with quantize.name='int8': ranges of activations cannot be seen where"
            " they are computed twice. Use --config.train.remat=, or --config.quantize.name=none.",
        ),
        (
            {"quantize.name": "int8", "optimizer.table_gradients": "rows", "train.compile": "graph"},
            "quantize.name='int8' does not work with optimizer.table_gradients='rows': the range of a table is that of"
            " all its rows. Use --config.quantize.name=none, or --config.optimizer.table_gradients=dense.",
        ),
        (
            {"lookahead.power": 3.0},
            "lookahead.power=3.0 has no effect with lookahead.every=0."
            " Type e.g. --config.lookahead.every=5, or --config.lookahead.power=0.0.",
        ),
        (
            {"optimizer.rescale_weights": True},
            "optimizer.rescale_weights=True has no effect with optimizer.name='adam'."
            " Use --config.optimizer.name=muon or --config.optimizer.rescale_weights=False.",
        ),
        (
            {"schedule.start_fraction": 0.1},
            "schedule.start_fraction=0.1 has no effect without a warm-up. Type e.g. --config.schedule.warmup=5%.",
        ),
        (
            {"schedule.name": "one_cycle"},
            "schedule.name='one_cycle' rises over schedule.warmup, which is ''. Use --config.schedule.warmup=30%.",
        ),
        (
            {"schedule.name": "restarts"},
            "schedule.name='restarts' needs schedule.period, which is ''."
            " Type e.g. --config.schedule.period='5 epochs'.",
        ),
        (
            {"schedule.name": "inverse_sqrt"},
            "schedule.name='inverse_sqrt' needs schedule.warmup or schedule.timescale. Type e.g."
            " --config.schedule.warmup='4000 steps'.",
        ),
        (
            {"schedule.name": "piecewise"},
            "schedule.name='piecewise' needs as many schedule.factors (0) as schedule.boundaries (0), at least one."
            " Type e.g. --config.schedule.boundaries=\"('2 epochs','4 epochs')\""
            ' --config.schedule.factors="(0.1,0.01)".',
        ),
        (
            {"schedule.name": "piecewise", "schedule.boundaries": ("1%", "2%"), "schedule.factors": (0.1,)},
            "schedule.name='piecewise' needs as many schedule.factors (1) as schedule.boundaries (2), at least one."
            " Type e.g. --config.schedule.boundaries=\"('2 epochs','4 epochs')\""
            ' --config.schedule.factors="(0.1,0.01)".',
        ),
    ],
)
def test_contradictions(overrides, expected):
    assert message(final, **overrides) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        {"eval.splits": ("test", "test@ema"), "ema.decay": 0.9, "checkpoint.best_metric": "test@ema/loss"},
        {"train.precision": "float16", "loss_scale.growth_interval": 5},
        {"train.precision": "float16", "loss_scale.name": "static", "loss_scale.initial": 2.0**40},
        {"eval.splits": ("a", "b"), "early_stopping.metric": "b/x/y", "checkpoint.best_metric": "a/loss"},
        {"export.checkpoint": "best", "checkpoint.best_metric": "test/accuracy"},
        {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True},
        {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1},
        {"optimizer.name": "sgd", "optimizer.weight_decay": 0.1},
        {"schedule.name": "cosine", "schedule.final_fraction": 0.1},
        {"schedule.name": "piecewise", "schedule.boundaries": ("1 epoch", "50%"), "schedule.factors": (0, 0.1)},
        {"eval.every": "", "checkpoint.best_metric": "test/loss"},
    ],
)
def test_no_contradiction(overrides):
    changed = flatten(final(**overrides))
    assert {key: changed[key] for key in overrides} == overrides


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("momentum", 0.9),
        ("nesterov", True),
        ("weight_decay", 0.1),
        ("beta_1", 0.8),
        ("beta_2", 0.8),
        ("epsilon", 1e-3),
    ],
)
def test_a_section_that_the_experiment_reads_binds_no_key_to_another(key, value):
    for name in ("sgd", "adam", "lion"):
        created = override(base_config(), {"optimizer.name": name, f"optimizer.{key}": value})
        assert finalize(created, own=("optimizer",)).optimizer[key] == value
    with pytest.raises(UserError, match=r"clip\.threshold=0\.5 has no effect"):
        finalize(override(base_config(), {"clip.threshold": 0.5}), own=("optimizer",))
