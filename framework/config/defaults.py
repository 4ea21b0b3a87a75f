"""Every key that the framework reads: its default, what it means, and which values it may have.

To add one, give it a line in `base_config`, and an entry in CHOICES, RANGES or DURATIONS; in ONLY_WITH, if it does
nothing unless another key has a certain value. What binds several keys otherwise is said in `config.py`.
"""

from ml_collections import ConfigDict

# Sections to which an experiment may add keys of its own.
FREE_SECTIONS = ("data", "model")


def base_config() -> ConfigDict:
    """Every key the framework reads, with its default. Experiments change values and add `data.*` and `model.*`."""
    config = ConfigDict()
    config.seed = 0  # data order, initial weights, dropout and augmentation all follow from it

    # Where training starts from while its own folder has no checkpoint.
    config.resume_from = ""  # run folder or checkpoint that is gone on from, as a whole, in a new folder
    config.init_from = ""  # run folder or checkpoint whose weights are taken; the rest starts afresh, at step 0
    config.init_map = ()  # init_from: ('REGEX -> REPLACEMENT', …) rewrite whole paths of its variables; '' drops them
    config.init_weights = "model"  # init_from: model or ema, its weights themselves or their average

    config.data = ConfigDict()
    config.data.name = ""  # which data set, e.g. 'mnist'
    config.data.dir = ""  # folder with the files, before $DATA_DIR and downloads; --data_dir sets it
    config.data.batch_size = 128  # examples of one global batch, of all replicas together
    config.data.replica_batch_size = 0  # of one replica, instead: batch_size becomes this times the replicas; 0 = not
    config.data.shuffle = True  # a fresh order each epoch; False = the order of the files
    config.data.remainder = "carry"  # end of an epoch: carry (batches run on), pad (weight 0) or drop
    config.data.placement = "auto"  # resident (tensors on the device), stream (tf.data) or auto (by size and memory)
    config.data.resident_limit_mb = 2048  # auto: larger ones are streamed, and those above a quarter of memory
    config.data.parallel_calls = 2  # stream: batches prepared side by side
    config.data.prefetch_batches = 8  # stream: batches ready ahead of the step, at least; of small ones 64 MB
    config.data.retries = 3  # stream: further tries of a read that fails (OSError) before the run stops
    config.data.retry_seconds = 1.0  # stream: wait before the first of them; doubles with each

    config.model = ConfigDict()  # the experiment's own keys

    config.train = ConfigDict()
    config.train.duration = "5 epochs"  # N steps | epochs | examples
    config.train.compile = "auto"  # graph, xla, xla_gradients, xla_update, eager, or auto: the fastest, by trial
    config.train.block_steps = 100  # at most this many steps in one compiled call
    config.train.precision = (
        "float32"  # float32, float64, bfloat16 or float16 (weights stay float32 under the last two)
    )
    config.train.micro_batches = 1  # parts of a batch that are differentiated one after the other, in less memory
    config.train.remat = ""  # regex of layer paths whose activations are computed again instead of kept; '' = none
    # What a NaN or infinite loss or gradient leads to: stop, skip or rewind. A dynamic loss scale skips and goes down.
    config.train.on_nonfinite = "stop"
    config.train.nonfinite_limit = 10  # rewind: rewinds before the run stops; skip: the same, steps in a row

    config.loss_scale = ConfigDict()
    config.loss_scale.name = "auto"  # dynamic, static, none, or auto: dynamic for float16, else none
    config.loss_scale.initial = 2.0**15  # static: the scale
    config.loss_scale.growth_interval = 2000  # dynamic: finite updates before the scale grows
    config.loss_scale.growth_factor = 2.0  # dynamic
    config.loss_scale.backoff_factor = 0.5  # dynamic: after an overflow
    config.loss_scale.floor = 1.0  # dynamic
    config.loss_scale.ceiling = 2.0**24  # dynamic
    config.loss_scale.patience = 20  # dynamic: skipped updates in a row at the floor before the run stops

    config.clip = ConfigDict()
    config.clip.name = "none"  # none, global_norm, value, variable_norm or adaptive (AGC)
    config.clip.threshold = (
        1.0  # of the norm or value; adaptive: of the ratio of gradient norm to weight norm, e.g. 0.01
    )
    config.clip.exclude = ""  # adaptive: regex of parameters left as they are, e.g. 'head/.*'; '' = none

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # sgd, adam, adamw, lamb or lion
    config.optimizer.momentum = 0.0  # sgd
    config.optimizer.nesterov = False  # sgd
    config.optimizer.beta_1 = 0.9  # all but sgd
    config.optimizer.beta_2 = 0.999  # all but sgd
    config.optimizer.epsilon = 1e-7  # adam, adamw, lamb
    config.optimizer.weight_decay = 0.0  # sgd, adamw, lamb, lion: decoupled, times the learning rate
    config.optimizer.groups = ()  # ('REGEX: decay=0', 'REGEX: lr=0.1 decay=2', 'REGEX: frozen'), and all others

    config.ema = ConfigDict()
    config.ema.decay = 0.0  # of the average of the weights over updates, e.g. 0.999; 0 = off

    config.schedule = ConfigDict()
    config.schedule.name = "constant"  # constant, cosine, piecewise, polynomial, restarts, inverse_sqrt or one_cycle
    config.schedule.learning_rate = 1e-3  # peak
    config.schedule.warmup = ""  # linear (one_cycle: half a cosine) up to the peak; '' = none
    config.schedule.start_fraction = 0.0  # where the warm-up starts, as a fraction of the peak
    config.schedule.final_fraction = 0.0  # cosine, polynomial, restarts, one_cycle: ends at this fraction of the peak
    config.schedule.boundaries = ()  # piecewise: durations, e.g. ('2 epochs', '4 epochs')
    config.schedule.factors = ()  # piecewise: of the peak, one after each boundary
    config.schedule.power = 1.0  # polynomial
    config.schedule.period = ""  # restarts: length of the first cosine
    config.schedule.period_factor = 1.0  # restarts: each cosine is this many times as long as the one before
    config.schedule.peak_factor = 1.0  # restarts: and its peak this many times as high
    config.schedule.timescale = ""  # inverse_sqrt: peak * sqrt(t / (t + updates)); '' = the warm-up

    config.eval = ConfigDict()
    config.eval.splits = ("test",)  # each goes to make_data(cfg, split); 'test@ema' = on the averaged weights
    config.eval.every = "1 epoch"  # and at the end; '' = only at the end
    config.eval.batch_size = 1000

    config.early_stopping = ConfigDict()
    config.early_stopping.metric = ""  # 'split/metric', e.g. 'test/loss'; '' = off
    config.early_stopping.mode = "min"  # min or max is better
    config.early_stopping.patience = 3  # evaluations without improvement before the run ends
    config.early_stopping.min_delta = 0.0  # smaller changes are no improvement

    config.log = ConfigDict()
    config.log.every = "100 steps"
    config.log.histograms_every = "1 epoch"  # of weights and gradients; '' = never
    config.log.images = 16  # real inputs shown once in TensorBoard; 0 = none

    config.checkpoint = ConfigDict()
    config.checkpoint.every = "1 epoch"  # and at the end; '' = only at the end
    config.checkpoint.keep = 3  # newest checkpoints kept
    config.checkpoint.keep_hours = 0.0  # the first and then one for every so many hours stay for good; 0 = none
    config.checkpoint.best_metric = ""  # 'split/metric': the best one is kept as well; '' = off
    config.checkpoint.best_mode = "max"  # min or max is better
    config.checkpoint.asynchronous = True  # written while training goes on; False = training waits
    config.checkpoint.on_error = "stop"  # stop or continue: what a full or failing disk leads to, for numbers too

    config.export = ConfigDict()
    config.export.checkpoint = "last"  # last or best: what is exported
    config.export.weights = "model"  # model or ema: the weights themselves or their average
    config.export.examples = 10_000  # held-out examples on which an export is compared with the model

    config.runtime = ConfigDict()
    config.runtime.deterministic = True  # TensorFlow's op determinism: same run, same bits
    config.runtime.threads = 0  # threads of one op; 0 = all cores
    config.runtime.strategy = "one_device"  # one_device, mirrored (one process), multi_worker, parameter_server, tpu
    config.runtime.devices = 0  # replicas in this process; 0 = one for each device
    config.runtime.virtual_devices = 0  # mirrored: so many virtual CPU devices stand in for GPUs; 0 = none
    config.runtime.all_reduce = "auto"  # auto, nccl, hierarchical or one_device; multi_worker: auto, nccl or ring
    config.runtime.all_reduce_dtype = "full"  # full, or bfloat16: gradients travel in half the bytes
    config.runtime.worker_timeout_seconds = 120  # how long the start waits for other processes
    config.runtime.parameter_servers = 1  # --local_workers: processes that hold the weights of a parameter_server run
    config.runtime.max_restarts = 0  # --local_workers: how often the cluster starts again after a worker died

    config.lock()
    for section in FREE_SECTIONS:
        config[section].unlock()
    return config


