"""All settings of a run, and which of them fit together.

`sections` has the settings that methods share, the file of a method or an extra its own, and
`layers` says how files and the command line become one `Config`.  After a change of a setting,
wherever it stands, `python -m spcl.configuration.table` writes the table of settings anew.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from spcl.configuration import elastic, old_words
from spcl.configuration.chosen_by import ChosenBy
from spcl.configuration.layers import CONFIGS, layered
from spcl.configuration.sections import (
    Domain,
    Evaluation,
    Model,
    PseudoLabel,
    Source,
    Streets,
    Train,
)
from spcl.data.reads import Read, domain_of, united
from spcl.errors import ConfigError
from spcl.extras import EXTRAS
from spcl.extras.base import Extra, ExtraConfig
from spcl.methods import METHODS
from spcl.methods.base import Method
from spcl.methods.passes import StatePass
from spcl.methods.stage import StageConfig
from spcl.models.segmentor import MODELS
from spcl.settings import as_dict, build, choose, flatten, further, members, read_yaml, setting

Section = TypeVar("Section")


def own_sections() -> dict[str, type]:
    """Name -> settings of every method and every extra; `Config.sections` holds one of each."""
    twice = sorted(METHODS.keys() & EXTRAS.keys())
    assert not twice, f"{', '.join(twice)}: a method and an extra; rename one of the two"
    parts: dict[str, type[Method] | type[Extra]] = {**METHODS, **EXTRAS}
    return {name: part.Config for name, part in parts.items()}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run: what methods share by field, what each has of its own in `sections`.

    In files all sections stand side by side: `model: ...`, `spcl: ...`.
    """

    benchmark: str = setting("", "command line")
    method: str = setting("spcl", "command line")
    stages: tuple[str, ...] = setting((), "the method's file")
    compat: str = setting(
        "ours",
        "ours; official sets the switches of configs/compat to what the authors' code does",
        choices=("ours", "official"),
        operational=True,  # a name for settings, which are in the keys themselves
    )
    seed: int = setting(0, "command line", low=0)
    selection: str = setting("last", "ours: the last checkpoint, no label", choices=("last",))
    source: Source = field(default_factory=Source)
    target: Domain = field(default_factory=Domain)
    evaluation: Evaluation = field(default_factory=Evaluation)
    model: Model = field(default_factory=Model)
    pseudo_label: PseudoLabel = field(default_factory=PseudoLabel)
    train: Train = field(default_factory=Train)
    streets: Streets = field(default_factory=Streets)
    chosen_by: ChosenBy = field(default_factory=ChosenBy)  # united over layers, never overridden

    sections: Mapping[str, StageConfig | ExtraConfig] = further(own_sections)

    def of(self, method: str) -> StageConfig:
        """The section of a method."""
        return _of_type(self.sections[method], StageConfig)

    def extra(self, name: str) -> ExtraConfig:
        """The section of an extra."""
        return _of_type(self.sections[name], ExtraConfig)

    def section(self, kind: type[Section]) -> Section:
        """The one section of a class: `config.section(SPCL.Config).temperature`.

        Raises LookupError where no method or extra has that class, or several share it.
        """
        found = [name for name, known in own_sections().items() if known is kind]
        if len(found) != 1:
            raise LookupError(
                f"one method or extra must have {kind.__name__} for its Config, found "
                f"{', '.join(found) or 'none'}; ask for a section by name: config.of(name)"
            )
        return _of_type(self.sections[found[0]], kind)

    def named(self, name: str) -> Any:
        """A section by its name in files, whosever it is."""
        return self.sections[name] if name in self.sections else getattr(self, name)

    def with_sections(self, changed: Mapping[str, StageConfig | ExtraConfig]) -> "Config":
        """A copy in which some methods and extras have other settings."""
        return dataclasses.replace(self, sections={**self.sections, **changed})

    def sections_of(self, stage: str) -> tuple[str, ...]:
        """The sections that a stage reads and others may not: its own, its extras', and those its
        method declares.  Data, network and optimisation are read by every stage.
        """
        return (stage, *self.of(stage).extras, *METHODS[stage].sections)

    def unread_sections(self) -> set[str]:
        """Those that some stage might read, but none of this recipe does."""
        declared = {name for method in METHODS.values() for name in method.sections}
        read = {name for stage in self.stages for name in self.sections_of(stage)}
        return (self.sections.keys() | declared) - read

    def batch_of(self, method: str) -> int:
        """Images per domain and step of a method's stage, over all workers."""
        return self.of(method).batch or self.train.batch

    @property
    def norm(self) -> str:
        return self.model.used_norm

    @property
    def weights(self) -> str:
        return self.model.used_weights

    @property
    def input(self) -> str:
        return self.model.used_input

    def by_rank(self, stage: str) -> elastic.Choices:
        """The settings by which the number of workers changes the result of a training stage."""
        extras = {name: self.extra(name) for name in self.of(stage).extras}
        return elastic.choices({stage: self.of(stage)} | extras, self.train.reduction)

    def reads_of(self, stage: str) -> dict[str, Read]:
        """Stream -> what a stage's method and its extras read of it, the domains' own first."""
        section = self.of(stage)
        extras = (EXTRAS[name].reads_of(self.extra(name)) for name in section.extras)
        return united([METHODS[stage].reads_of(section), *extras])

    def domains_of(self, stage: str) -> tuple[str, ...]:
        """The domains whose training images a stage reads, "source" before "target"."""
        return tuple(sorted(set(map(domain_of, self.reads_of(stage)))))

    def check(self) -> None:
        """What no single setting can tell.  Raises ConfigError."""
        if not self.stages:
            raise ConfigError("stages must name at least one method, e.g. stages=[source_only]")
        for index, name in enumerate(self.stages):
            choose(name, METHODS, "stage")
            if index == 0 and METHODS[name].starts_trained:
                raise ConfigError(
                    f"stage {name!r} starts from a trained network, so it can't be the first; "
                    f"try stages=[{_first_stage(self.method)},{','.join(self.stages)}]"
                )
            section = self.of(name)
            for extra in section.extras:
                choose(extra, EXTRAS, f"{name}.extras")
                self._check_extra(name, EXTRAS[extra], extra)
            if section.steps > section.horizon:
                raise ConfigError(
                    f"{name}.horizon must be at least {name}.steps, since the poly schedule is 0 "
                    f"there; got horizon {section.horizon} and steps {section.steps}"
                )
            if section.start == "pretrained" and _learns_state(METHODS[name]):
                raise ConfigError(
                    f"{name}.start must be trained: what it learns in its look at the source is of "
                    "the network of the stage before"
                )
            if section.scale[0] > section.scale[1]:
                raise ConfigError(f"{name}.scale must be [low, high], got {list(section.scale)}")
        if len(set(self.stages)) != len(self.stages):
            raise ConfigError(f"each stage may run once, got {list(self.stages)}")
        self.source.check("source")
        self.target.check("target")
        self.evaluation.check()
        self.model.check()
        if self.train.micro_batch and MODELS[self.model.name].norms and self.norm != "frozen":
            raise ConfigError(
                f"train.micro_batch needs norms that treat each image by itself: model.norm=frozen "
                f"(which needs pre-trained weights); got {self.norm}, whose statistics are those "
                "of the whole batch; or set train.micro_batch=0"
            )

    def _check_extra(self, stage: str, extra: type[Extra], name: str) -> None:
        if extra.needs_pretrained and self.weights == "none":
            raise ConfigError(
                f"{name} needs a network with pre-trained weights, but {self.model.name} starts "
                f"from scratch (model.weights=none); take {name} out of {stage}.extras, or choose "
                "another model"
            )
        if extra.needs_teacher and not METHODS[stage].teaches:
            known = ", ".join(n for n, method in METHODS.items() if method.teaches)
            raise ConfigError(
                f"{name} needs a method with a teacher: {known}, got {stage}; take {name} out of "
                f"{stage}.extras"
            )

    def as_dict(self) -> dict[str, Any]:
        """Nested, plain values: what is saved as config.yaml."""
        return as_dict(self)


