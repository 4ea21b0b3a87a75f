"""framework/config/listing.py: --help_config and the docs' table, from the lines of the keys."""

import re
from pathlib import Path

import pytest

import launch
from framework.config import UserError
from framework.config.keys import KEYS, SECTIONS
from framework.config.listing import listing, markdown

SCHEDULE = """\
Keys of ema: the exponential moving average of the weights.
  ema.decay  0.0  decay of the average of weights in each update, e.g. 0.999; 0 = off [0 to
                  0.999999]"""


def entries(text):
    """{key: (default, meaning with legal values)} of a listing, put together from its lines."""
    found = {}
    for line in text.splitlines():
        if start := re.match(r"  (\S+) +(\S+|'[^']*'|\(.*?\))  +(.*)", line):
            key = start[1]
            found[key] = (start[2], start[3])
        elif line.startswith("   "):
            found[key] = (found[key][0], f"{found[key][1]} {line.strip()}")
    return found


def test_a_section():
    assert listing("ema") == SCHEDULE


def test_every_key_is_listed_with_its_line():
    shown = entries(listing())
    assert list(shown) == list(KEYS)
    for name, key in KEYS.items():
        default, text = shown[name]
        is_quoted = str(key.default) == "" or set(str(key.default)) & set(" %")
        assert default == (repr(key.default) if is_quoted else str(key.default))
        meaning, _, values = text.partition(" [")
        assert meaning == key.doc
        assert values.startswith(", ".join(key.choices))
        for decider, legal in key.only_with.items():
            assert f"only with {name.rpartition('.')[0]}.{decider}=" in values and all(one in values for one in legal)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("clip.threshold", "at least 1e-12; only with clip.name=global_norm, value, variable_norm or adaptive"),
        ("data.batch_size", "at least 1"),
        ("data.retries", "0 to 30"),
        ("data.shuffle", "True or False"),
        ("log.every", "a duration"),
        ("eval.every", "a duration or ''"),
        ("schedule.power", "0.001 to 1000; only with schedule.name=polynomial"),
        ("runtime.strategy", "one_device, mirrored, multi_worker, parameter_server, tpu"),
    ],
)
def test_legal_values(key, values):
    assert entries(listing(key))[key][1].endswith(f" [{values}]")


def test_lines_fit_a_terminal():
    assert max(map(len, listing().splitlines())) <= 100


def test_durations_are_explained_where_there_are_some():
    assert listing("train").endswith(
        "\n\nA duration is a number of steps, epochs, examples or %, e.g. '2 epochs'; '' is never."
    )
    assert "A duration is" not in listing("clip")


def test_an_unknown_section():
    with pytest.raises(UserError) as error:
        listing("schedul")
    assert str(error.value) == (
        "--help_config=schedul: there is no section or key 'schedul'. Did you mean 'schedule'? Sections: "
        + ", ".join(section for section in SECTIONS if section)
        + "."
    )


@pytest.mark.parametrize(
    "arguments", [["--help_config=ema"], ["-help_config=ema"], ["--help_config", "ema", "--mode=x"]]
)
def test_from_the_command_line(capsys, arguments):
    assert launch.main(["launch.py", *arguments]) == 0
    assert capsys.readouterr() == (f"{SCHEDULE}\n", "")


def test_all_from_the_command_line(capsys):
    assert launch.main(["launch.py", "--help_config", "--config=missing.py"]) == 0
    assert capsys.readouterr() == (f"{listing()}\n", "")


def test_the_table_of_the_docs():
    rows = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(KEYS)
    assert (
        "| `ema.decay` | `0.0` | 0 to 0.999999 | decay of the average of weights in each update, e.g. 0.999; 0 = off |"
        in rows
    )
    assert all(row.count("|") == 5 for row in rows)


def test_the_page_is_that_of_the_keys():
    page = Path(__file__).resolve().parents[2] / "framework" / "config" / "README.md"
    assert page.read_text() == f"{markdown()}\n", (
        "type: python -m framework.config.listing > framework/config/README.md"
    )
