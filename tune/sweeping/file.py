"""Sweep files: rows of settings, their marks and published values, read strictly."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spcl.configuration import table
from spcl.configuration.chosen_by import SECTION, ChosenBy, of_values
from spcl.configuration.layers import CONFIGS, check_layer, known, parse_overrides
from spcl.errors import ConfigError
from spcl.scoring.protocols import PROTOCOLS
from spcl.settings import choose, flatten, read_yaml, unknown_key

SWEEPS = "sweeps"  # folder of configs/, and of the storage
TINY = "tiny"
SCALES = ("full", TINY)
TINY_FRACTION = 20  # a stage of --scale tiny is the first twentieth of its steps

FILE_KEYS = (
    "title", "source", "backbone", "benchmark", "method", "settings", "columns", "reference",
    "rows", "grid",
)  # fmt: skip
ROW_KEYS = ("name", "marks", "settings", "published", "inferred")
#: Settings of the whole sweep, or its seeds, and what says them.
ARGUMENTS = {
    "seed": "--seeds",
    "benchmark": "--benchmark",
    "method": "the sweep file's method",
    "train.workers": "--workers-per-cell",
}
#: Settings that must be equal in all rows: these, how rows are scored, what a cell reserves.
COMMON = {*ARGUMENTS, "evaluation.protocol", "train.device", "train.threads"}
#: Names that a published value may have.
MEANS = {mean for protocol in PROTOCOLS.values() for mean in protocol.means}


@dataclass(frozen=True)
class Row:
    """One row of the table.  published: benchmark -> name of a mean -> percent."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    inferred: bool = False
    chosen_by: ChosenBy = ChosenBy()  # who has chosen its settings, as a search's file says


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says.

    source, backbone  of the published values
    columns           names that a row's marks are of
    """

    title: str
    source: str
    backbone: str
    benchmark: str | None
    method: str
    settings: Mapping[str, Any]
    columns: tuple[str, ...]
    reference: str
    rows: tuple[Row, ...]
    chosen_by: ChosenBy = ChosenBy()


def find_file(name: str) -> Path:
    """A sweep file, given as such or by name."""
    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix or len(Path(name).parts) > 1:
        raise ConfigError(f"there is no sweep file {name}; shipped: {', '.join(known(SWEEPS))}")
    return CONFIGS / SWEEPS / f"{choose(name, known(SWEEPS), 'sweep')}.yaml"


def read_sweep(path: Path) -> SweepFile:
    """ConfigError names the file and what is wrong with it."""
    values = read_yaml(path)
    try:
        return _sweep_file(values, path.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def check(
    file: SweepFile, benchmark: str | None, base: Path | None, settings: Sequence[str]
) -> None:
    """ConfigError where a key or value of the rows or of the command line is unknown."""
    check_layer(table.settings(), parse_overrides(settings))  # its mistakes are no row's
    for row in file.rows:
        given = [*overrides(file.settings), *settings, *overrides(row.settings)]
        try:
            table.check(benchmark or file.benchmark, file.method, base, given)
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from None


def overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _sweep_file(values: Mapping[str, Any], stem: str) -> SweepFile:
    _check_keys(values, FILE_KEYS, "")
    columns = _names(values.get("columns", []), "columns")
    models, backbone = table.read()["models"], table.read()["settings"]["model.name"]["default"]
    settings, chosen_by = _settings(values, "settings")
    for key in ARGUMENTS.keys() & settings.keys():
        raise ConfigError(f"settings must not have {key}, which is set by {ARGUMENTS[key]}")
    given = _of_type(values.get("rows", []), list, "rows")
    rows = [_row(_of_type(row, dict, "a row"), columns) for row in given]
    rows = _crossed(rows, _of_type(values.get("grid", {}), dict, "grid"))
    if not rows:
        raise ConfigError("a sweep needs rows (name and settings) or a grid (setting: values)")
    for row in rows:
        for key in COMMON & row.settings.keys():
            raise ConfigError(f"row {row.name!r} must not set {key}, which the whole sweep has")
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"rows must have names of their own, but {twice[0]!r} stands twice")
    return SweepFile(
        title=str(values.get("title", stem)),
        source=str(values.get("source", "")),
        backbone=choose(values.get("backbone", backbone), models, "backbone"),
        benchmark=values.get("benchmark"),
        method=values.get("method", "spcl"),
        settings=settings,
        columns=columns,
        reference=choose(values.get("reference", names[0]), names, "reference"),
        rows=tuple(rows),
        chosen_by=chosen_by,
    )


def _settings(values: Mapping[str, Any], what: str) -> tuple[dict[str, Any], ChosenBy]:
    """Settings by dotted name, and who has chosen them: a search's best.yaml may be pasted here."""
    given = _of_type(values.get("settings", {}), dict, what)
    return flatten({k: v for k, v in given.items() if k != SECTION}), of_values(given)


def _row(values: Mapping[str, Any], columns: Sequence[str]) -> Row:
    _check_keys(values, ROW_KEYS, "rows.")
    if not isinstance(values.get("name"), str):
        raise ConfigError(f"every row must have a name, got {dict(values)}")
    name = values["name"]
    marks = _names(values.get("marks", []), f"{name}: marks")
    published = _of_type(values.get("published", {}), dict, f"{name}: published")
    for benchmark, means in published.items():
        choose(benchmark, known("benchmarks"), f"{name}: published for benchmark")
        for mean, value in _of_type(means, dict, f"{name}: published.{benchmark}").items():
            choose(mean, MEANS, f"{name}: published mean")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"{name}: published {mean} must be a number, got {value!r}")
    settings, chosen_by = _settings(values, f"{name}: settings")
    return Row(
        name=name,
        settings=settings,
        chosen_by=chosen_by,
        marks=tuple(choose(mark, columns, f"{name}: mark") for mark in marks),
        published=published,
        inferred=_of_type(values.get("inferred", False), bool, f"{name}: inferred"),
    )


def _crossed(rows: Sequence[Row], grid: Mapping[str, Any]) -> list[Row]:
    """Every row with every point of the grid; the last setting varies fastest."""
    grid = flatten(grid)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"grid.{key} must be a list of values, got {values!r}")
    if not grid:
        return list(rows)
    crossed = []
    for row in rows or [Row("")]:
        for point in itertools.product(*grid.values()):
            chosen = dict(zip(grid, point, strict=True))
            text = ", ".join(f"{key}={json.dumps(value)}" for key, value in chosen.items())
            name = ", ".join(filter(None, (row.name, text)))
            # A published number is of the row, not of its points.
            settings = {**row.settings, **chosen}
            crossed.append(dataclasses.replace(row, name=name, settings=settings, published={}))
    return crossed


def _check_keys(values: Mapping[str, Any], names: Sequence[str], prefix: str) -> None:
    for key in values:
        if key not in names:
            raise unknown_key(prefix + str(key), [prefix + name for name in names])


def _of_type(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{what} must be a {kind.__name__}, got {value!r}")
    return value


def _names(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{what} must be a list of names, got {value!r}")
    return tuple(value)
