"""From a gradient to an update: schedules, optimizers, parameter groups, clipping and averaged weights.

    schedule = optim.make_schedule(config, total_steps)
    rate = optim.learning_rate(schedule, updates, tf.float32)
    optimizer = optim.Optimizer([(optim.make_optimizer(config, rate), paths.trainable(model))])
    optimizer.apply(optim.clip(gradients, optimizer.trained, config.clip, optim.global_norm(gradients.values())))

Each file stands alone; `building` puts them together for a run.
"""

from framework.optim.average import ExponentialMovingAverage
from framework.optim.building import build_optimizers, schedules_of, shortened
from framework.optim.checked import checked_schedule, sampled_updates
from framework.optim.checked_extensions import check_extensions
from framework.optim.clipping import clip, global_norm
from framework.optim.clustering import DISTINCT, Clusterer, clustered_variables
from framework.optim.extension import Extension
from framework.optim.fake_quantization import CONVERTED, FLOAT, ROUNDED, check_traced, computing, observing
from framework.optim.freezing import freeze_layers, group_parameters
from framework.optim.groups import Group, assign_groups, parse_groups
from framework.optim.lamb import Lamb
from framework.optim.lookahead import Lookahead
from framework.optim.muon import Muon
from framework.optim.optimizers import Optimizer, make_optimizer
from framework.optim.pruning import LOGGED, Pruner, check_wrapped, pruned_variables
from framework.optim.quantization import Plan, Quantizer, quantizer_of
from framework.optim.schedules import ReduceOnPlateau, Schedule, learning_rate, make_schedule
from framework.optim.sgd import Sgd
from framework.optim.stateful import observe, prepare_schedules, schedule_state

__all__ = [
    "CONVERTED",
    "DISTINCT",
    "FLOAT",
    "LOGGED",
    "ROUNDED",
    "Clusterer",
    "ExponentialMovingAverage",
    "Extension",
    "Group",
    "Lamb",
    "Lookahead",
    "Muon",
    "Optimizer",
    "Plan",
    "Pruner",
    "Quantizer",
    "ReduceOnPlateau",
    "Schedule",
    "Sgd",
    "assign_groups",
    "build_optimizers",
    "check_extensions",
    "check_traced",
    "check_wrapped",
    "checked_schedule",
    "clip",
    "clustered_variables",
    "computing",
    "freeze_layers",
    "global_norm",
    "group_parameters",
    "learning_rate",
    "make_optimizer",
    "make_schedule",
    "observe",
    "observing",
    "parse_groups",
    "prepare_schedules",
    "pruned_variables",
    "quantizer_of",
    "sampled_updates",
    "schedule_state",
    "schedules_of",
    "shortened",
]
