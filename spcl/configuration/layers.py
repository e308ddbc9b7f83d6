"""How files and the command line become one nested mapping of settings.

    resolved = defaults <- configs/methods/M.yaml <- configs/benchmarks/B.yaml
               <- configs/compat/M.yaml if compat=official <- --config F <- key=value

A benchmark may set its own values for a method's section, so it is read after the method's file;
what it sets for one method's recipe alone is below `methods:` there.  Which settings exist says the
dataclass that is passed in: `config.Config`, or that of `table`, which needs no torch.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from spcl.configuration import chosen_by, old_words
from spcl.errors import ConfigError
from spcl.settings import build, choose, merge, read_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def known(kind: str) -> list[str]:
    """Names of the files in configs/<kind>."""
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


def read_config(settings: type, path: Path) -> dict[str, Any]:
    """A config file as a nested dict; ConfigError names the file."""
    values = read_yaml(path)
    _check_file(settings, path, values)
    return old_words.checked(values)


def check_layer(settings: type, values: Mapping[str, Any]) -> None:
    """ConfigError on a key or a value that one layer may not have, whatever the others say."""
    build(settings, old_words.without(old_words.checked(values)))


def _check_file(settings: type, path: Path, values: Any) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: a section must hold key: value pairs, got {values!r}")
    try:
        check_layer(settings, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read_benchmark(settings: type, name: str, method: str) -> dict[str, Any]:
    """A benchmark's settings, overlaid by those it has for one method's recipe."""
    path = CONFIGS / "benchmarks" / f"{name}.yaml"
    values = read_yaml(path)
    own = values.pop("methods", {})
    if not isinstance(own, Mapping):
        raise ConfigError(f"{path}: methods must hold a section per method, got {own!r}")
    for other in own:
        choose(other, known("methods"), f"{path}: method")
    for layer in (values, *own.values()):
        _check_file(settings, path, layer)
    return _overlay(_expand(values), _expand(own.get(method, {})))


def _read_compat(settings: type, method: str) -> dict[str, Any]:
    """The switches that make a method behave as its authors' code does."""
    if method not in known("compat"):
        raise ConfigError(
            f"compat=official is known for {', '.join(known('compat'))}, not for {method!r}; "
            "leave it out, or choose one of these with --method"
        )
    return read_config(settings, CONFIGS / "compat" / f"{method}.yaml")


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """["a.b=1"] -> {"a": {"b": 1}}; values are read as YAML."""
    values: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"a setting is given as key=value, got {text!r}")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{key}: {value!r} is not a valid YAML value") from None
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = merge(values, _expand(nested))
    if chosen_by.SECTION in values:
        raise ConfigError(
            f"{chosen_by.SECTION} says which search has chosen the settings: only a search's own "
            "files set it, and nothing empties it; leave it out, and give the file with --config"
        )
    return old_words.checked(values)


def _overlay(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`merge`, but who chose the settings of either stays said, and old words are understood."""
    merged = old_words.overlay(base, other)
    united = chosen_by.of_values(base) | chosen_by.of_values(other)
    return merged | ({chosen_by.SECTION: dataclasses.asdict(united)} if united else {})


def layered(
    settings: type,
    benchmark: str | None,
    method: str | None,
    file: Path | None,
    overrides: Iterable[str],
) -> dict[str, Any]:
    """What all layers say together, each of them checked, in today's words.  Raises ConfigError.

    settings  the dataclass of all settings
    """
    given = parse_overrides(overrides)
    from_file = read_config(settings, file) if file else {}
    if file and not from_file:
        raise ConfigError(f"{file} holds no settings; write them, or leave --config out")
    benchmark = benchmark or given.get("benchmark") or from_file.get("benchmark") or "streets"
    method = method or given.get("method") or from_file.get("method") or "spcl"
    choose(benchmark, known("benchmarks"), "benchmark")
    choose(method, known("methods"), "method")
    of_method = read_config(settings, CONFIGS / "methods" / f"{method}.yaml")
    usual = _overlay(_expand(of_method), _read_benchmark(settings, benchmark, method))
    asked = old_words.overlay(_expand(from_file), given) | {
        "benchmark": benchmark,
        "method": method,
    }
    official = merge(usual, asked).get("compat") == "official"
    switches = _expand(_read_compat(settings, method)) if official else {}
    return old_words.modern(settings, _overlay(_overlay(usual, switches), asked))


def _expand(values: Mapping[str, Any]) -> dict[str, Any]:
    """`model: tiny` is short for `model: {name: tiny}`; expanded before layers are merged."""
    values = old_words.checked(values)
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}
    return values