CHOICES = {
    "init_weights": ("model", "ema"),
    "data.remainder": ("carry", "pad", "drop"),
    "data.placement": ("auto", "resident", "stream"),
    "train.compile": ("auto", "graph", "xla", "xla_gradients", "xla_update", "eager"),
    "train.precision": ("float32", "float64", "bfloat16", "float16"),
    "train.on_nonfinite": ("stop", "skip", "rewind"),
    "loss_scale.name": ("auto", "dynamic", "static", "none"),
    "clip.name": ("none", "global_norm", "value", "variable_norm", "adaptive"),
    "optimizer.name": ("sgd", "adam", "adamw", "lamb", "lion"),
    "schedule.name": ("constant", "cosine", "piecewise", "polynomial", "restarts", "inverse_sqrt", "one_cycle"),
    "early_stopping.mode": ("min", "max"),
    "checkpoint.best_mode": ("min", "max"),
    "runtime.strategy": ("one_device", "mirrored", "multi_worker", "parameter_server", "tpu"),
    "runtime.all_reduce": ("auto", "nccl", "hierarchical", "one_device", "ring"),
    "runtime.all_reduce_dtype": ("full", "bfloat16"),
    "checkpoint.on_error": ("stop", "continue"),
    "export.checkpoint": ("last", "best"),
    "export.weights": ("model", "ema"),
}

