"""framework/run/result.py: a damaged result.json is noticed."""

import pytest

from framework.run.result import whole_result


@pytest.mark.parametrize("name", ["status", "step", "updates", "skipped", "empty_terms", "final", "best"])
def test_a_result_that_lacks_what_is_read_of_it_is_damaged(name):
    """A flipped bit in the name of an entry leaves JSON that is whole."""
    whole = {"status": "finished", "step": 8, "updates": 8, "skipped": 0, "empty_terms": 0, "final": {}, "best": {}}
    assert whole_result(whole) == whole
    with pytest.raises(KeyError, match=name):
        whole_result({key: value for key, value in whole.items() if key != name})
