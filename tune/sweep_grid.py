"""A sweep: rows of settings times seeds, as cells, and which cell works on what next.

Reads sweep files and says which runs they mean; starts nothing.  A cell is named by the keys of
its stages, so equal cells of any two sweeps are one run.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spcl.artefacts import ArtefactStore
from spcl.config import CONFIGS, Config, Model, known, load, operational_keys, parse_overrides
from spcl.data.catalog import open_data, prepare_streets
from spcl.errors import ConfigError, UserError
from spcl.models.segmentor import MODELS
from spcl.protocols import PROTOCOLS
from spcl.results.store import RunFolder
from spcl.settings import build, choose, digest, flatten, read_yaml, unknown_key
from spcl.stages import Stage, plan

SWEEPS = "sweeps"  # folder of the storage, and of configs/
TINY = "tiny"
SCALES = ("full", TINY)
TINY_FRACTION = 20  # a stage of --scale tiny is the first twentieth of its steps
KEY_DIGITS = 12

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
#: What no row may have for itself: these, how rows are scored, and what a cell reserves.
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


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: a configuration with its seed."""

    config: Config
    stages: tuple[Stage, ...]
    runs: Path  # the folder that holds its run's folder
    classes: int

    @property
    def name(self) -> str:
        key = digest([stage.key for stage in self.stages])[:KEY_DIGITS]
        return f"{self.config.benchmark}-{self.config.stages[-1]}-{key}-s{self.config.seed}"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.runs / self.name)

    @property
    def keys(self) -> set[str]:
        return {stage.key for stage in self.stages}

    def score(self, mean: str) -> float:
        """A mean of the finished run's last stage, in percent."""
        (row,) = [r for r in self.run.done["table"] if r["stage"] == self.config.stages[-1]]
        return 100 * row["means"][mean]["value"]


@dataclass(frozen=True, eq=False)
class Sweep:
    """What was asked for.  cells: by row name and seed; equal cells are the same object."""

    name: str
    file: SweepFile
    benchmark: str
    scale: str
    seeds: tuple[int, ...]
    settings: tuple[str, ...]  # of the command line, that can change a result
    data: Path
    storage: Path
    cells: Mapping[tuple[str, int], Cell]

    @property
    def folder(self) -> Path:
        return self.storage / SWEEPS / self.name

    @property
    def distinct(self) -> list[Cell]:
        """Every cell once; a seed's rows together, since they share stages."""
        return list(dict.fromkeys(self.cells[row.name, s] for s in self.seeds for row in self.rows))

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.file.rows


# The file.


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