_LARGEST = 2**31 - 1
# Adam divides by 1 - beta; anything nearer to 1 is 1 in float32.
_BELOW_ONE = 0.999999
# A loss scale is a float32.
_TINY, _HUGE = 2.0**-100, 2.0**100

# Inclusive bounds; None = unbounded, but finite.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "seed": (0, 2**63 - 1),
    "data.batch_size": (1, _LARGEST),
    "data.replica_batch_size": (0, _LARGEST),
    "data.resident_limit_mb": (0, _LARGEST),
    "data.parallel_calls": (1, 1024),
    "data.prefetch_batches": (1, 1024),
    "data.retries": (0, 30),
    "data.retry_seconds": (0, 3600),
    "train.block_steps": (1, 100_000),
    "train.micro_batches": (1, _LARGEST),
    "train.nonfinite_limit": (1, 1000),
    "loss_scale.initial": (_TINY, _HUGE),
    "loss_scale.growth_interval": (1, _LARGEST),
    "loss_scale.growth_factor": (1, 1024),
    "loss_scale.backoff_factor": (_TINY, 0.99),  # at 1 it would never reach the floor, where runs stop
    "loss_scale.floor": (_TINY, _HUGE),
    "loss_scale.ceiling": (_TINY, _HUGE),
    "loss_scale.patience": (1, _LARGEST),
    "clip.threshold": (1e-12, None),
    "optimizer.momentum": (0, 1),
    "optimizer.beta_1": (0, _BELOW_ONE),
    "optimizer.beta_2": (0, _BELOW_ONE),
    "optimizer.epsilon": (1e-30, None),
    "optimizer.weight_decay": (0, None),
    "ema.decay": (0, _BELOW_ONE),
    "schedule.learning_rate": (0, None),
    "schedule.start_fraction": (0, 1),
    "schedule.final_fraction": (0, 1),
    "schedule.power": (1e-3, 1e3),
    "schedule.period_factor": (1, 1e3),
    "schedule.peak_factor": (0, 1),
    "eval.batch_size": (1, _LARGEST),
    "early_stopping.patience": (1, _LARGEST),
    "early_stopping.min_delta": (0, None),
    "log.images": (0, 400),
    "checkpoint.keep": (1, _LARGEST),
    "checkpoint.keep_hours": (0, None),
    "export.examples": (1, _LARGEST),
    "runtime.threads": (0, 1024),
    "runtime.devices": (0, 1024),
    "runtime.virtual_devices": (0, 64),
    "runtime.worker_timeout_seconds": (1, 86_400),
    "runtime.parameter_servers": (1, 1024),
    "runtime.max_restarts": (0, 1_000_000),
}

