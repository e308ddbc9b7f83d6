"""Read an experiment folder: what was asked, what its jobs have found, which one is chosen.

Opens no data and writes nothing.  Scores are computed here from the recorded validators, by the
objective's one formula.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from spcl.data.sampling import hash_chosen
from spcl.errors import DataError
from spcl.settings import merge

if TYPE_CHECKING:
    from spcl.config import Config

SEARCHES = "searches"  # folder of experiments in the storage
SAMPLERS = ("tpe", "random", "qmc")  # what proposes configurations, see `tune.study`
SCHEMA = 1
REFERENCE = -1  # the configuration and rung of the warm-up network's record
ORACLE = "target_oracle"  # the objective that reads target labels


def halves(sample_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the evaluation images to choose on, and of those to report on, by hash."""
    chosen = hash_chosen(sample_ids, len(sample_ids) // 2, ORACLE)
    return chosen, np.setdiff1d(np.arange(len(sample_ids)), chosen)


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
        self.request = yaml.safe_load(path.read_text(encoding="utf-8"))
        _check_schema(self.request, path)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Every finished or failed job, by configuration and rung."""
        found = [read(path) for path in (self.folder / "jobs").glob("[0-9]*-[0-9]*.json")]
        return sorted(found, key=lambda r: (r["configuration"], r["rung"]))

    @cached_property
    def reference(self) -> dict[str, Any] | None:
        """The warm-up network's record; None as long as there is none, or it has failed."""
        path = self.folder / "jobs" / "reference.json"
        record = read(path) if path.is_file() else None
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
        from spcl.validation import objective  # imports torch

        name = name or self.request["objective"]
        return objective(record["validators"], self.reference["validators"], name)

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The record with the best score of the highest rung that holds a score."""
        scored = [r for r in self.done if self.score(r) is not None]
        if not scored:
            return None
        top = max(record["rung"] for record in scored)
        # Of equal scores the first configuration's, so that the choice is one.
        return max((r for r in scored if r["rung"] == top), key=self.score)

    @property
    def agreement(self) -> int | None:
        """The configuration that agrees most with the best ones' ensemble; None if unknown."""
        path = self.folder / "agreement.json"
        return json.loads(path.read_text())["configuration"] if path.is_file() else None

    def config(self, configuration: int | None = None) -> Config:
        """The search's configuration, its real evaluation section included, or one of its points.

        What jobs add to keep target labels shut is not in it; what they hold out of the source is.
        """
        from spcl.config import from_dict  # imports torch

        values = merge(self.request["config"], {"source": {"holdout": self.request["holdout"]}})
        if configuration is not None:
            values = merge(values, nested(self.settings(configuration)))
        return from_dict(values)

    def settings(self, configuration: int) -> dict[str, Any]:
        """The searched settings of a configuration: final values by dotted key."""
        record = next(r for r in self.records if r["configuration"] == configuration)
        return {k: v for k, v in record["settings"].items() if k in self.request["space"]}


def read(path: Path) -> dict[str, Any]:
    """A job's record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); remove it and search again") from None
    _check_schema(record, path)
    return record


def _check_schema(values: dict[str, Any], path: Path) -> None:
    if values.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {values.get('schema')}, this version reads {SCHEMA}; "
            "use the version that wrote it"
        )
