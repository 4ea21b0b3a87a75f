"""Which variable takes which: names, rules, and every message."""

import numpy as np
import pytest
import tensorflow as tf

from framework.checkpoint import warm_start
from framework.config import UserError

EXAMPLE = r"""Type e.g. --config.init_map="(r'encoder/(.*) -> backbone/\1', 'head/.* -> ')"."""
SOURCE = {
    "encoder/a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "encoder/a/bias": np.full(3, 0.1, np.float32),
    "head/kernel": np.ones((3, 4), np.float32),
    "count": np.int64(7),
}


def model(**shapes):
    """{path: variable of -1} of {path: shape}; `__` stands for a slash."""
    return {
        path.replace("__", "/"): tf.Variable(tf.fill(shape, -1.0) if path != "count" else tf.constant(0, tf.int64))
        for path, shape in shapes.items()
    }


def matched(target, *rules):
    return warm_start.match(SOURCE, target, warm_start.parse_map(rules), "runs/a")


def refusal(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


def test_without_rules_the_same_names_match():
    found = matched(model(encoder__a__kernel=[2, 3], other=[5], count=[]))
    assert found.sources == {"encoder/a/kernel": "encoder/a/kernel", "count": "count"}
    assert found.left == ("encoder/a/bias", "head/kernel")
    assert found.initial == ("other",)


def test_rules_rewrite_whole_paths_and_the_first_counts():
    target = model(backbone__a__kernel=[2, 3], backbone__a__bias=[3], encoder__a__bias=[3], head__kernel=[3, 4])
    found = matched(target, r"encoder/(.*)/kernel -> backbone/\1/kernel", r"(encoder)/(.*) -> \1/\2", "head/.* ->")
    assert found.sources == {"backbone/a/kernel": "encoder/a/kernel", "encoder/a/bias": "encoder/a/bias"}
    assert found.left == ("head/kernel", "count")
    assert found.initial == ("backbone/a/bias", "head/kernel")


def test_a_part_of_a_path_is_no_match():
    assert refusal(matched, model(count=[]), "encoder -> backbone") == (
        "init_map: 'encoder -> backbone' matches no variable of runs/a. Did you mean 'encoder/a/bias'?"
        " Variables: encoder/a/kernel, encoder/a/bias, head/kernel, count."
    )


def test_values_arrive_bit_for_bit_and_the_rest_stays():
    target = model(backbone__a__kernel=[2, 3], other=[5], count=[])
    warm_start.assign(matched(target, r"encoder/(.*) -> backbone/\1"), SOURCE, target)
    assert target["backbone/a/kernel"].numpy().tobytes() == SOURCE["encoder/a/kernel"].tobytes()
    assert target["count"].numpy() == 7
    assert target["other"].numpy().tolist() == [-1] * 5


def test_another_floating_type_is_rounded_and_another_kind_of_number_refused():
    target = {"encoder/a/bias": tf.Variable(tf.zeros([3], tf.float64))}
    warm_start.assign(matched(target), SOURCE, target)
    assert target["encoder/a/bias"].numpy().tolist() == [float(np.float32(0.1))] * 3
    assert refusal(matched, {"count": tf.Variable(0.0)}) == (
        "init_from=runs/a has variables of another shape: count: int64[] there, float32[] here. To leave them at their"
        " initial values type --config.init_map=\"('count -> ',)\"."
    )


def test_another_shape_lists_both_sides_and_what_to_type_works():
    target = model(backbone__a__kernel=[2, 3], head__kernel=[3, 5])
    rules = (r"encoder/(.*) -> backbone/\1",)
    assert refusal(matched, target, *rules) == (
        "init_from=runs/a has variables of another shape: head/kernel: float32[3, 4] there, float32[3, 5] here."
        " To leave them at their initial values type"
        r""" --config.init_map="('head/kernel -> ', r'encoder/(.*) -> backbone/\1',)"."""
    )
    found = matched(target, "head/kernel -> ", *rules)
    assert (list(found.sources), found.initial) == (["backbone/a/kernel"], ("head/kernel",))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("encoder", "is not a regex, '->' and a replacement."),
        (" -> x", "is not a regex, '->' and a replacement."),
        ("", "is not a regex, '->' and a replacement."),
        ("a( -> x", "is not a rule (missing ), unterminated subpattern at position 1)."),
        (r"a -> \1", "is not a rule (invalid group reference 1 at position 1)."),
        (r"a -> \g<x>", "is not a rule (unknown group name 'x')."),
    ],
)
def test_what_is_no_rule(text, problem):
    assert refusal(warm_start.parse_map, [text]) == f"init_map: '{text}' {problem} {EXAMPLE}"


