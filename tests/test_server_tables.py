"""A table split by rows over parameter servers: the numbers of one device, restored on any number of servers.

Two lists of rows a step, so that rows come several times; some lists are empty.
"""

import numpy as np
import pytest

from tests.in_cluster import said_by
from tests.served_tables import ROWS, RULES, SHARDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def two(folder):
    """A run on two servers beside a run on one device, and what they saved."""
    return said_by("tests.served_tables", "train", folder, 2)


def test_the_shards_lie_on_both_servers_by_turns(two):
    sizes = [rows for rows, _ in two["shards"].values()]
    assert sizes == [ROWS // SHARDS + (shard < ROWS % SHARDS) for shard in range(SHARDS)]
    tasks = [device.split("/task:")[1][0] for _, device in two["shards"].values()]
    assert all("/job:ps/" in device for _, device in two["shards"].values())
    assert tasks in (["0", "1"] * 3 + ["0"], ["1", "0"] * 3 + ["1"])


@pytest.mark.parametrize("rule", RULES)
def test_a_sharded_table_trains_as_on_one_device(two, rule):
    """Weights and slots after 24 steps in float64, look-ups before and after, and every number of every step."""
    found = two[rule]
    assert found["first"][0] == found["first"][1]
    assert {path: d for path, d in found["distances"].items() if d > 1e-12} == {}
    np.testing.assert_allclose(*found["looked_up"], rtol=1e-12)
    assert np.abs(np.subtract(found["first"][0], found["looked_up"][0])).max() > 1e-3
    for row, expected in zip(*found["rows"], strict=True):
        assert row == pytest.approx({key: expected[key] for key in row}, rel=1e-12)
    assert found["evaluations"][0] == pytest.approx(found["evaluations"][1], rel=1e-12)


def test_a_look_up_is_the_row_of_the_whole_table(two):
    whole = np.array(two["whole"])
    assert whole.shape[0] == ROWS
    whole[0] = 0  # padding
    np.testing.assert_array_equal(two["sgd"]["looked_up"][0], whole[[[0, 39, 1, 39], [6, 5, 34, 0]]])


def test_a_row_that_is_not_in_the_table_is_named(two):
    found = two["bad"]
    assert found["told"] == (
        f"step {found['step']} cannot be taken: layer 'films' takes 40, which is not from 0 to 39; it comes from 'film'"
        f" of the batch, example {found['place']}. Nothing of this step is saved."
    )


def same_bits(report, servers):
    assert report.keys() == RULES.keys()
    for of_rule in report.values():
        assert len(of_rule) == 2 * 2
        for name, found in of_rule.items():
            assert found["differing"] == [], name
            assert len(found["devices"]) == (servers if name.endswith("on servers") else 1), name


def test_what_two_servers_and_one_device_saved_is_restored_on_two_and_on_one_device(two):
    same_bits(two["restored"], 2)


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 3])
def test_what_two_servers_saved_is_restored_on_others(two, folder, servers):
    same_bits(said_by("tests.served_tables", "restore", folder, servers), servers)