def _sweep_file(values: Mapping[str, Any], stem: str) -> SweepFile:
    _check_keys(values, FILE_KEYS, "")
    columns = _names(values.get("columns", []), "columns")
    settings = flatten(_of_type(values.get("settings", {}), dict, "settings"))
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
        backbone=choose(values.get("backbone", Model.name), MODELS, "backbone"),
        benchmark=values.get("benchmark"),
        method=values.get("method", "spcl"),
        settings=settings,
        columns=columns,
        reference=choose(values.get("reference", names[0]), names, "reference"),
        rows=tuple(rows),
    )


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
    return Row(
        name=name,
        settings=flatten(_of_type(values.get("settings", {}), dict, f"{name}: settings")),
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


# The cells.


def resolve(
    path: Path,
    benchmark: str | None,
    seeds: Sequence[int],
    scale: str,
    settings: Sequence[str],
    data: Path,
    storage: Path,
    say: Callable[[str], None],
    *,
    name: str | None = None,
    workers: int = 1,
) -> Sweep:
    """The sweep that is asked for, with all data checked.  UserError.

    settings  of the command line: they hold for all rows and must not be what the rows vary
    workers   of each cell
    """
    file = read_sweep(path)
    given = parse_overrides(settings)
    build(Config, given)  # its mistakes are no row's
    varied = dict.fromkeys((key for row in file.rows for key in row.settings), "the sweep's rows")
    for key in (varied | ARGUMENTS).keys() & flatten(given).keys():
        raise ConfigError(f"{key} is set by {(varied | ARGUMENTS)[key]}; leave it out")
    told = sorted(t for t in settings if t.partition("=")[0] not in operational_keys())
    benchmark = benchmark or file.benchmark or "streets"
    plain = path.stem + f"-{benchmark}" + ("" if scale == "full" else f"-{scale}")
    usual = f"{plain}-{digest(told)[:8]}" if told else plain
    runs = storage if scale == "full" else storage / SWEEPS / TINY
    cells, known_cells = {}, {}
    for row in file.rows:
        config = _config(file, row, benchmark, scale, [*settings, f"train.workers={workers}"])
        if not config.evaluation.wanted:
            raise UserError("a sweep compares scores: evaluation.dataset must be a labelled set")
        prepare_streets(config, data, say)
        shards = open_data(config, data)
        fingerprints = {role: split.fingerprint for role, split in shards.items()}
        for seed in seeds:
            seeded = dataclasses.replace(config, seed=seed)
            stages = tuple(plan(seeded, fingerprints))
            cell = Cell(seeded, stages, runs, len(shards["source"].class_names))
            cells[row.name, seed] = known_cells.setdefault(cell.name, cell)
    return Sweep(
        name=name or usual,
        file=file,
        benchmark=benchmark,
        scale=scale,
        seeds=tuple(seeds),
        settings=tuple(told),
        data=data,
        storage=storage,
        cells=cells,
    )


def _config(
    file: SweepFile, row: Row, benchmark: str, scale: str, settings: Sequence[str]
) -> Config:
    try:
        config = load(
            benchmark,
            file.method,
            None,
            [*_overrides(file.settings), *settings, *_overrides(row.settings)],
        )
    except ConfigError as error:
        raise ConfigError(f"row {row.name!r}: {error}") from None
    return config if scale == "full" else shortened(config)


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def shortened(config: Config) -> Config:
    """The beginning of every stage; its schedule is that of the whole."""
    changes = {}
    for name in config.stages:
        section = config.of(name)
        changes[name] = dataclasses.replace(section, steps=max(1, section.steps // TINY_FRACTION))
    return dataclasses.replace(config, **changes)


# What to do next.


@dataclass(frozen=True, eq=False)
class Work:
    """Stages that a cell's run makes.  finish: the whole run, to its table."""

    cell: Cell
    stages: tuple[Stage, ...]
    finish: bool


class Schedule:
    """Which cell makes what, so that no two make the same stage at a time.

    A stage that several unfinished cells need is made first, by the first of them, alone; then the
    cells go on beside each other.
    """

    def __init__(self, cells: Sequence[Cell], stored: Callable[[Stage], bool]):
        self.waiting = [cell for cell in cells if not cell.run.done]
        self.failed: dict[str, str] = {}  # cell -> reason
        self.running: list[Work] = []
        self._stored, self._made = stored, set()

    @classmethod
    def of(cls, sweep: Sweep) -> "Schedule":
        return cls(sweep.distinct, ArtefactStore(sweep.storage).has)

    def next(self) -> Work | None:
        """What can be started now, if anything."""
        busy = {stage.key for work in self.running for stage in work.stages}
        at_work = [work.cell for work in self.running]
        for cell in self.waiting:
            missing = self._missing(cell)
            if cell in at_work or any(stage.key in busy for stage in missing):
                continue
            # What a shared stage is made from is shared by the same cells, and stands before it.
            shared = [stage for stage in missing if len(self._users(stage)) > 1][:1]
            work = Work(cell, tuple(shared or missing), finish=not shared)
            self.running.append(work)
            return work
        return None

    def finished(self, work: Work, error: str | None) -> list[Cell]:
        """Note the end of some work; returns the cells that ended with it."""
        self.running.remove(work)
        if error is None and not work.finish:
            self._made |= {stage.key for stage in work.stages}
            return []
        # Without a shared stage none of its cells can go on.
        ended = [work.cell] if work.finish else self._users(work.stages[0])
        for cell in ended:
            self.waiting.remove(cell)
            if error is not None:
                self.failed[cell.name] = error
        return ended

    def _missing(self, cell: Cell) -> list[Stage]:
        return [s for s in cell.stages if s.key not in self._made and not self._stored(s)]

    def _users(self, stage: Stage) -> list[Cell]:
        return [cell for cell in self.waiting if stage.key in cell.keys]
