"""What a search varies: configs/search/<method>.yaml, strict, every key a setting of the recipe.

    spcl.temperature: {low: 0.05, high: 200, log: true}
    spcl.contrast_weight: {relative_to: spcl.temperature, low: 0.01, high: 10, log: true}
    spcl.source_mask: {choices: [gt, agree]}
    spcl.learning_rate: {low: 0.01, high: 0.1, when: {spcl.source_mask: agree}}

A *parameter* is what the sampler suggests, a *setting* what the recipe reads.  They differ where a
setting is relative to another: the quotient is suggested, under the name `<key>/relative`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from spcl.configuration import old_words
from spcl.configuration.config import Config, from_dict, operational_keys
from spcl.configuration.layers import CONFIGS
from spcl.errors import ConfigError
from spcl.settings import choose, flatten, merge, read_yaml, unknown_key
from tune.searching.experiment import nested

RELATIVE = "/relative"
SHARED = ("source", "target", "model", "train")  # sections that every stage reads

Parameters = dict[str, Any]  # by name, as suggested
Settings = dict[str, Any]  # by dotted key, as the recipe reads them


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One line of a space: a range of floats, or choices."""

    key: str  # of the setting
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    relative_to: str | None = None
    choices: tuple[Any, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)  # earlier parameter -> value it must have

    @property
    def name(self) -> str:
        return self.key + RELATIVE if self.relative_to else self.key

    @property
    def distribution(self) -> BaseDistribution:
        if self.choices:
            return CategoricalDistribution(self.choices)
        return FloatDistribution(self.low, self.high, log=self.log)

    def active(self, earlier: Parameters) -> bool:
        return all(earlier.get(name) == value for name, value in self.when.items())

    def holds(self, value: Any) -> bool:
        """Is a value in the range, or one of the choices?"""
        return value in self.choices if self.choices else self.low <= value <= self.high

    def at(self, share: float) -> Any:
        """The value at a share in [0, 1) of the range."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        if self.log:
            value = self.low * (self.high / self.low) ** share
            return min(max(value, self.low), self.high)  # rounding may pass an end
        return self.low + share * (self.high - self.low)


@dataclass(frozen=True)
class Space:
    parameters: tuple[Parameter, ...]

    @property
    def keys(self) -> list[str]:
        return [parameter.key for parameter in self.parameters]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {parameter.name: parameter.distribution for parameter in self.parameters}

    def pick(self, value: Callable[[Parameter], Any]) -> Parameters:
        """value(parameter) of every active parameter, in order: conditions are on earlier ones."""
        picked: Parameters = {}
        for parameter in self.parameters:
            if parameter.active(picked):
                picked[parameter.name] = value(parameter)
        return picked

    def at(self, point: Sequence[float]) -> Parameters:
        """The parameters at a point of the unit cube; inactive ones use up their coordinate."""
        share = dict(zip(self.keys, point, strict=True))
        return self.pick(lambda parameter: parameter.at(share[parameter.key]))

    def defaults(self, config: Config) -> Parameters:
        """The parameters that stand for a configuration's own settings, in range or not."""
        values = flatten(config.as_dict())

        def value(parameter: Parameter) -> Any:
            other = values[parameter.relative_to] if parameter.relative_to else 1
            return values[parameter.key] / other if parameter.relative_to else values[parameter.key]

        return self.pick(value)

    def inside(self, parameters: Parameters) -> Parameters:
        """Those in their ranges."""
        return {
            p.name: parameters[p.name]
            for p in self.parameters
            if p.name in parameters and p.holds(parameters[p.name])
        }

    def settings(self, parameters: Parameters, config: Config) -> Settings:
        """Every setting that the space names; `config` gives those of inactive parameters."""
        values = flatten(config.as_dict())
        values |= {name: value for name, value in parameters.items() if name in values}
        for parameter in self.parameters:
            if parameter.relative_to and parameter.name in parameters:
                product = parameters[parameter.name] * values[parameter.relative_to]
                values[parameter.key] = product
        return {key: values[key] for key in self.keys}

    def apply(self, settings: Settings, config: Config) -> Config:
        """ConfigError where a setting is out of the range that the recipe allows."""
        return from_dict(merge(config.as_dict(), nested(settings)))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """By key, as in a file."""
        return {parameter.key: _line(parameter) for parameter in self.parameters}


