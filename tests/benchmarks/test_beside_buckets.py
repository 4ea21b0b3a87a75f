"""The batches that peers of PyTorch and JAX train on are those of our first epoch."""

import numpy as np

from framework import config
from tests.benchmarks.peers import epochs
from tests.benchmarks.workloads import arrays, buckets


def test_an_epoch_has_each_sentence_of_its_batches_once(tmp_path):
    batches = buckets.make_data(config.finalize(buckets.get_config("")), "train")
    epochs.write(tmp_path / "epoch.npz", buckets.epoch(batches))
    found = epochs.read(str(tmp_path / "epoch.npz"))
    assert len(found) == batches.steps_per_epoch
    shapes = {batch["source"].shape for batch in found}
    assert len(shapes) == 12 and max(size * length for size, length in shapes) <= 4096
    whole = buckets.sentences(9_000)
    known = {row[row > 0].tobytes() for row in whole["source"]}
    seen = []
    for step, batch in enumerate(found):
        assert np.array_equal(batch["source"], batches.at(step)["source"].numpy())
        columns = (batch[name] for name in ("source", "input", "target", "weight"))
        for source, begun, target, weight in zip(*columns, strict=True):
            tokens = source[source > 0]
            seen.append(tokens.tobytes())
            # Without padding the target is the source, reversed; it is read one place later, behind the first token.
            assert np.array_equal(target[: len(tokens)], tokens[::-1]) and not target[len(tokens) :].any()
            assert begun[0] == buckets.BEGIN and np.array_equal(begun[1:], target[:-1])
            assert np.array_equal(weight, target > 0)
    assert len(seen) == len({*seen}) and {*seen} <= known and len(known) - len(seen) < sum(size for size, _ in shapes)
    assert max(batch["source"].max() for batch in found) < arrays.VOCABULARY


def test_turns_go_on_where_the_last_one_ended():
    turns = epochs.Turns(3)
    assert [turns.take(2), turns.take(4), turns.take(0), turns.take(1)] == [[0, 1], [2, 0, 1, 2], [], [0]]
