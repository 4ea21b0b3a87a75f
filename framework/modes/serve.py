"""--mode=serve: serves the SavedModel exports of a run, by TensorFlow Serving or, with --development, a small server.

python launch.py --mode=serve --workdir=runs/mnist --development
"""

import re
from pathlib import Path

from framework import folder, manifest
from framework.errors import UserError
from framework.serving import model_server

PORT, REST_PORT = 8500, 8501
_NAME = re.compile(r"^\s*name:\s*\"([A-Za-z0-9_.-]+)\"", re.MULTILINE)


def main(
    workdir: Path,
    development: bool = False,
    export: str = "saved_model",
    model_name: str | None = None,
    host: str | None = None,
    port: int = PORT,
    rest_port: int = REST_PORT,
    trust: bool = False,
) -> int:
    """Serves until the server is stopped; returns 0, or 1 if TensorFlow Serving fails.

    Args:
      workdir: the run folder.
      development: whether the small server of this project serves, on 127.0.0.1.
      export: name of the folder in exports/.
      model_name: in requests; None takes that of models.config, or 'model'.
      host: address at which docker publishes the ports; None is 127.0.0.1.
      port: of gRPC.
      rest_port: of REST.
      trust: whether versions are served that no export of this project wrote.

    Raises:
      UserError: there is nothing to serve, no server, or a flag that the server cannot keep.
    """
    served = workdir / folder.EXPORTS / export
    _refuse_other_exports(served)
    name = model_name or _configured_name(served) or "model"
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise UserError(f"--model_name={name} is not a model's name. Use letters, digits and any of _.-")
    if development:
        if host not in (None, model_server.LOOPBACK):
            raise UserError(
                f"--host={host}: the development server listens on 127.0.0.1 alone. Leave --host out, or --development."
            )
        # Loads TensorFlow, which TensorFlow Serving brings itself.
        from framework.serving import development as small

        return small.serve(served, name, port, rest_port, trust)
    for flag, value in {"port": port, "rest_port": rest_port}.items():
        if value == 0:
            raise UserError(f"--{flag}=0 is a free port for --development alone. Type a number, or leave it out.")
    server = model_server.find(host)
    _refuse_unknown(served, trust)
    return model_server.serve(server, served, name, port, rest_port)


def _configured_name(served: Path) -> str | None:
    """Returns the name of the model in models.config, which the export wrote; None without one."""
    path = served / "models.config"
    match = _NAME.search(path.read_text(errors="replace")) if path.is_file() else None
    return match[1] if match else None


def _refuse_other_exports(served: Path) -> None:
    """Raises UserError unless a folder of exports/ has versions of a SavedModel, which alone can be served."""
    if manifest.versions(served):
        return
    folders = (path for path in sorted(served.parent.glob("*")) if path.is_dir() and path.suffix != ".failed")
    others = [f"--export={path.name}" for path in folders if manifest.versions(path)]
    if served.is_dir():
        fault, hint = "has no version to serve", "Export one: --mode=export."
    else:
        fault, hint = "does not exist", "Export first: --mode=export, or name a folder: --export=…."
    if others:  # such as the SavedModel beside a .tflite, which no model server takes
        hint = f"Type {' or '.join(others)}."
    raise UserError(f"{served} {fault}. {hint}")


def _refuse_unknown(served: Path, is_trusted: bool) -> None:
    """Raises UserError unless the version that TensorFlow Serving will take, the newest, is as it was exported."""
    versions = manifest.versions(served)
    newest = versions[max(versions)]
    if not is_trusted and (why := manifest.fault(newest)):
        raise UserError(f"{newest} is not served: {why}")