def _line(parameter: Parameter) -> dict[str, Any]:
    if parameter.choices:
        line: dict[str, Any] = {"choices": list(parameter.choices)}
    else:
        line = {"low": parameter.low, "high": parameter.high, "log": parameter.log}
    if parameter.relative_to:
        line["relative_to"] = parameter.relative_to
    return line | ({"when": dict(parameter.when)} if parameter.when else {})


def load_space(name: str, config: Config) -> Space:
    """The space in a file, or of a name in configs/search.  ConfigError names what is wrong."""
    path = Path(name)
    if path.suffix != ".yaml":
        names = sorted(file.stem for file in (CONFIGS / "search").glob("*.yaml"))
        if name == config.method and name not in names:
            raise ConfigError(
                f"method {name!r} has no search space of its own; give one with --space, a file or "
                f"one of {', '.join(names)}"
            )
        path = CONFIGS / "search" / f"{choose(name, names, 'space')}.yaml"
    try:
        return build_space(read_yaml(path), config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def build_space(lines: Mapping[str, Any], config: Config) -> Space:
    """The space of {key: line}, checked against the recipe.  Raises ConfigError."""
    if not lines:
        raise ConfigError("a space must name at least one setting to search")
    parameters: list[Parameter] = []
    for key, line in old_words.renamed_space(lines).items():
        parameters.append(_parameter(key, line, config, parameters))
    space = Space(tuple(parameters))
    for share in (0.0, 1.0 - 1e-12):  # both ends are values that the recipe takes
        space.apply(space.settings(space.at([share] * len(parameters)), config), config)
    return space


def _parameter(key: str, line: Any, config: Config, earlier: Sequence[Parameter]) -> Parameter:
    values = flatten(config.as_dict())
    read = {*SHARED, *(name for stage in config.stages for name in config.sections_of(stage))}
    searchable = {
        name for name in values if name.split(".")[0] in read and "." in name
    } - operational_keys()
    if key not in searchable:
        if (now := old_words.today(key)) in searchable:
            raise ConfigError(f"{key} is one of the choices of {now} today; search {now} instead")
        raise unknown_key(key, searchable)
    if not isinstance(line, Mapping):
        raise ConfigError(f"{key} must be {{low: ..., high: ...}} or {{choices: [...]}}: {line!r}")
    for name in line:
        choose(name, ("low", "high", "log", "relative_to", "choices", "when"), f"{key}:")
    when = line.get("when", {})
    for name, value in when.items():
        other = next((p for p in earlier if p.name == name), None)
        if other is None or not other.holds(value):
            raise ConfigError(
                f"{key}: when must name an earlier parameter and a value of it: {name}: {value!r}"
            )
    if "choices" in line:
        if not line["choices"] or {"low", "high", "log", "relative_to"} & line.keys():
            raise ConfigError(f"{key} must have choices, or else low and high: {dict(line)}")
        return Parameter(key=key, choices=tuple(line["choices"]), when=when)
    return _range(key, line, values, when, earlier)


def _range(
    key: str,
    line: Mapping[str, Any],
    values: Mapping[str, Any],
    when: Mapping[str, Any],
    earlier: Sequence[Parameter],
) -> Parameter:
    if not isinstance(values[key], float):
        raise ConfigError(f"{key} is no real number; search it by choices: [...]")
    other = line.get("relative_to")
    if other is not None and other not in [p.key for p in earlier if not (p.when or p.choices)]:
        raise ConfigError(f"{key}: relative_to must name an earlier range of the space: {other}")
    try:
        low, high = float(line["low"]), float(line["high"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{key} must have numbers low and high, got {dict(line)}") from None
    log = line.get("log", False)
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log)):
        raise ConfigError(
            f"{key}: low < high must hold, and 0 < low on a log scale, got low {low:g}, "
            f"high {high:g}, log {log}"
        )
    return Parameter(key=key, low=low, high=high, log=log, relative_to=other, when=when)