def test_rules_that_do_nothing_or_too_much():
    variables = "Variables: encoder/a/kernel, encoder/a/bias, head/kernel, count."
    target = model(head__kernel=[3, 4])
    assert refusal(matched, target, "haed/kernel -> x") == (
        f"init_map: 'haed/kernel -> x' matches no variable of runs/a. Did you mean 'head/kernel'? {variables}"
    )
    assert refusal(matched, target, "head/.* -> head/kernel", "head/kernel -> ") == (
        f"init_map: 'head/kernel -> ' matches only variables that earlier entries match, in runs/a. {variables}"
    )
    assert refusal(matched, target, "encoder/a/.* -> head/kernel") == (
        "init_map: 'encoder/a/kernel' and 'encoder/a/bias' of runs/a both become 'head/kernel'. Drop one of them."
    )


def test_a_rule_that_leads_nowhere():
    target = model(backbone__a__kernel=[2, 3], count=[])
    assert refusal(matched, target, r"encoder/(.*) -> backbnoe/\1") == (
        r"init_map: 'encoder/(.*) -> backbnoe/\1' renames 'encoder/a/kernel' to 'backbnoe/a/kernel', which the model"
        r" does not have. Did you mean 'backbone/a/kernel'? To leave it out type 'encoder/(.*) -> '."
        " Variables of the model: backbone/a/kernel, count."
    )
    assert matched(target, r"encoder/(.*) -> backbone/\1").left == ("encoder/a/bias", "head/kernel")  # a part arrives


def test_nothing_in_common():
    assert refusal(matched, model(x=[1], y=[2])) == (
        "init_from=runs/a and the model have no variable name in common. In init_from: encoder/a/kernel,"
        f" encoder/a/bias, head/kernel, count; in the model: x, y. {EXAMPLE}"
    )


def test_weights_of_a_checkpoint():
    one, two = np.float32(1), np.float32(2)
    arrays = {"step": np.int64(3), "model/a": one, "model/n": np.int64(5), "optimizer/a": two}
    assert warm_start.weights_of(arrays, "model", "x") == {"a": one, "n": 5}
    assert warm_start.weights_of({**arrays, "ema/averages/a": two}, "ema", "x") == {"a": two, "n": 5}
    assert refusal(warm_start.weights_of, arrays, "ema", "runs/a") == (
        "init_weights='ema', but runs/a has no averaged weights. Use --config.init_weights=model."
    )


def test_a_layer_with_an_own_name_is_not_one_that_keras_numbered():
    target = model(encoder__a__kernel=[2, 3], encoder__a__bias=[3], head__kernel=[3, 4])
    for ambiguous in (warm_start.Ambiguous(["encoder/a"], []), warm_start.Ambiguous([], ["encoder/a"])):
        line = refusal(warm_start.match, SOURCE, target, (), "runs/a", ambiguous)
        assert line == (
            "init_from=runs/a: the layers encoder/a were named by hand on one side and by Keras on the"
            r""" other. If they are the same layers, type --config.init_map="(r'encoder/a/(.*) -> encoder/a/\1',)","""
            """ and if they are not, --config.init_map="('encoder/a/.* -> ',)"."""
        )
        same = warm_start.parse_map([r"encoder/a/(.*) -> encoder/a/\1"])
        assert len(warm_start.match(SOURCE, target, same, "runs/a", ambiguous).sources) == 3
        other = warm_start.parse_map(["encoder/a/.* -> "])
        assert set(warm_start.match(SOURCE, target, other, "runs/a", ambiguous).sources) == {"head/kernel"}
    both = warm_start.match(SOURCE, target, (), "runs/a", warm_start.Ambiguous(["encoder/a"], ["encoder/a"]))
    assert len(both.sources) == 3
