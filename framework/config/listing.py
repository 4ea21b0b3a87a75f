"""Lists of the keys, printed from their lines: for a terminal, and as Markdown for the docs.

print(listing())                # --help_config: every key with default, meaning and legal values
print(listing("schedule"))      # --help_config=schedule: one section; a key lists itself alone
print(markdown())               # the page framework/config/README.md

`python -m framework.config.listing > framework/config/README.md` writes that page again.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from framework.config.base import typed
from framework.config.key import LARGEST, Key
from framework.config.keys import KEYS, SECTIONS, dotted
from framework.errors import UserError, near

_COLUMNS = 100
_DURATION = "A duration is a number of steps, epochs, examples or %, e.g. '2 epochs'; '' is never."

_PAGE = f"""# All config keys

Type `--config.KEY=VALUE`, or set `cfg.KEY` in `get_config`. `python launch.py --help_config=SECTION` prints the same.
{_DURATION}
`python -m framework.config.listing` prints this page from `framework/config/keys/`."""


def listing(name: str = "") -> str:
    """Returns the keys for a terminal of 100 columns.

    Args:
      name: a section or a key; '' for all sections.

    Raises:
      UserError: there is no such section or key.
    """
    chosen = list(_chosen(name))
    blocks = ["\n".join([title, *_rows(keys)]) for title, keys in chosen]
    if any(key.duration for _, keys in chosen for key in keys.values()):
        blocks.append(_DURATION)
    return "\n\n".join(blocks)


def markdown() -> str:
    """Returns the page of all keys: for each section a table of key, default, legal values, meaning."""
    parts = [_PAGE]
    for section, module in SECTIONS.items():
        rows = [
            f"| `{dotted(section, name)}` | `{_default(key)}` | {legal(section, key)} | {key.doc} |"
            for name, key in module.KEYS.items()
        ]
        head = ["| key | default | legal values | meaning |", "|---|---|---|---|"]
        parts += [f"## {section or 'Outside of the sections'}", _title(section)]
        parts += ["\n".join([*head, *rows])] if rows else []
    return "\n\n".join(parts)


def legal(section: str, key: Key) -> str:
    """Returns the legal values of a key in words, '0 to 1; only with optimizer.name=sgd'; '' if its type says all."""
    conditions = [f"only with {dotted(section, name)}={_either(values)}" for name, values in key.only_with.items()]
    return "; ".join(filter(None, [_values(key), *conditions]))


def _values(key: Key) -> str:
    if key.choices:
        return ", ".join(key.choices)
    if key.duration:
        return "a duration" if key.required else "a duration or ''"
    if type(key.default) in (int, float):
        # The largest integers are bounds of their types, which nobody meets.
        is_open = key.high is None or key.high >= LARGEST
        return f"at least {_number(key.low)}" if is_open else f"{_number(key.low)} to {_number(key.high)}"
    return {bool: "True or False", tuple: "a tuple", str: ""}[type(key.default)]


def _default(key: Key) -> str:
    return typed(key.default) if isinstance(key.default, str) else repr(key.default)


def _number(bound: float | None) -> str:
    return f"{bound}" if isinstance(bound, int) else f"{bound:g}"


def _either(values: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))


def _chosen(name: str) -> Iterator[tuple[str, Mapping[str, Key]]]:
    """Title and {dotted key: line} of each section that is listed."""
    if name in KEYS:
        yield _title(name.rpartition(".")[0]), {name: KEYS[name]}
        return
    if name not in SECTIONS:
        known = [section for section in SECTIONS if section]
        raise UserError(
            f"--help_config={name}: there is no section or key '{name}'.{near(name, [*known, *KEYS])}"
            f" Sections: {', '.join(known)}."
        )
    for section, module in SECTIONS.items():
        if name in ("", section):
            yield _title(section), {dotted(section, key): line for key, line in module.KEYS.items()}


def _title(section: str) -> str:
    """The first line of the section's file: 'Keys of `train`: how long …'."""
    return str(SECTIONS[section].__doc__).splitlines()[0].replace("`", "")


def _rows(keys: Mapping[str, Key]) -> Iterator[str]:
    """Lines of one section: key, default, and right of them the meaning with the legal values in brackets."""
    wide = max(map(len, keys), default=0)
    deep = max((len(_default(key)) for key in keys.values()), default=0)
    for name, key in keys.items():
        values = legal(name.rpartition(".")[0], key)
        text = key.doc + (f" [{values}]" if values else "")
        first, *rest = textwrap.wrap(text, _COLUMNS - wide - deep - 6, break_on_hyphens=False)
        yield f"  {name:<{wide}}  {_default(key):<{deep}}  {first}"
        yield from (" " * (wide + deep + 6) + line for line in rest)


if __name__ == "__main__":
    print(markdown())
