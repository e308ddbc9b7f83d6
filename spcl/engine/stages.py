"""A recipe as a graph of stages, each named by what determines its result.

A stage's key is the sha256 of canonical JSON of its kind and version, the scientific settings it
reads (where they differ from the default), the seed, the fingerprints of its data and the keys of
its inputs.  Equal keys mean equal results, so runs, sweeps and searches share stages.  Pure: this
file reads no data and starts nothing.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spcl.configuration import old_words
from spcl.configuration.config import Config
from spcl.extras import EXTRAS
from spcl.methods import METHODS
from spcl.settings import digest, scientific

#: Raised when a kind of stage would give other results than before for the same settings.
KIND_VERSIONS = {"statistics": 2, "evaluation": 2}


@dataclass(frozen=True, eq=False)
class Stage:
    """One artefact to be made.

    kind  "train", one of KIND_VERSIONS, or the name of a method's pass
    """

    kind: str
    title: str  # unique within a recipe; for people
    method: str  # of a training stage, else ""
    version: int
    seed: int
    settings: Mapping[str, Any]
    data: Mapping[str, str | None]  # role -> fingerprint; None: the data are not there yet
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)  # role -> stage
    reader: str = ""  # of a pass: the method that it is made for

    @cached_property
    def key(self) -> str:
        return digest(self._content("key") | {"seed": self.seed})

    @cached_property
    def settings_key(self) -> str:
        """The key without the seed: stages of equal ones differ by chance alone."""
        return digest(self._content("settings_key"))

    def _content(self, key: str) -> dict[str, Any]:
        """What determines the result but the seed; inputs by their `key`, an attribute's name."""
        return {
            "stage": f"train/{self.method}" if self.method else self.kind,
            "version": self.version,
            "settings": self.settings,
            "data": self.data,
            "inputs": {role: getattr(stage, key) for role, stage in self.inputs.items()},
        }

    @property
    def has_key(self) -> bool:
        """Whether the data that it is made of are there; without, `key` names nothing."""
        return None not in self.data.values() and all(s.has_key for s in self.inputs.values())

    @property
    def progress(self) -> str:
        """Name of the folder of its checkpoints: the same for any number of steps.

        The horizon is a setting of its own, so a stage of fewer steps is the beginning of this one.
        """
        method = {k: v for k, v in self.settings.get("method", {}).items() if k != "steps"}
        prefix = dataclasses.replace(self, settings={**self.settings, "method": method})
        return f"{self.title.replace(' ', '-')}-{prefix.key[:16]}"

    @property
    def folder(self) -> str:
        """Name of the artefact's folder."""
        return f"{self.title.replace(' ', '-')}-{self.key[:16]}"


def plan(config: Config, data: Mapping[str, str | None]) -> list[Stage]:
    """The stages of a recipe in the order they run: every evaluation after the last training.

    data: fingerprints of the "source", "target" and "evaluation" splits, None of one that is not
    there yet.  Without an evaluation split there is no evaluation.
    """
    network = _network_settings(config)
    stages: list[Stage] = []

    def add(
        kind: str,
        title: str,
        settings: dict,
        roles: tuple[str, ...],
        *,
        version: int | None = None,
        reader: str = "",
        **inputs: Stage,
    ) -> Stage:
        method = title if kind == "train" else ""
        version = KIND_VERSIONS[kind] if version is None else version
        fingerprints = {role: data[role] for role in roles}
        stage = Stage(
            kind, title, method, version, config.seed, settings, fingerprints, dict(inputs), reader
        )
        stages.append(stage)
        return stage

    trained: list[Stage] = []
    for name in config.stages:
        method, section = METHODS[name], config.of(name)
        inputs: dict[str, Any] = (
            {"checkpoint": trained[-1]} if trained and section.start == "trained" else {}
        )
        for look in method.passes:
            inputs[look.name] = add(
                look.name,
                f"{look.name} of {trained[-1].title}",
                _without_empty(
                    network=network,
                    size=list(getattr(config, look.domain).size),
                    **{key: getattr(section, key) for key in look.reads},
                ),
                (look.domain,),
                version=look.version,
                reader=name,
                checkpoint=trained[-1],
            )
        domains = config.domains_of(name)
        settings = _without_empty(
            network=network,
            train=_train_settings(config, name) | {"batch": config.batch_of(name)},
            method=_without_start(old_words.renamed_in_key(name, scientific(section))),
            extras={extra: _extra_settings(config, extra) for extra in section.extras},
            **{more: scientific(config.named(more)) for more in method.sections},
            **{role: _stream_settings(getattr(config, role)) for role in domains},
        )
        trained.append(add("train", name, settings, domains, version=method.version, **inputs))

    estimated = config.model.target_statistics == "estimated"
    for stage in list(trained):
        scored = stage
        if estimated:
            scored = add(
                "statistics",
                f"statistics of {stage.title}",
                _without_empty(network=network, size=list(config.target.size)),
                ("target",),
                checkpoint=stage,
            )
        if config.evaluation.wanted:
            add(
                "evaluation",
                f"evaluation of {stage.title}",
                _without_empty(
                    network=network,
                    size=list(config.evaluation.size),
                    protocol=config.evaluation.protocol,
                    augmentation=_test_time_augmentation(config.evaluation),
                ),
                ("evaluation",),
                checkpoint=scored,
            )
    return stages


def _without_empty(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value != {}}


def _train_settings(config: Config, stage: str) -> dict[str, Any]:
    chosen = scientific(config.train)
    if config.by_rank(stage):
        chosen["workers"] = config.train.workers
    return chosen


def _extra_settings(config: Config, extra: str) -> dict[str, Any]:
    return {"version": EXTRAS[extra].version} | scientific(config.extra(extra))


def _without_start(chosen: dict[str, Any]) -> dict[str, Any]:
    # `start` decides whether the stage has a checkpoint among its inputs, whose key is in its own.
    return {k: v for k, v in chosen.items() if k != "start"}


def _stream_settings(section: Any) -> dict[str, Any]:
    # The data's fingerprint says which samples; where they lie says nothing more.
    usual: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(section)}
    chosen = old_words.in_key(scientific(section), usual[old_words.ORDER])
    return {k: v for k, v in chosen.items() if k not in ("dataset", "split", "holdout")}


def _test_time_augmentation(section: Any) -> dict[str, Any]:
    # Size and protocol are in the key by their own names since before there was augmentation.
    known = ("dataset", "split", "size", "protocol")
    return {k: v for k, v in scientific(section).items() if k not in known}


def _network_settings(config: Config) -> dict[str, Any]:
    chosen = scientific(config.model)
    chosen.pop("target_statistics", None)  # an evaluation option
    chosen.pop("input", None)  # below as what it resolves to, so that both spellings share a key
    if config.input != "imagenet":
        chosen["input"] = config.input
    chosen["norm"], chosen["weights"] = config.norm, config.weights
    if Path(config.weights).is_file():  # a file is what it holds, not where it lies
        chosen["weights"] = hashlib.sha256(Path(config.weights).read_bytes()).hexdigest()
    return chosen
