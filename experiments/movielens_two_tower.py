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

from framework import config, data, evaluators, export, layers, losses, metrics, retrieval, rng, writers
from framework.data.sets import rating_splits

AGES = (18, 25, 35, 45, 50, 56)
DECADES = tuple(range(1930, 2030, 10))
SPLITS = ("last", "u1", "u2", "u3", "u4", "u5", "random", "time")
RANKED = 100  # films of a user at an evaluation
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
        "schedule.learning_rate": 0.1,  # of the way to the best row given all others: see `scales`
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
    cfg.model.scaled = False  # factors, so that one learning rate of sgd suits rare and popular rows: see `scales`
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
    config.check_choice("data.split", cfg.data.split, SPLITS)
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
    if cfg.data.split == "random":
        return ratings, rating_splits.random_split(ratings, 0.2, cfg.data.seed)
    if cfg.data.split == "time":
        return ratings, rating_splits.split_at_time(ratings, 0.1)
    if cfg.data.split != "last":
        return ratings, rating_splits.fold(ratings, int(cfg.data.split[1]))
    split = rating_splits.leave_last_out(ratings)
    train, valid, test = (split.parts[name] for name in ("train", "valid", "test"))
    if cfg.data.held_out == "valid":
        return ratings, rating_splits.Split("the last rating but one", {"train": train, "test": valid})
    train = np.sort(np.concatenate([train, valid]))
    return ratings, rating_splits.Split("the last rating of each user", {"train": train, "test": test})


def make_data(cfg: ConfigDict, split: str):
    """Returns the batches of a split: 'user', 'film', 'age' and 'occupation', 'rating', and 'history' if asked for."""
    ratings, parts = load(cfg)
    user = ratings.arrays["user"]
    fields = {"user": user + 1, "film": ratings.arrays["item"] + 1, "rating": ratings.arrays["rating"]}
    age, occupation = user_features(ratings)
    fields |= {"age": age[user], "occupation": occupation[user]}
    if cfg.data.history:
        fields["history"] = histories(ratings, cfg.data.history)
    source = parts.source(split, data.Source(fields, ratings.origin, ratings.is_subset))
    return data.make_batches(source, cfg, training=split == "train")


def make_files(cfg: ConfigDict) -> dict[str, str]:
    """Returns what the split was, which the run folder keeps."""
    return {"split.json": load(cfg)[1].to_json()}


