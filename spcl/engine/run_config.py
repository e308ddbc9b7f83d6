"""The configuration that a run's folder holds: read, compared, written."""

import dataclasses
from pathlib import Path

from spcl.configuration import chosen_by as choices
from spcl.configuration import elastic
from spcl.configuration.config import Config, differences, from_dict
from spcl.errors import ConfigError
from spcl.settings import dump_yaml, read_yaml
from spcl.store import atomic
from spcl.store.run_folder import RunFolder


def run_config(folder: Path) -> Config:
    """The settings of a run.  ConfigError names a damaged config.yaml and the way out."""
    path = folder / "config.yaml"
    way_out = f"restore it, or remove the run with: python -m spcl.runs rm {folder.name}"
    try:
        values = read_yaml(path)
        if not values:
            raise ConfigError(f"{path} holds no settings")
        return from_dict(values)
    except ConfigError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ConfigError(f"{where}{error}; {way_out}") from None


def find_run(config: Config, storage: Path, name: str) -> RunFolder:
    """The run's folder, which may not exist yet.  ConfigError where it is of another config."""
    run = RunFolder(storage / name)
    path = run.folder / "config.yaml"
    if path.exists():
        old = run_config(run.folder)
        changed = differences(old, config)
        if changed:
            why = _of_workers(old, config) if len(changed) == 1 else ""
            raise ConfigError(
                f"run {name!r} exists with other settings ({'; '.join(changed[:5])}); {why}"
                f"choose another --name, or remove it with: python -m spcl.runs rm {name}"
            )
    return run


def _of_workers(old: Config, new: Config) -> str:
    """Why a run may not go on with another number of workers, if that is all that differs."""
    meant, asked = old.train.workers, new.train.workers
    stages = [stage for stage in new.stages if new.by_rank(stage)]
    if meant == asked or not stages:
        return ""
    return elastic.refusal(stages[0], new.by_rank(stages[0]), meant, asked) + "; or "


def open_run(config: Config, storage: Path, name: str) -> RunFolder:
    """The run's folder, new or to be continued.  ConfigError where it is of another config.

    A search that has chosen the config, now or at an earlier launch, stays named in it.
    """
    run = find_run(config, storage, name)
    config = dataclasses.replace(config, chosen_by=choices.carry(run, config.chosen_by))
    atomic.write_bytes(run.folder / "config.yaml", dump_yaml(config.as_dict()).encode())
    return run
