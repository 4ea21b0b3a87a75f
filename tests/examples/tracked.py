"""All numbers of a run in MLflow or Weights & Biases, without a server; each is a writer of ten lines to copy.

    python launch.py --config=tests/examples/tracked.py --config.data.tracker=mlflow
    mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db

    python launch.py --config=tests/examples/tracked.py --config.data.tracker=wandb
    wandb sync RUN/wandb/offline-run-*

Neither package is a requirement: pip install mlflow, or wandb. A thread of its own (`AsyncWriter`) does the writing, so
that training does not wait. A run that resumes goes on in the same run of the tracker. It writes rows after its
checkpoint again: MLflow keeps both, and an upload to W&B, whose steps only rise, the first; both are equal.
"""

from framework import writers
from tests import tiny
from tests.tiny import make_data, make_loss, make_metrics, make_model, make_schedule  # noqa: F401


def get_config(arg):
    config = tiny.get_config(arg)
    config.data.tracker = "mlflow"
    return config


def make_writers(cfg):
    return [writers.AsyncWriter({"mlflow": MLflow, "wandb": WandB}[cfg.data.tracker]())]


class MLflow(writers.Writer):
    """Writes RUN/mlflow.db."""

    def open(self, folder, step):
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
        known = mlflow.search_runs(output_format="list") if step else []
        self._mlflow, self._id = mlflow, known[0].info.run_id if known else None
        with mlflow.start_run(run_id=self._id, run_name=folder.name) as run:
            self._id = run.info.run_id

    def hyperparameters(self, values):
        self._mlflow.log_params(values, run_id=self._id)

    def scalars(self, step, values):
        values = {name.replace("@", "."): value for name, value in values.items()}  # MLflow refuses the @ of test@ema
        self._mlflow.log_metrics(values, step=step, run_id=self._id)


class WandB(writers.Writer):
    """Writes RUN/wandb/, which `wandb sync` uploads."""

    def open(self, folder, step):
        import wandb

        self._run = wandb.init(mode="offline", dir=folder, project="tracked", id=folder.name, resume="allow")

    def hyperparameters(self, values):
        self._run.config.update(values)

    def scalars(self, step, values):
        self._run.log(dict(values), step=step)

    def close(self):
        self._run.finish()
