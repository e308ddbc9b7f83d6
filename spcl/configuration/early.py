"""What a command line asks for, as far as it can be told without torch: in milliseconds.

A typing error in a name, a key or a value is answered here; `spcl.launch` then makes the runs.
"""

import argparse
import re
from collections.abc import Mapping
from typing import Any

from spcl import cli
from spcl.configuration import table
from spcl.configuration.layers import known
from spcl.errors import ConfigError
from spcl.settings import as_dict, flatten

#: Folders of the storage that are no runs.
RESERVED = {
    "artefacts": "the folder where runs share their stages",
    "searches": "the folder of searches",
    "sweeps": "the folder of sweeps",
    "leaderboard": "the folder of the boards",
}


def check_run(arguments: argparse.Namespace) -> None:
    """ConfigError where a command line of `cli.add_run_arguments` can't be meant as it stands."""
    if arguments.name is not None:
        check_name(arguments.name)
    table.check(arguments.benchmark, arguments.method, arguments.config, arguments.settings)
    cli.parse_seeds(arguments.seeds)


def check_name(name: str) -> None:
    """ConfigError unless a run can be a folder of this name in the storage."""
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ConfigError(f"--name must be letters, digits, '.', '_' and '-', got {name!r}")
    if name in RESERVED:
        raise ConfigError(f"--name must not be {name!r}, {RESERVED[name]}")


def list_known() -> str:
    lines = []
    for kind in ("benchmarks", "methods"):
        lines.append(f"{kind}: {', '.join(known(kind))}")
    lines.append(f"methods with compat=official: {', '.join(known('compat'))}")
    lines.append(f"stages: {', '.join(table.read()['stages'])}")
    lines.append(f"models: {', '.join(table.read()['models'])}")
    for licence, models in table.read()["licences"].items():
        lines.append(f"  {', '.join(models)}: {licence}")
    return "\n".join(lines)


def list_settings(arguments: argparse.Namespace) -> str:
    """A line for each setting, those of other recipes' stages left out."""
    asked = table.resolved(
        arguments.benchmark, arguments.method, arguments.config, arguments.settings
    )
    values = flatten(as_dict(asked))
    others = set(table.read()["stages"]) - set(asked.stages)
    lines = []
    for name, row in table.read()["settings"].items():
        if name.partition(".")[0] not in others:
            lines.append(f"{name}: {values[name]}  ({_origin(row, values[name])})")
    return "\n".join(lines)


def _origin(row: Mapping[str, Any], value: Any) -> str:
    """Where a default is from, which it is, if not in force, and whether it was only recalled."""
    known = [row["origin"]]
    if "provenance" in row:
        known.append(f"provenance: {row['provenance']}")
    if value != row["default"]:
        known.append(f"default {row['default']}")
    return "; ".join(known)
