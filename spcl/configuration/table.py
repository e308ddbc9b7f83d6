"""The table of what can be asked for: every setting, and the names of stages and networks.

The classes that say it import torch, which takes seconds.  From the table a command answers a
typing error at once, with the code and in the words that the classes are checked with.  After a
change of a setting, of METHODS or of MODELS this writes table.json anew, a line per setting:

    python -m spcl.configuration.table
"""

import dataclasses
import json
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from spcl import cli
from spcl.configuration.layers import layered
from spcl.settings import build, choose, members, setting
from spcl.store import atomic

TABLE = Path(__file__).with_suffix(".json")
# See `spcl.settings.setting`.
FACTS = ("origin", "low", "high", "below", "choices", "operational", "provenance")


def rows(settings: type, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Dotted key -> type, default and FACTS of the fields of a dataclass and its sections.

    Types are written as in Python: "tuple[float, float]", "int | None".
    """
    found: dict[str, dict[str, Any]] = {}
    for name, kind, field, _ in members(settings):
        key = prefix + name
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found |= rows(kind, key + ".")
            continue
        plain = isinstance(kind, type) and not typing.get_args(kind)
        written = kind.__name__ if plain else str(kind)  # "int", "int | None"
        facts = {fact: field.metadata.get(fact) for fact in FACTS}
        said = {fact: value for fact, value in facts.items() if value is not None}
        if not said.get("operational"):
            said.pop("operational", None)
        found[key] = {"type": written, "default": field.default} | said
    return found


def classes(table: Mapping[str, Mapping[str, Any]]) -> type:
    """The inverse of `rows`: a dataclass that `spcl.settings.build` checks values with."""
    fields: list[tuple[str, Any, Any]] = []
    sections: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, row in table.items():
        name, dot, rest = key.partition(".")
        if dot:
            sections.setdefault(name, {})[rest] = row
            continue
        facts = {fact: _frozen(value) for fact, value in row.items() if fact in FACTS}
        fields.append((name, row["type"], setting(_frozen(row["default"]), **facts)))
    for name, inside in sections.items():
        section = classes(inside)
        fields.append((name, section, dataclasses.field(default_factory=section)))
    return dataclasses.make_dataclass("Settings", fields, frozen=True, kw_only=True)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@cache
def read() -> dict[str, Any]:
    """stages, models: names; licences: models by what must be known; settings: rows by key."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


@cache
def settings() -> type:
    """The dataclass of all settings."""
    return classes(read()["settings"])


def check(
    benchmark: str | None, method: str | None, file: Path | None, overrides: Iterable[str]
) -> None:
    """ConfigError where `config.load` would not know a name, a key or a value."""
    resolved(benchmark, method, file, overrides)


def resolved(
    benchmark: str | None, method: str | None, file: Path | None, overrides: Iterable[str]
) -> Any:
    """The settings that `config.load` would give, as a dataclass of `settings`.  ConfigError."""
    asked = build(settings(), layered(settings(), benchmark, method, file, overrides))
    for stage in asked.stages:
        choose(stage, read()["stages"], "stage")
    return asked


def text() -> str:
    """What the file should hold, from the classes."""
    from spcl.configuration.config import Config
    from spcl.methods import METHODS
    from spcl.models.segmentor import MODELS

    licences: dict[str, list[str]] = {}
    for name, spec in MODELS.items():
        if spec.licence:
            licences.setdefault(spec.licence, []).append(name)
    names = {"stages": list(METHODS), "models": list(MODELS), "licences": licences}
    lines = [f'"{name}": {json.dumps(found)},' for name, found in names.items()]
    known = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows(Config).items())
    return "\n".join(["{", *lines, '"settings": {', known, "}}", ""])


def main(argv: Sequence[str] | None = None) -> int:
    cli.Parser(prog="python -m spcl.configuration.table", description=__doc__).parse_args(argv)
    atomic.write_bytes(TABLE, text().encode())
    print(f"{TABLE}: {len(json.loads(text())['settings'])} settings")
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
