"""How TensorFlow Serving is started: the command line, by a stand-in that notes its arguments and answers as ready.

The server itself is not here: what it makes of the command is not tested.
"""

import os
import sys

import pytest

import launch
from framework import manifest
from framework.errors import RunError, UserError
from framework.serving import model_server
from tests.serving.started import Server

# Notes its arguments, and answers the status of a model at its REST port until SIGTERM.
STAND_IN = """#!{python}
import http.server, json, re, sys
with open({noted!r}, "w") as file:
    json.dump(sys.argv[1:], file)
ports = re.findall(r"--rest_api_port=(\\d+)|127\\.0\\.0\\.1:(\\d+):8501", " ".join(sys.argv))
if not ports:
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        state = {{"version": "4", "state": "AVAILABLE", "status": {{"error_code": "OK", "error_message": ""}}}}
        content = json.dumps({{"model_version_status": [state]}}).encode()
        self.send_response(200 if self.path == "/v1/models/mnist" else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
http.server.HTTPServer(("127.0.0.1", int("".join(ports[0]))), Handler).serve_forever()
"""


TRUST = "A SavedModel is a program: if you trust it, type --trust."


@pytest.fixture
def workdir(tmp_path):
    """A run folder with version 4 of an export, and the configs that an export writes."""
    folder = tmp_path / "run/exports/saved_model"
    (folder / "4").mkdir(parents=True)
    (folder / "4/saved_model.pb").write_text("graph")
    manifest.add(folder, "4", manifest.digest(folder / "4"))
    config = 'model_config_list {\n  config {\n    name: "mnist"\n  }\n}\n'
    (folder / "models.config").write_bytes(b"# edited where text is no UTF-8: caf\xe9\n" + config.encode())
    (folder / str(2**63)).mkdir()  # which TensorFlow Serving does not see
    (folder / "batching.config").touch()
    (folder / "monitoring.config").touch()
    return tmp_path / "run"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(name): puts a stand-in of this name into a PATH that has nothing else; returns its path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("TENSORFLOW_MODEL_SERVER", raising=False)

    def put(name):
        path = folder / name
        path.write_text(STAND_IN.format(python=sys.executable, noted=str(tmp_path / "noted.json")))
        path.chmod(0o755)
        return path

    return put


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_the_command_of_the_binary(workdir, programs):
    server = model_server.find(None) if programs("tensorflow_model_server") else None
    folder = workdir / "exports/saved_model"
    assert server.command(folder, "mnist", 8500, 8501)[1:] == [
        "--port=8500",
        "--rest_api_port=8501",
        "--model_name=mnist",
        f"--model_base_path={folder}",
        "--enable_batching",
        f"--batching_parameters_file={folder}/batching.config",
        f"--monitoring_config_file={folder}/monitoring.config",
    ]
    (folder / "batching.config").unlink()
    (folder / "monitoring.config").unlink()
    assert server.command(folder, "mnist", 1, 2)[1:] == [
        "--port=1",
        "--rest_api_port=2",
        "--model_name=mnist",
        f"--model_base_path={folder}",
    ]


def test_the_command_of_docker_publishes_on_loopback(workdir, programs):
    docker = programs("docker")
    folder = workdir / "exports/saved_model"
    assert model_server.find(None).command(folder, "mnist", 18500, 18501) == [
        *(str(docker), "run", "--rm", "-p", "127.0.0.1:18500:8500", "-p", "127.0.0.1:18501:8501"),
        *("--mount", f"type=bind,source={folder},target=/models/mnist,readonly", "-e", "MODEL_NAME=mnist"),
        *("tensorflow/serving", "--enable_batching", "--batching_parameters_file=/models/mnist/batching.config"),
        "--monitoring_config_file=/models/mnist/monitoring.config",
    ]
    command = model_server.find("0.0.0.0").command(folder, "mnist", 1, 2)
    assert "0.0.0.0:1:8500" in command and "0.0.0.0:2:8501" in command
    comma = workdir / "a,b"
    with pytest.raises(UserError, match=r"a,b cannot be mounted by docker: its name has a comma or a quote\. Move the"):
        model_server.find(None).command(comma, "mnist", 1, 2)


