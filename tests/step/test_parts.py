"""framework/step/parts.py and tools.py: a step that hands over something else is told what to write."""

import pytest

from framework import testing
from framework.errors import UserError
from tests import linear


def build(of, is_whole=False):
    """A run whose step names a model in this way; `is_whole` hands on all that tools.gradients returned."""

    def make_step(cfg, tools):
        loss = linear.make_loss(cfg)

        def step(state, batch):
            name = state.model if of is None else of
            result = tools.gradients(lambda part: loss(state.model, part, True), batch, of=name)
            tools.apply(result if is_whole else result.gradients)
            return result.terms, result.metrics

        return step

    names = ("get_config", "make_data", "make_model", "make_loss")
    return testing.build({**{name: getattr(linear, name) for name in names}, "make_step": make_step})


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("modle", "the step names a model 'modle', but those with an optimizer are model. Did you mean 'model'?"),
        (
            None,
            "the step names a model by a value of type Sequential. Write its name, as tools.gradients(…, of='model')"
            " and tools.apply(…, to='model'); models with an optimizer are model.",
        ),
    ],
)
def test_a_model_that_a_step_cannot_name_so_is_one_line(of, message):
    with pytest.raises(UserError) as caught:
        build(of)
    assert str(caught.value) == message


def test_what_tools_gradients_returned_is_no_gradients():
    with pytest.raises(
        UserError, match=r"tools\.apply got a value of type Gradients, .* tools\.apply\(result\.gradients\)"
    ):
        build("model", is_whole=True)
