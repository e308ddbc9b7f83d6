"""What was asked of a search: search.yaml, and the jobs that follow from it."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spcl.configuration import elastic
from spcl.configuration.chosen_by import ChosenBy
from spcl.configuration.config import Config, differences, from_dict
from spcl.engine.commit import commit
from spcl.engine.inputs import roles
from spcl.engine.planned import count_images, find_split
from spcl.errors import ConfigError, UserError
from spcl.settings import dump_yaml, flatten
from spcl.store import atomic, records
from tune.searching.experiment import ORACLE, REFERENCE, SEARCHES, read_request
from tune.searching.jobs import LABELLED_SPLIT, Job
from tune.searching.rungs import (
    SOURCE_ONLY,
    Rung,
    added_steps,
    at_rung,
    reference_stages,
    reference_steps,
    references,
    shared_stages,
)
from tune.searching.space import Parameters, Space

HOLDOUT = 256  # source images kept from training to validate on
HOLDOUT_SHARE = 10  # at most a tenth of them
FEW_LABEL = "few_label"
DEFAULT = 0  # number of the default configuration: what benchmark and method say themselves


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search.  config: the default configuration, its evaluation section as it is."""

    name: str
    config: Config
    space: Space
    rungs: tuple[Rung, ...]
    objective: str
    trials: int
    eta: int
    seed: int  # of the sampler; that of training is in config
    sampler: str
    promotion: str
    data: Path
    storage: Path
    devices: int = 1  # per configuration
    max_failures: int = 1  # how often a killed job is tried again
    settings: tuple[str, ...] = ()  # key=value of the command line

    @property
    def folder(self) -> Path:
        return self.storage / SEARCHES / self.name

    @property
    def is_new(self) -> bool:
        return not (self.folder / "search.yaml").exists()

    @property
    def shared(self) -> tuple[str, ...]:
        """Training stages that all configurations share; none in a recipe of one stage."""
        return shared_stages(self.config, self.space.keys)

    @property
    def references(self) -> tuple[Config, ...]:
        """What the reference job runs in turn; the last recipe holds the reference whole."""
        return references(self.config, self.space.keys)

    @property
    def reference_stages(self) -> tuple[str, ...]:
        """The training stages that the reference job makes."""
        return reference_stages(self.config, self.space.keys)

    @property
    def reference_steps(self) -> tuple[int, ...]:
        """Of each rung: the steps of the reference that it is measured against; none if shared."""
        return () if self.shared else reference_steps(self.config, self.rungs)

    @property
    def few_label(self) -> int:
        return few_label_count(self.objective)

    @property
    def label_budget(self) -> int | None:
        """Labelled target images that the objective reads; None: unknown, in a dry run."""
        if self.objective == ORACLE:
            at = self.config.evaluation
            count = count_images(find_split(self.data, at.dataset, at.split, self.config.streets))
            return None if count is None else count // 2
        return self.few_label

    @property
    def chosen_by(self) -> ChosenBy:
        """Who chooses its configurations: itself, and whoever chose where it begins."""
        own = ChosenBy(
            search=self.name, objective=self.objective, label_budget=self.label_budget or 0
        )
        return self.config.chosen_by | own

    def config_of(self, number: int, parameters: Parameters) -> tuple[Config, dict[str, Any]]:
        """A configuration's full config and its searched settings."""
        if number == DEFAULT:  # as the files say to the last bit: no quotient times its divisor
            values = flatten(self.config.as_dict())
            return self.config, {key: values[key] for key in self.space.keys}
        settings = self.space.settings(parameters, self.config)
        return self.space.apply(settings, self.config), settings

    def added_steps(self, number: int, rung: int) -> dict[str, int]:
        """Steps by stage that a job adds; what the reference makes for it is not among them."""
        added = added_steps(self.rungs, rung, self.shared)
        if number == DEFAULT and self.starts_as_reference:
            del added[SOURCE_ONLY]
        return added

    @property
    def starts_as_reference(self) -> bool:
        """Whether the first stage of the default configuration is the reference's own."""
        return not self.shared and self.config.stages[0] == SOURCE_ONLY

    def job(self, number: int, rung: int, parameters: Parameters, worker: dict[str, float]) -> Job:
        config, settings = self.config_of(number, parameters)
        return self._job(
            number,
            rung,
            at_rung(config, self.rungs[rung]),
            parameters=parameters,
            settings=settings,
            shared=list(self.shared),
            steps=sum(self.added_steps(number, rung).values()),
            worker=worker,
        )

    def reference_job(self, worker: dict[str, float]) -> Job:
        """Makes what all configurations share, else a network of its own, and validates it."""
        return self._job(
            REFERENCE,
            REFERENCE,
            self.references[-1],
            parameters={},
            settings=self.config_of(DEFAULT, {})[1],
            shared=list(self.reference_stages),
            steps=0,
            reference_steps=list(self.reference_steps),
            worker=worker,
        )

    def _job(self, number: int, rung: int, config: Config, **known: Any) -> Job:
        """config: of the rung, with no evaluation split."""
        here = dataclasses.replace(
            config,
            train=dataclasses.replace(config.train, workers=self.devices),
            chosen_by=self.chosen_by,
        )
        oracle = self.config.as_dict()["evaluation"] if self.objective == ORACLE else None
        return Job(
            experiment=str(self.folder),
            data=str(self.data),
            storage=str(self.storage),
            configuration=number,
            rung=rung,
            config=here.as_dict(),
            label_budget=self.label_budget or 0,
            few_label=self.few_label,
            oracle=oracle,
            commit=str(commit()),
            **known,
        )

    def as_dict(self) -> dict[str, Any]:
        """What search.yaml holds."""
        return {
            "benchmark": self.config.benchmark,
            "method": self.config.method,
            "objective": self.objective,
            "label_budget": self.label_budget,
            "trials": self.trials,
            "eta": self.eta,
            "seed": self.seed,
            "sampler": self.sampler,
            "promotion": self.promotion,
            "devices": self.devices,
            "holdout": self.config.source.holdout,
            "default": DEFAULT,
            "settings": list(self.settings),
            "data": str(self.data),
            "storage": str(self.storage),
            "space": self.space.as_dict(),
            "rungs": [
                {"name": r.name, "stages": list(r.stages), "steps": r.steps} for r in self.rungs
            ],
            "config": self.config.as_dict(),
        }

    def open(self) -> None:
        """Write search.yaml, or find it as it should be.  ConfigError: it asks for another search.

        Where data and results lie may change.
        """
        path = self.folder / "search.yaml"
        if path.exists():
            old = read_request(path)
            changed = _changes(old, self.as_dict())
            if changed:
                raise ConfigError(
                    f"search {self.name!r} exists and asked for something else "
                    f"({'; '.join(changed[:5])}); choose another --name"
                )
            # Rungs go on from each other's checkpoints.
            for stage in self.config.stages:
                choices, meant = self.config.by_rank(stage), old.get("devices", self.devices)
                elastic.expect(stage, choices, meant, self.devices)
        atomic.write_bytes(path, dump_yaml(records.seal(self.as_dict())).encode())


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines "key: a -> b" of what makes it another search."""
    free = ("data", "storage", "settings", "devices", "config", "schema", records.CHECKSUM)
    if "published" in old:  # what older code calls it
        old = old | {"default": old["published"]}
        del old["published"]
    left = flatten({key: value for key, value in old.items() if key not in free})
    right = flatten({key: value for key, value in new.items() if key not in free})
    lines = [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]
    return lines + differences(from_dict(old["config"]), from_dict(new["config"]))


def few_label_count(objective: str) -> int:
    """ "few_label:20" -> 20; 0 for objectives without.  ConfigError unless it is positive."""
    if objective.split(":")[0] != FEW_LABEL:
        return 0
    found = re.fullmatch(r"few_label:([1-9]\d*)", objective)
    if not found:
        raise ConfigError(
            f"few_label must say how many labelled images: few_label:20, not {objective!r}"
        )
    return int(found[1])


def with_holdout(config: Config, data: Path) -> Config:
    """The config with source images held out: as it says, else 256, at most a tenth of all."""
    dataset, split = roles(config)["source"]
    count = count_images(find_split(data, dataset, split, config.streets))
    most = HOLDOUT if count is None else min(HOLDOUT, count // HOLDOUT_SHARE)
    held = config.source.holdout or most
    if held < 1:
        raise UserError(
            f"a search validates on held-out source images, but {dataset}/{split} has only {count}"
        )
    return dataclasses.replace(config, source=dataclasses.replace(config.source, holdout=held))


def check_objective(objective: str, config: Config, data: Path) -> None:
    """UserError where the labels that an objective needs are not there."""
    if few_label_count(objective):
        split = find_split(data, config.target.dataset, LABELLED_SPLIT, config.streets)
        if split.labelled is False:
            raise UserError(
                f"{objective} reads labelled target images, but those in {split.folder} have no "
                "labels; convert them again from files with labels, or take another objective"
            )
    if objective == ORACLE and not config.evaluation.wanted:
        raise UserError(f"{objective} reads the evaluation split, but evaluation.dataset=none")
