"""A sweep: rows of settings times seeds, as cells.

Says which runs are meant; starts nothing.  A cell is named by the keys of its stages, so equal
cells of any two sweeps are one run.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spcl.configuration import old_words
from spcl.configuration.chosen_by import ChosenBy
from spcl.configuration.config import Config, load, operational_keys
from spcl.configuration.layers import check_layer, parse_overrides, read_config
from spcl.engine.inputs import (
    check_streets,
    expect_data,
    missing_data,
    open_data,
    prepare_streets,
)
from spcl.engine.planned import Planned, Split, count_classes, refuse
from spcl.engine.stages import Stage, plan
from spcl.errors import ConfigError, UserError
from spcl.settings import digest, flatten
from spcl.store.run_folder import RunFolder
from tune.sweeping.file import (
    ARGUMENTS,
    SWEEPS,
    TINY,
    TINY_FRACTION,
    Row,
    SweepFile,
    overrides,
    read_sweep,
)

KEY_DIGITS = 12


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: a configuration with its seed."""

    config: Config
    stages: tuple[Stage, ...]
    runs: Path  # the folder that holds its run's folder
    classes: int | None  # None: unknown, of data that are not there yet

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
        (row,) = [r for r in self.run.result["table"] if r["stage"] == self.config.stages[-1]]
        return 100 * row["means"][mean]["value"]


@dataclass(frozen=True, eq=False)
class Sweep:
    """What was asked for.

    cells    by row name and seed; equal cells are the same object
    missing  the splits that are not there, in a dry run; of others there are none
    """

    name: str
    file: SweepFile
    benchmark: str
    scale: str
    seeds: tuple[int, ...]
    settings: tuple[str, ...]  # of the command line, that can change a result
    data: Path
    storage: Path
    cells: Mapping[tuple[str, int], Cell]
    missing: tuple[Planned, ...] = ()

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
    dry_run: bool = False,
    base: Path | None = None,
) -> Sweep:
    """The sweep that is asked for, with all data checked.  UserError.

    settings  of the command line: they hold for all rows and must not be what the rows vary
    workers   of each cell
    dry_run   nothing is written, and what data it lacks is no error
    base      a config file that all rows begin from, e.g. a search's best.yaml
    """
    file = read_sweep(path)
    begun = read_config(Config, base) if base else {}
    if begun.get("method", file.method) != file.method:
        raise ConfigError(
            f"{base} is of method {begun['method']}, but the sweep {path.stem} of {file.method}; "
            "a sweep begins from a file of its own method"
        )
    given = parse_overrides(settings)
    check_layer(Config, given)  # the command line first, so that no row is blamed for it
    of_rows = (old_words.today(key) for row in file.rows for key in row.settings)
    taken = dict.fromkeys(of_rows, "the sweep's rows") | ARGUMENTS
    for key in flatten(given):
        if old_words.today(key) in taken:
            raise ConfigError(f"{key} is set by {taken[old_words.today(key)]}; leave it out")
    silent = operational_keys() - {"compat"}  # which sets switches
    told = sorted(t for t in settings if t.partition("=")[0] not in silent)
    asked = ARGUMENTS.keys() | flatten(given).keys() | silent
    kept = {key: value for key, value in flatten(begun).items() if key not in asked}
    told = sorted(overrides(kept)) + told
    benchmark = benchmark or file.benchmark or begun.get("benchmark") or "streets"
    plain = path.stem + f"-{benchmark}" + ("" if scale == "full" else f"-{scale}")
    usual = f"{plain}-{digest(told)[:8]}" if told else plain
    runs = storage if scale == "full" else storage / SWEEPS / TINY
    made: dict[tuple[str, int], Cell] = {}
    configs: dict[str, Config] = {}
    missing: dict[str, Planned] = {}
    for row in file.rows:
        given_here = [*settings, f"train.workers={workers}"]
        config = _config(file, row, benchmark, scale, given_here, base)
        if not config.evaluation.wanted:
            raise UserError("a sweep compares scores: evaluation.dataset must be a labelled set")
        configs[row.name] = config
        missing |= {split.name: split for split in missing_data(config, data)}
    if not dry_run:
        refuse([split for split in missing.values() if not split.rendered], data)
    for row in file.rows:
        config = configs[row.name]
        if dry_run:
            check_streets(config, data)
            shards: Mapping[str, Split] = expect_data(config, data)
        else:
            prepare_streets(config, data, say)
            shards = open_data(config, data)
        fingerprints = {role: split.fingerprint for role, split in shards.items()}
        for seed in seeds:
            seeded = dataclasses.replace(config, seed=seed)
            stages = tuple(plan(seeded, fingerprints))
            classes = count_classes(shards.values())
            made[row.name, seed] = Cell(seeded, stages, runs, classes)
    cells = _united(made)
    if len(file.rows) > 1 and len({cells[row.name, seeds[0]].name for row in file.rows}) == 1:
        raise ConfigError(
            f"all rows of {path.stem} are one run with {', '.join(told) or 'these settings'}, so "
            f"there is nothing to compare; leave out what sets the same as the rows"
        )
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
        missing=tuple(missing.values()) if dry_run else (),
    )


def _united(made: Mapping[tuple[str, int], Cell]) -> dict[tuple[str, int], Cell]:
    """Equal cells as one object, which says who has chosen the settings of any of them."""
    chosen: dict[str, ChosenBy] = {}
    for cell in made.values():
        chosen[cell.name] = chosen.get(cell.name, ChosenBy()) | cell.config.chosen_by
    one: dict[str, Cell] = {}
    for cell in made.values():
        config = dataclasses.replace(cell.config, chosen_by=chosen[cell.name])
        one.setdefault(cell.name, dataclasses.replace(cell, config=config))
    return {place: one[cell.name] for place, cell in made.items()}


def _config(
    file: SweepFile,
    row: Row,
    benchmark: str,
    scale: str,
    settings: Sequence[str],
    base: Path | None,
) -> Config:
    try:
        config = load(
            benchmark,
            file.method,
            base,
            [*overrides(file.settings), *settings, *overrides(row.settings)],
        )
    except ConfigError as error:
        raise ConfigError(f"row {row.name!r}: {error}") from None
    chosen_by = config.chosen_by | file.chosen_by | row.chosen_by
    config = dataclasses.replace(config, chosen_by=chosen_by)
    return config if scale == "full" else shortened(config)


def shortened(config: Config) -> Config:
    """The beginning of every stage; its schedule is that of the whole."""
    changes = {}
    for name in config.stages:
        section = config.of(name)
        changes[name] = dataclasses.replace(section, steps=max(1, section.steps // TINY_FRACTION))
    return config.with_sections(changes)