# Durations; True = may be '' (never).
DURATIONS = {
    "train.duration": False,
    "schedule.warmup": True,
    "schedule.period": True,
    "schedule.timescale": True,
    "eval.every": True,
    "log.every": False,
    "log.histograms_every": True,
    "checkpoint.every": True,
}

# The most of each unit; products of these still fit an int64.
UNITS = {"step": 1e15, "epoch": 1e6, "example": 1e15, "%": 100, "percent": 100}

# These keys do nothing unless another key has one of these values.
_DYNAMIC = ("loss_scale.name", ("dynamic", "auto"))
ONLY_WITH = {
    "train.nonfinite_limit": ("train.on_nonfinite", ("skip", "rewind")),
    "loss_scale.initial": ("loss_scale.name", ("dynamic", "static", "auto")),
    **{f"loss_scale.{name}": _DYNAMIC for name in ("growth_interval", "growth_factor", "backoff_factor")},
    **{f"loss_scale.{name}": _DYNAMIC for name in ("floor", "ceiling", "patience")},
    "clip.threshold": ("clip.name", ("global_norm", "value", "variable_norm", "adaptive")),
    "clip.exclude": ("clip.name", ("adaptive",)),
    "optimizer.momentum": ("optimizer.name", ("sgd",)),
    "optimizer.nesterov": ("optimizer.name", ("sgd",)),
    **{f"optimizer.{name}": ("optimizer.name", ("adam", "adamw", "lamb", "lion")) for name in ("beta_1", "beta_2")},
    "optimizer.epsilon": ("optimizer.name", ("adam", "adamw", "lamb")),
    "optimizer.weight_decay": ("optimizer.name", ("adamw", "sgd", "lamb", "lion")),
    "schedule.final_fraction": ("schedule.name", ("cosine", "polynomial", "restarts", "one_cycle")),
    "schedule.boundaries": ("schedule.name", ("piecewise",)),
    "schedule.factors": ("schedule.name", ("piecewise",)),
    "schedule.power": ("schedule.name", ("polynomial",)),
    **{f"schedule.{name}": ("schedule.name", ("restarts",)) for name in ("period", "period_factor", "peak_factor")},
    "schedule.timescale": ("schedule.name", ("inverse_sqrt",)),
    "runtime.devices": ("runtime.strategy", ("mirrored",)),
    "runtime.virtual_devices": ("runtime.strategy", ("mirrored",)),
    "runtime.all_reduce": ("runtime.strategy", ("mirrored", "multi_worker")),
    "runtime.all_reduce_dtype": ("runtime.strategy", ("mirrored", "multi_worker", "tpu")),
    "runtime.worker_timeout_seconds": ("runtime.strategy", ("multi_worker", "parameter_server")),
    "runtime.max_restarts": ("runtime.strategy", ("multi_worker", "parameter_server")),
    "runtime.parameter_servers": ("runtime.strategy", ("parameter_server",)),
}