def user_features(ratings: data.Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns the age float32 [users] and the number of the occupation, int32 [users]; NaN and 0 if unknown."""
    users = ratings.users
    if "age" not in users:
        count = len(users["id"])
        return np.full(count, np.nan, np.float32), np.zeros(count, np.int32)
    occupation = np.unique(users["occupation"], return_inverse=True)[1] + 1
    return users["age"].astype(np.float32), occupation.astype(np.int32)


def film_features(ratings: data.Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the genres, int32 [rows, most], and the year, float32 [rows]; row 0 is padding."""
    genres = retrieval.padded([[], *(np.flatnonzero(own) + 1 for own in ratings.items["genres"])])
    year = np.where(ratings.items["year"] > 0, ratings.items["year"], np.nan)
    return genres, np.concatenate([[np.nan], year]).astype(np.float32)


def in_time(ratings: data.Source) -> np.ndarray:
    """Returns the indices that sort ratings by user, then by time, then by the line of the file."""
    user, timestamp = ratings.arrays["user"], ratings.arrays["timestamp"]
    return np.lexsort((np.arange(len(user)), timestamp, user))


def histories(ratings: data.Source, length: int) -> np.ndarray:
    """Returns the films that the user rated before each rating: rows, int32 [ratings, length], the newest last."""
    order = in_time(ratings)
    user, film = ratings.arrays["user"][order], ratings.arrays["item"][order] + 1
    place = np.arange(len(user)) - np.searchsorted(user, user)  # among the ratings of the user
    back = np.arange(length, 0, -1)
    whole = np.concatenate([np.zeros(length, np.int32), film])[np.arange(len(user))[:, np.newaxis] + length - back]
    result = np.empty((len(user), length), np.int32)
    result[order] = np.where(place[:, np.newaxis] >= back, whole, 0)
    return result


# ---- Model ----


class TwoTowers(keras.Model):
    """A tower for users and one for films, and factors of ratings.

    The user tower sees the last films at several half-lives, age and occupation; the film tower the film, its genres
    and its year. Films of a history have a table of their own: what a film says about the next one is not what it is.
    """

    def __init__(self, cfg: ConfigDict, ratings: data.Source):
        super().__init__()
        settings = cfg.model
        genres, years = film_features(ratings)
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
            self.factors = Factors(scales(cfg, ratings), settings)

    def users(self, batch, training=None):
        """Returns the vectors of users, [batch, width + 1], of 'history', 'age' and 'occupation'."""
        history = batch["history"]
        vectors = self.watched(history)  # [batch, length, width]
        weights = tf.stack([layers.recency_weights(history, half_life) for half_life in self.half_lives], 1)
        weights = tf.math.divide_no_nan(weights, tf.sqrt(tf.reduce_sum(weights, 2, keepdims=True)))
        pooled = tf.matmul(tf.cast(weights, vectors.dtype), vectors)  # [batch, half-lives, width]
        pooled = tf.reshape(pooled, [-1, len(self.half_lives) * vectors.shape[-1]])
        pooled = self.dropout(pooled, training=training)
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
            outputs["members"] = self.factors(batch)  # [batch, members]
            outputs["predictions"] = tf.clip_by_value(tf.reduce_mean(outputs["members"], 1), *self.rating_range)
        return outputs


def scales(cfg: ConfigDict, ratings: data.Source) -> dict[str, np.ndarray]:
    """Returns by what the rows of each table of `Factors` are multiplied, float32 [rows, 1].

    It is 1 unless `model.scaled`: then the numbers of a row, if they were independent, would be likely within
    sqrt(2 * VARIANCE / (members * examples)) of the best ones, whatever the number of its ratings. So one learning rate
    suits all rows: it is the share of the way to the best ones, given the others.
    """
    settings, train = cfg.model, load(cfg)[1].parts["train"]
    rows = {"user": len(ratings.users["id"]) + 1, "film": len(ratings.items["id"]) + 1}
    if not settings.scaled:
        return {f"{of}_{what}": np.ones((rows[of], 1), np.float32) for of in rows for what in ("factors", "biases")}
    result = {}
    for of, field in (("user", "user"), ("film", "item")):
        counts = np.bincount(ratings.arrays[field][train] + 1, minlength=rows[of])
        seen = {"factors": settings.prior + counts * VARIANCE / settings.prior, "biases": settings.bias_prior + counts}
        for what, precision in seen.items():
            deviation = np.sqrt(settings.members * len(train) / (2 * precision))
            result[f"{of}_{what}"] = deviation.astype(np.float32)[:, np.newaxis]
    return result


class Factors(keras.layers.Layer):
    """Rates by several models, each the mean rating, biases and a product of factors of the user and of the film.

    Args:
      scales: by what the rows of each table are multiplied: {name of the table: float32 [rows, 1]}.
      settings: cfg.model.

    Call: {'user', 'film': int32 [batch]} -> ratings of each member, [batch, members].
    """

    MEAN = 3.5

    def __init__(self, scales: dict[str, np.ndarray], settings: ConfigDict):
        super().__init__(name="factors")
        self.shape = (settings.members, settings.factors)
        self.priors = {"factors": settings.prior, "biases": settings.bias_prior}
        self.scales = {name: tf.constant(scale) for name, scale in scales.items()}
        deviation = VARIANCE**0.5 / settings.prior**0.5
        self.tables = {}
        for name, scale in scales.items():
            is_bias = name.endswith("biases")
            width = settings.members * (1 if is_bias else settings.factors)
            start = "zeros" if is_bias else keras.initializers.RandomNormal(stddev=deviation / scale.max())
            self.tables[name] = layers.EmbeddingTable(len(scale), width, start, name=name)

    def rows(self, name, index):
        """Returns rows of a table, [batch, width]."""
        rows = self.tables[name](index)
        return rows * tf.cast(tf.gather(self.scales[name], index), rows.dtype)

    def call(self, batch):
        user, film = batch["user"], batch["film"]
        products = self.rows("user_factors", user) * self.rows("film_factors", film)
        products = tf.reduce_sum(tf.reshape(products, [-1, *self.shape]), 2)
        return self.MEAN + self.rows("user_biases", user) + self.rows("film_biases", film) + products

    def penalty(self):
        """Returns the sum over members of the squares of all factors and biases, by their priors."""
        squares = []
        for name, table in self.tables.items():
            prior = self.priors[name.split("_")[1]]
            squares.append(prior * tf.reduce_sum(tf.square(self.scales[name] * table.table)))
        return tf.add_n(squares)


def make_model(cfg: ConfigDict) -> keras.Model:
    """Returns the model of this config."""
    return TwoTowers(cfg, load(cfg)[0])


def make_loss(cfg: ConfigDict):
    """Returns the loss: the cross-entropy of the film among all films, and the squared error of its rating."""
    ratings, split = load(cfg)
    train = split.parts["train"]
    counts = np.bincount(ratings.arrays["item"][train] + 1, minlength=len(ratings.items["id"]) + 1)
    log_shares = np.log(np.maximum(counts, 0.5) / len(train)).astype(np.float32)  # [rows]

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
            terms["prior"] = for_each(scale * model.factors.penalty(), weight)
            if cfg.model.noise:
                drawn = noise(model.factors, len(train)) if training else tf.constant(0.0)
                terms["noise"] = for_each(drawn, weight)
        return terms, outputs

    def next_film(model, users, batch):
        film, weight = batch["film"], batch["weight"]
        if cfg.model.softmax == "in_batch":
            log_q = tf.gather(log_shares, film)
            return losses.in_batch_softmax(users, model.items(film), film, weight, log_q)
        logits = tf.matmul(users, model.items(), transpose_b=True)
        is_padding = tf.equal(tf.range(tf.shape(logits)[1]), 0)
        lowest = tf.constant(-1e4, logits.dtype)
        return losses.sparse_cross_entropy(tf.where(is_padding, lowest, logits), film, weight)

    def noise(factors, examples):
        """Returns a sum whose gradient is noise: gradient descent by it samples factors (Welling and Teh, 2011)."""
        members, rate = cfg.model.members, cfg.schedule.learning_rate
        deviation = (4 * VARIANCE * cfg.model.noise / (members * examples * rate)) ** 0.5
        sums = []
        with rng.of_batch():
            for table in factors.trainable_variables:
                drawn = rng.normal("langevin", table.shape[0], table.shape[1], deviation)
                sums.append(tf.reduce_sum(drawn * table))
        return tf.add_n(sums)

    loss.needs_collectives = bool(cfg.model.next_weight) and cfg.model.softmax == "in_batch"  # of all replicas
    return loss


def for_each(value, weight):
    """Returns a term that is the same for every example."""
    count = tf.cast(tf.reduce_sum(weight), value.dtype)
    return losses.Term(value * count, count)


# ---- Evaluation ----


def make_metrics(cfg: ConfigDict):
    """Returns the error of ratings, clipped to the range that they have."""
    return {"rmse": metrics.RootMeanSquaredError(target="rating")} if cfg.model.rating_weight else {}


def make_evaluators(cfg: ConfigDict):
    """Returns the exact ranking of all films that a user has not rated, by the model of the next film."""
    return {"ranking": Ranking(cfg)} if cfg.model.next_weight else {}


class Ranking:
    """Ranks all films for each held-out rating, and reports recall, NDCG, MRR, coverage and popularity."""

    def __init__(self, cfg: ConfigDict):
        self.modes = {"recall@10": "max", "ndcg@10": "max"}
        ratings, split = load(cfg)
        user, film = ratings.arrays["user"], ratings.arrays["item"] + 1
        train, test = split.parts["train"], split.parts["test"]
        ends = np.cumsum(np.bincount(user[train], minlength=len(ratings.users["id"])))
        of_user = np.split(film[train][np.argsort(user[train], kind="stable")], ends[:-1])
        self.seen = retrieval.padded([of_user[number] for number in user[test]])
        self.popularity = np.bincount(film[train], minlength=len(ratings.items["id"]) + 1)
        self.shown = {}
        if cfg.model.projector:
            self.shown = {name: ratings.items[name] for name in ("title", "id", "year")}
            self.shown["ratings"] = self.popularity[1:]

    def __call__(self, run):
        if self.shown and run.replicas.is_chief:
            folder = run.workdir / "tensorboard" / "train"  # a run of TensorBoard's, where its projector looks
            vectors = tf.cast(run.model.items(), tf.float32).numpy()[1:]
            writers.write_projector(folder, "films", vectors, self.shown)
        places, rows, film = self.ranked(run)
        scalars = metrics.ranking(rows, film[:, np.newaxis], self.popularity, ks=(10, 100))
        return evaluators.Report(scalars | {"mrr": float(np.mean(1 / places))})

    def ranked(self, run):
        """Returns the place of the held-out film, the first films, and the held-out film of each rating."""
        batches, outputs = zip(*evaluators.predictions(run), strict=True)
        users = np.concatenate([output["users"] for output in outputs])
        film = np.concatenate([batch["film"] for batch in batches])
        items = tf.cast(run.model.items(), tf.float32).numpy()
        places = retrieval.ranks_of_all(users, items, film, self.seen)
        return places, retrieval.top_k_of_all(users, items, RANKED, self.seen)[1], film


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
