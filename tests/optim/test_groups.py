"""Parameter groups: what they parse to, and every error to the letter."""

import pytest

from framework.config import UserError, base_config
from framework.optim.groups import Group, assign_groups, parse_groups, settings_of

EXAMPLE = " Type e.g. '.*/bias: decay=0', '.*/kernel: lr=0.1 decay=2', 'head/.*: name=adamw' or 'head/.*: frozen'."
SETTINGS = "lr, decay, until, frozen, name, momentum, nesterov, beta_1, beta_2, epsilon, newton_schulz_steps"
SETTINGS += ", newton_schulz_dtype, rescale_weights"


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("dense/.*: frozen", Group("dense/.*", frozen=True)),
        ("dense/.*: lr=0.1", Group("dense/.*", lr=0.1)),
        ("dense/.*:decay=0", Group("dense/.*", decay=0.0)),
        ("  dense/.* :  lr=1e-2   decay=2 ", Group("dense/.*", lr=0.01, decay=2.0)),
        ("(?:a|b)/kernel: decay=3 lr=0", Group("(?:a|b)/kernel", lr=0.0, decay=3.0)),
        ("whiten/bias: until=3epochs lr=2", Group("whiten/bias", lr=2.0, until="3epochs")),
        ("whiten/bias: until=12.5%", Group("whiten/bias", until="12.5%")),
        (
            "head/.*: name=sgd momentum=0.85 nesterov=True",
            Group("head/.*", keys={"name": "sgd", "momentum": 0.85, "nesterov": True}),
        ),
        ("a: newton_schulz_steps=3", Group("a", keys={"newton_schulz_steps": 3})),
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
        ("a: lrs=1", "has the setting 'lrs', which is not one of " + SETTINGS + ". Did you mean 'lr'?"),
        ("a: frosen", "has the setting 'frosen', which is not one of " + SETTINGS + ". Did you mean 'frozen'?"),
        ("a: x=1", "has the setting 'x', which is not one of " + SETTINGS + "."),
        ("a: weight_decay=1", "has the setting 'weight_decay', which is not one of " + SETTINGS + "."),
        ("a: until=3", "has until='3', which is not a duration such as 3epochs or 40%."),
        ("a: until=3 epochs", "has until='3', which is not a duration such as 3epochs or 40%."),
        (
            "a: name=adamax",
            "has name='adamax'; legal: sgd, adagrad, adam, adamw, lazy_adam, lamb, lion, muon.",
        ),
        ("a: momentum=2", "has momentum='2'; legal: 0 to 1; only with optimizer.name=sgd or muon."),
        ("a: momentum=nan", "has momentum='nan'; legal: 0 to 1; only with optimizer.name=sgd or muon."),
        ("a: nesterov=yes", "has nesterov='yes'; legal: True or False; only with optimizer.name=sgd or muon."),
        (
            "a: epsilon=inf",
            "has epsilon='inf'; legal: at least 1e-30; only with optimizer.name=adam, adamw, lazy_adam, lamb or"
            " adagrad.",
        ),
        ("a: newton_schulz_steps=2.5", "has newton_schulz_steps='2.5'; legal: 1 to 20; only with optimizer.name=muon."),
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


def test_a_group_has_the_keys_of_the_run_but_for_its_own():
    """Of another rule it has no keys of the rule of the run; its factor of the weight decay counts in any case."""
    section = base_config().optimizer.to_dict()
    section |= {"name": "muon", "momentum": 0.6, "nesterov": True, "newton_schulz_steps": 3, "weight_decay": 0.1}
    (own, other, plain) = parse_groups(("a: momentum=0.85 decay=2", "b: name=adamw beta_1=0.8", "c: name=sgd"))
    assert settings_of(section, own) == {**section, "momentum": 0.85, "weight_decay": 0.2}
    wanted = {**base_config().optimizer.to_dict(), "name": "adamw", "beta_1": 0.8, "weight_decay": 0.1}
    assert settings_of(section, other) == wanted
    assert settings_of(section, plain) == {**section, "name": "sgd", "newton_schulz_steps": 5}
    assert settings_of(section, Group(".*")) == section
