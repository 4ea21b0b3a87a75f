"""A run that is not stopped, and one that goes on from what it saved on the way."""

from framework.checkpoint.checkpoints import Checkpoints


def interrupted(make, folder, first, rest):
    """Returns a run of `first` + `rest` steps, and one that restored what it saved after `first` and has not trained.

    The first run trains on while it saves.
    """
    whole, resumed = make(), make()
    checkpoints = Checkpoints(folder / "checkpoints", 3)
    whole.train_block(first)
    checkpoints.save(whole.state, {})
    whole.train_block(rest)
    checkpoints.close()
    checkpoints.restore(resumed.state)
    return whole, resumed
