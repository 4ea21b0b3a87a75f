"""Parameter groups: what they parse to, and every error to the letter."""

import pytest

from framework.config import UserError
from framework.optim.groups import Group, assign_groups, parse_groups

EXAMPLE = " Type e.g. '.*/bias: decay=0', '.*/kernel: lr=0.1 decay=2' or 'head/.*: frozen'."


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("dense/.*: frozen", Group("dense/.*", frozen=True)),
        ("dense/.*: lr=0.1", Group("dense/.*", lr=0.1)),
        ("dense/.*:decay=0", Group("dense/.*", decay=0.0)),
        ("  dense/.* :  lr=1e-2   decay=2 ", Group("dense/.*", lr=0.01, decay=2.0)),
        ("(?:a|b)/kernel: decay=3 lr=0", Group("(?:a|b)/kernel", lr=0.0, decay=3.0)),
    ],
)
def test_a_text_is_a_group(text, group):
    assert parse_groups((text, text)) == (group, group)


def test_without_groups_there_is_one_of_everything():
    assert parse_groups(()) == (Group(".*", frozen=False, lr=1.0, decay=1.0),)
    assert assign_groups(parse_groups(()), ["b/kernel", "a"]) == [(Group(".*"), ["b/kernel", "a"])]
    assert assign_groups(parse_groups(()), []) == [(Group(".*"), [])]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dense/kernel", "is not a regex, ':' and settings."),
        ("dense/kernel:", "is not a regex, ':' and settings."),
        (": frozen", "is not a regex, ':' and settings."),
        ("", "is not a regex, ':' and settings."),
        (3, "is not a regex, ':' and settings."),
        ("dense(: lr=1", "has a bad regex (missing ), unterminated subpattern at position 5)."),
        ("a{99999999999}: lr=1", "has a bad regex (the repetition number is too large)."),
        ("a: lrs=1", "has the setting 'lrs', which is not one of lr, decay, frozen. Did you mean 'lr'?"),
        ("a: frosen", "has the setting 'frosen', which is not one of lr, decay, frozen. Did you mean 'frozen'?"),
        ("a: x=1", "has the setting 'x', which is not one of lr, decay, frozen."),
        ("a: lr=-1", "has lr='-1', which is not a finite number of at least 0."),
        ("a: decay=inf", "has decay='inf', which is not a finite number of at least 0."),
        ("a: decay=nan", "has decay='nan', which is not a finite number of at least 0."),
        ("a: lr=fast", "has lr='fast', which is not a finite number of at least 0."),
        ("a: lr", "has lr='', which is not a finite number of at least 0."),
        ("a: lr=1 lr=2", "sets 'lr' twice."),
        ("a: lr=1 frozen", "is frozen and has other settings, which then do nothing."),
        ("a: frozen decay=1", "is frozen and has other settings, which then do nothing."),
        ("a: frozen=1", "has 'frozen=1'; it takes no number."),
    ],
)
def test_what_is_no_group_is_refused(text, problem):
    with pytest.raises(UserError) as error:
        parse_groups(("fine: lr=1", text))
    assert str(error.value) == f"optimizer.groups: '{text}' {problem}{EXAMPLE}"


PATHS = ["embedding", "dense/kernel", "dense/bias", "head/kernel", "head/bias"]


def test_each_path_is_in_the_group_whose_regex_is_all_of_it():
    groups = parse_groups((".*/bias: decay=0", "(dense|head)/kernel: lr=0.1", "embedding: frozen"))
    members = [["dense/bias", "head/bias"], ["dense/kernel", "head/kernel"], ["embedding"]]
    assert assign_groups(groups, PATHS) == list(zip(groups, members, strict=True))


def test_paths_that_no_pattern_covers_are_a_group_without_settings():
    groups = parse_groups((".*/(bias|gamma|beta): decay=0",))
    (own, biases), (rest, others) = assign_groups(groups, PATHS)
    assert (own, biases) == (groups[0], ["dense/bias", "head/bias"])
    assert others == ["embedding", "dense/kernel", "head/kernel"]
    assert (rest.frozen, rest.lr, rest.decay) == (False, 1.0, 1.0)


END = (
    " Each pattern must cover a parameter, and no parameter may be in two groups; those in none have lr=1 and decay=1."
)


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (("tail: lr=1", ".*: lr=1"), "'tail' covers nothing."),
        (("heads/kernel: lr=1", ".*: lr=1"), "'heads/kernel' covers nothing (did you mean 'head/kernel'?)."),
        (
            (".*: lr=1", "head/.*: frozen"),
            "'.*', 'head/.*' all cover 'head/kernel'; '.*', 'head/.*' all cover 'head/bias'.",
        ),
        (
            (".*/bias: lr=1", "head/.*: lr=1", "Dense/kernal: lr=1", "dense/.*: lr=1"),
            "'.*/bias', 'dense/.*' all cover 'dense/bias';"
            " '.*/bias', 'head/.*' all cover 'head/bias';"
            " 'Dense/kernal' covers nothing (did you mean 'dense/kernel'?).",
        ),
    ],
)
def test_every_path_that_is_not_in_one_group_is_named(texts, problem):
    with pytest.raises(UserError) as error:
        assign_groups(parse_groups(texts), PATHS)
    assert str(error.value) == f"optimizer.groups: {problem}{END}"
