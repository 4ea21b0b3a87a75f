"""Vectors and titles as TensorBoard's own projector plugin serves them over HTTP."""

import json

import numpy as np
import pytest
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client
from werkzeug.wrappers import Response

from framework.errors import UserError
from framework.writers import write_projector

TITLES = ["Ünder the Sea", "Two\tTabs", 'A "quoted"\nline']


def served(folder, route, **arguments):
    """What the plugin answers to a request of the projector."""
    app = ProjectorPlugin(TBContext(logdir=str(folder))).get_plugin_apps()[route]
    response = Client(app, Response).get(route, query_string=arguments)
    assert response.status_code == 200, response.get_data(as_text=True)
    return response.get_data()


def test_the_projector_serves_the_vectors_and_the_columns(tmp_path):
    vectors = np.random.default_rng(0).normal(size=[3, 5]).astype(np.float32)
    write_projector(tmp_path / "new", "films", vectors, {"title": TITLES, "year": [1950, 1951, 0]})
    found = json.loads(served(tmp_path / "new", "/info", run="."))
    assert [(one["tensorName"], one["tensorShape"]) for one in found["embeddings"]] == [("films", [3, 5])]
    tensor = np.frombuffer(served(tmp_path / "new", "/tensor", run=".", name="films"), np.float32)
    np.testing.assert_array_equal(tensor.reshape(3, 5), vectors)
    lines = served(tmp_path / "new", "/metadata", run=".", name="films").decode().splitlines()
    assert lines == ["title\tyear", "Ünder the Sea\t1950", "Two Tabs\t1951", 'A "quoted" line\t0']


def test_a_single_column_has_no_header_and_vectors_of_another_name_stay(tmp_path):
    write_projector(tmp_path, "films", np.eye(3), {"title": TITLES})
    write_projector(tmp_path, "users", np.full([2, 2], 7), {"id": [4, 5]})
    write_projector(tmp_path, "films", -np.eye(3), {"title": TITLES})
    names = [one["tensorName"] for one in json.loads(served(tmp_path, "/info", run="."))["embeddings"]]
    assert sorted(names) == ["films", "users"]
    assert served(tmp_path, "/metadata", run=".", name="users").decode().splitlines() == ["4", "5"]
    for name, expected in (("films", -np.eye(3)), ("users", np.full([2, 2], 7))):
        tensor = np.frombuffer(served(tmp_path, "/tensor", run=".", name=name), np.float32)
        np.testing.assert_array_equal(tensor.reshape(expected.shape), expected)


def test_vectors_without_a_text_do_not_shift_the_texts_of_later_ones(tmp_path):
    """The projector's parseMetadata returns at once from a line whose trim() is empty."""

    def labels(name, columns):
        write_projector(tmp_path, name, np.eye(4), columns)
        lines = served(tmp_path, "/metadata", run=".", name=name).decode().split("\n")
        return [line for line in lines if line.replace("\ufeff", "").strip()]

    assert labels("one", {"title": np.array([b"a", b"", "é".encode(), b"d"], object)}) == ["a", "-", "é", "d"]
    assert labels("two", {"title": ["a", "", "", "\ufeff"], "year": ["", "\n", 1950, ""]}) == [
        *("title\tyear", "a\t", "-\t", "\t1950", "-\ufeff\t"),
    ]


def test_a_damaged_config_is_written_anew(tmp_path):
    (tmp_path / "projector_config.pbtxt").write_text("embeddings {")
    write_projector(tmp_path, "films", np.eye(2), {"title": TITLES[:2]})
    assert len(json.loads(served(tmp_path, "/info", run="."))["embeddings"]) == 1


@pytest.mark.parametrize(
    ("name", "vectors", "columns", "message"),
    [
        ("a/b", np.eye(3), {"title": TITLES}, "name='a/b' is not the name of a file. Use letters, digits and _."),
        ("a", np.ones(3), {"title": TITLES}, "'a' has shape (3,), but must be finite [rows, width]."),
        ("a", np.full([3, 1], np.nan), {"title": TITLES}, "'a' has shape (3, 1), but must be finite [rows, width]."),
        ("a", np.eye(3), {}, "'a' has no columns. Give one, such as {'title': titles}."),
        ("a", np.eye(2), {"t": TITLES}, "column 't' of 'a' has 3 values for 2 vectors. Give one for each row."),
    ],
)
def test_what_the_projector_cannot_show_is_refused(tmp_path, name, vectors, columns, message):
    with pytest.raises(UserError) as error:
        write_projector(tmp_path, name, vectors, columns)
    assert str(error.value) == f"write_projector: {message}"
    assert not [*tmp_path.iterdir()]