def test_which_server_is_found(programs, monkeypatch, tmp_path):
    nothing = (
        r"^there is neither tensorflow_model_server in the PATH nor docker\. Install .*, or try .*: --development\.$"
    )
    with pytest.raises(UserError, match=nothing):
        model_server.find(None)
    docker = programs("docker")
    assert model_server.find(None).program == str(docker)
    binary = programs("tensorflow_model_server")
    assert model_server.find(None) == model_server.Server(str(binary), is_docker=False)
    with pytest.raises(UserError, match=rf"^--host=127\.0\.0\.1 has no effect with {binary}, which listens on all"):
        model_server.find("127.0.0.1")
    own = tmp_path / "own"
    monkeypatch.setenv("TENSORFLOW_MODEL_SERVER", str(own))
    with pytest.raises(UserError, match=rf"^\$TENSORFLOW_MODEL_SERVER={own} is no program\. Set it to the path of"):
        model_server.find(None)
    own.touch(mode=0o755)
    assert model_server.find(None).program == str(own)


@pytest.mark.parametrize("name", ["tensorflow_model_server", "docker"])
def test_the_mode_starts_it_says_where_it_listens_waits_and_ends_it(workdir, programs, name):
    programs(name)
    rest_port = free_port()
    server = Server(workdir, "--port=8500", f"--rest_port={rest_port}")
    try:
        assert server.wait(rf"^ready: http://127\.0\.0\.1:{rest_port}/v1/models/mnist, version (\d+)$")[1] == "4"
    finally:
        status = server.end()
    assert status == 0
    where = "ON ALL INTERFACES of this machine, without authentication" if name != "docker" else "on 127.0.0.1"
    assert f"listens {where}, ports 8500 (gRPC) and {rest_port} (REST)" in server.lines
    noted = (workdir.parent / "noted.json").read_text()
    assert f"127.0.0.1:{rest_port}:8501" in noted if name == "docker" else f"--rest_api_port={rest_port}" in noted


def test_a_server_that_fails_is_one_line(workdir, programs, tmp_path):
    program = tmp_path / "bin/tensorflow_model_server"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(RunError) as caught:
        model_server.serve(model_server.find(None), workdir / "exports/saved_model", "mnist", 1, free_port())
    assert str(caught.value) == ("tensorflow_model_server ended with status 3 before it was ready. It said why above.")


def test_a_server_that_does_not_become_ready_is_ended(workdir, tmp_path, programs, monkeypatch):
    program = tmp_path / "bin/tensorflow_model_server"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec /bin/sleep 100\n")
    program.chmod(0o755)
    monkeypatch.setattr(model_server, "_READY_SECONDS", 0.5)
    with pytest.raises(RunError, match=r"is not ready after 0 s, and is stopped\.$"):
        model_server.serve(model_server.find(None), workdir / "exports/saved_model", "mnist", 1, free_port())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "there is neither tensorflow_model_server in the PATH nor docker. Install the package"),
        (["--export=lite"], "exports/lite does not exist. Type --export=saved_model."),
        (
            ["--export=mobile"],
            "exports/mobile has no version to serve. Type --export=saved_model.",
        ),
        (["--model_name=a/b"], "--model_name=a/b is not a model's name. Use letters, digits and any of _.-"),
        (["--development", "--host=0.0.0.0"], "--host=0.0.0.0: the development server listens on 127.0.0.1 alone."),
        (["--port=0"], "--port=0 is a free port for --development alone. Type a number, or leave it out."),
    ],
)
def test_what_the_mode_refuses(workdir, programs, capsys, flags, message):
    (workdir / "exports/mobile").mkdir()
    (workdir / "exports/mobile/model.tflite").touch()
    assert launch.main(["launch.py", "--mode=serve", f"--workdir={workdir}", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_an_export_that_was_changed_is_not_started(workdir, programs, capsys):
    programs("tensorflow_model_server")
    newest = workdir / "exports/saved_model/4"
    (newest / "saved_model.pb").write_text("grapf")
    assert launch.main(["launch.py", "--mode=serve", f"--workdir={workdir}"]) == 2
    assert capsys.readouterr().err == (
        f"error: {newest} is not served: its files are not those of manifest.json: half-written, or changed. {TRUST}\n"
    )
    (workdir / "exports/saved_model/manifest.json").unlink()
    assert launch.main(["launch.py", "--mode=serve", f"--workdir={workdir}"]) == 2
    assert capsys.readouterr().err == f"error: {newest} is not served: manifest.json does not know it. {TRUST}\n"
