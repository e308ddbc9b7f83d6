"""Read an experiment folder: what was asked, what its jobs have found, which one is chosen.

Opens no data and writes nothing.  Scores are computed here from the recorded validators, by the
objective's one formula.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spcl.configuration import old_words
from spcl.configuration.chosen_by import ChosenBy
from spcl.data.sampling import hash_chosen
from spcl.errors import ConfigError, DataError
from spcl.settings import merge, read_yaml
from spcl.store import records

if TYPE_CHECKING:
    from spcl.configuration.config import Config

SEARCHES = "searches"  # folder of experiments in the storage
SAMPLERS = ("tpe", "random", "qmc")  # what proposes configurations, see `tune.searching.study`
WAY_OUT = "remove it and search again"
REFERENCE = -1  # the configuration and rung of the reference network's record
ORACLE = "target_oracle"  # the objective that reads target labels


def halves(sample_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the evaluation images to choose on, and of those to report on, by hash."""
    chosen = hash_chosen(sample_ids, len(sample_ids) // 2, ORACLE)
    return chosen, np.setdiff1d(np.arange(len(sample_ids)), chosen)


def score_of(record: dict[str, Any], reference: dict[str, Any], name: str) -> float | None:
    """The score by an objective of a job that is done; None: a constraint is violated.

    A network is measured against the one that all configurations start from or, where that is a
    source-only stage of its own, against the latter after as many steps.
    """
    from spcl.inference.validation import objective  # imports torch

    own, rung = "rungs" in reference, record["rung"]
    against = reference["rungs"][rung] if own and rung != REFERENCE else reference["validators"]
    return objective(record["validators"], against, name, relative_classes=own)


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}"""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        values = merge(values, value)
    return values


class Experiment:
    """An experiment folder as it is now.  DataError where a file can't be read as what it is."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.name = self.folder.name
        path = self.folder / "search.yaml"
        if not path.is_file():
            raise DataError(
                f"an experiment is a folder that tune/search.py has made, but {folder} has no "
                f"search.yaml; give one of <storage>/searches/"
            )
        self.request = read_request(path)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Every finished or failed job, by configuration and rung."""
        found = [read_job(path) for path in (self.folder / "jobs").glob("[0-9]*-[0-9]*.json")]
        return sorted(found, key=lambda r: (r["configuration"], r["rung"]))

    @cached_property
    def reference(self) -> dict[str, Any] | None:
        """The reference network's record; None as long as there is none, or it has failed."""
        path = self.folder / "jobs" / "reference.json"
        record = read_job(path) if path.exists() else None
        return record if record and record["status"] == "done" else None

    @property
    def done(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["status"] == "done"]

    @property
    def rung_names(self) -> list[str]:
        return [rung["name"] for rung in self.request["rungs"]]

    def score(self, record: dict[str, Any], name: str | None = None) -> float | None:
        """A job's score by the search's objective, or another; None: a constraint is violated."""
        if record["status"] != "done" or self.reference is None:
            return None
        return score_of(record, self.reference, name or self.request["objective"])

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The record with the best score of the highest rung that holds a score."""
        scored = [r for r in self.done if self.score(r) is not None]
        if not scored:
            return None
        top = max(record["rung"] for record in scored)
        # Of equal scores the first configuration's, so that the choice is one.
        return max((r for r in scored if r["rung"] == top), key=lambda r: self.score(r) or 0.0)

    @property
    def agreement(self) -> int | None:
        """The configuration that agrees most with the best ones' ensemble; None if unknown."""
        path = self.folder / "agreement.json"
        return read(path)["configuration"] if path.exists() else None

    @property
    def default(self) -> int:
        """Number of the default configuration; searches of older code call it the published one."""
        name = "default" if "default" in self.request else "published"
        return self.request[name]

    @property
    def picks(self) -> list[int]:
        """The configurations that the search ends with: the chosen one and the ensemble's."""
        if self.chosen is None:
            return []
        return sorted({self.chosen["configuration"], self.agreement} - {None})

    def config(self, configuration: int | None = None) -> Config:
        """The search's configuration, its real evaluation section included, or one of its points.

        What jobs add to keep target labels shut is not in it; what they hold out of the source is.
        A point says who has chosen it.
        """
        from spcl.configuration.config import from_dict  # imports torch

        values = merge(self.request["config"], {"source": {"holdout": self.request["holdout"]}})
        if configuration is not None:
            values = merge(values, nested(self.settings(configuration)))
        config = from_dict(values)
        if configuration is None:
            return config
        own = ChosenBy(
            search=self.name,
            objective=self.request["objective"],
            label_budget=self.request["label_budget"],
        )
        return dataclasses.replace(config, chosen_by=config.chosen_by | own)

    def settings(self, configuration: int) -> dict[str, Any]:
        """The searched settings of a configuration: final values by dotted key."""
        record = next(r for r in self.records if r["configuration"] == configuration)
        return {k: v for k, v in record["settings"].items() if k in self.request["space"]}


def read(path: Path) -> dict[str, Any]:
    """A record of the search.  DataError names a damaged one."""
    return records.read(path, WAY_OUT)


def read_job(path: Path) -> dict[str, Any]:
    """A job's record.  DataError names a damaged one."""
    record = read(path)
    _check_keys(record, ("configuration", "rung", "status"), path, WAY_OUT)
    for names in ("parameters", "settings"):
        if names in record:
            record[names] = old_words.renamed_all(record[names])
    return record


def read_request(path: Path) -> dict[str, Any]:
    """What search.yaml says.  DataError names a damaged one."""
    way_out = f"restore it, or remove the folder {path.parent} and search again"
    try:
        request = records.check(read_yaml(path), path, way_out)
    except ConfigError as error:
        raise DataError(f"{error}; {way_out}") from None
    _check_keys(request, ("objective", "rungs", "space", "config"), path, way_out)
    return request | {"space": old_words.renamed_space(request["space"])}


def _check_keys(values: dict[str, Any], keys: Sequence[str], path: Path, way_out: str) -> None:
    """For files without a checksum."""
    missing = [key for key in keys if key not in values]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; {way_out}")