def _of_type(section: Any, kind: type[Section]) -> Section:
    assert isinstance(section, kind), section  # tells type checkers too
    return section


def _learns_state(method: type[Method]) -> bool:
    return any(issubclass(look, StatePass) for look in method.passes)


def load(
    benchmark: str | None = None,
    method: str | None = None,
    file: Path | None = None,
    overrides: Iterable[str] = (),
) -> Config:
    """The resolved, checked configuration.  Raises ConfigError."""
    config = build(Config, layered(Config, benchmark, method, file, overrides))
    config.check()
    return config


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `Config.as_dict`, of older code's too."""
    config = build(Config, old_words.modern(Config, old_words.checked(values)))
    config.check()
    return config


def _first_stage(method: str) -> str:
    """Of the recipe in a method's file."""
    return read_yaml(CONFIGS / "methods" / f"{method}.yaml")["stages"][0]


def result_settings(config: Config) -> dict[str, Any]:
    """The settings that can change a result, by dotted name; the seed among them."""
    skip = operational_keys()
    if any(map(config.by_rank, config.stages)):
        skip.remove("train.workers")
    return {key: value for key, value in flatten(config.as_dict()).items() if key not in skip}


def differences(one: Config, other: Config) -> list[str]:
    """Lines "key: a -> b" of what is `result_settings` of the two and differs."""
    left, right = result_settings(one), result_settings(other)
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def operational_keys() -> set[str]:
    """Dotted names of the settings that cannot change a result."""
    keys = set()
    for section in members(Config):
        if section.field.metadata.get("operational"):
            keys.add(section.name)
        if dataclasses.is_dataclass(section.kind):
            for inner in dataclasses.fields(section.kind):
                if inner.metadata.get("operational"):
                    keys.add(f"{section.name}.{inner.name}")
    return keys
