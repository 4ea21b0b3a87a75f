"""Trains a run at s3://, of a server of this process, and goes on from another machine's cache.

python -m tests.at_s3 FOLDER        # FOLDER/results.json
"""

import json
import os
import sys
from pathlib import Path

import framework
from framework import testing

CONFIG, ADDRESS = "tests/linear.py", "s3://bucket/runs/linear"
SETTINGS = {"train.compile": "eager", "checkpoint.every": "2 steps", "checkpoint.keep": 1}


def main(folder):
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    import s3fs

    system = s3fs.S3FileSystem()
    system.mkdir("bucket")

    def trained(workdir, steps):
        run = framework.build(CONFIG, SETTINGS | {"train.duration": f"{steps} steps"}, workdir)
        framework.train(run)
        return {path: value.hex() for path, value in testing.bits(run.state).items()}

    trained(folder / "alone", 5)
    results = {"alone": trained(folder / "alone", 8)}
    os.environ["FRAMEWORK_CACHE"] = str(folder / "first")
    trained(ADDRESS, 5)
    os.environ["FRAMEWORK_CACHE"] = str(folder / "second")
    results["moved"] = trained(ADDRESS, 8)
    system.invalidate_cache()
    results["names"] = sorted(name.removeprefix("bucket/runs/linear/") for name in system.find("bucket"))
    server.stop()
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
