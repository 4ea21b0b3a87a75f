"""Calls launch.py on tests/tiny.py."""

import launch

TINY = "--config=tests/tiny.py"
GRAPH = "--config.train.compile=graph"


def call(*arguments):
    return launch.main(["launch.py", TINY, GRAPH, *arguments])
