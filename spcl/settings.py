"""Typed, strict settings: frozen dataclasses built from nested mappings.

This file knows nothing of segmentation; `spcl.configuration` says which settings exist.  A setting
states where its default comes from and whether it is *scientific* (it can change a result, so it
enters a stage's key) or *operational* (workers, intervals: it can't).
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spcl.errors import ConfigError

WHOLE = "# The last line of this file is three dots."
END = "..."
RECALLED = "recalled"  # of a default: from memory, no source could be read
ALIKE = 0.4  # of difflib's ratio: what is taken for a typing error


def setting(
    default: Any,
    origin: str,
    *,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: tuple | None = None,
    operational: bool = False,
    provenance: str | None = None,
) -> Any:
    """A dataclass field.  `origin`: "paper", "authors' code", "ours: why".

    low and high are inclusive bounds, `below` an exclusive upper one.
    provenance  RECALLED where the origin was not read but remembered
    """
    metadata = {
        "origin": origin,
        "low": low,
        "high": high,
        "below": below,
        "choices": choices,
        "operational": operational,
        "provenance": provenance,
    }
    return dataclasses.field(default=default, metadata=metadata)


def further(sections: Callable[[], Mapping[str, type]]) -> Any:
    """A dataclass field that maps the names of sections to their settings.

    In files and on the command line these sections stand beside the fields, as if each were one.

    sections  gives name -> dataclass, of today: asked anew whenever settings are built or listed
    """

    def usual() -> dict[str, Any]:
        return {name: section() for name, section in sections().items()}

    # A dict has no hash; equal settings have an equal one without it.
    return dataclasses.field(default_factory=usual, hash=False, metadata={"further": sections})


class Member(NamedTuple):
    """A setting or a section, as it is written: `kind` is its type, or a section's dataclass."""

    name: str
    kind: Any
    field: dataclasses.Field
    is_further: bool


def members(settings: type) -> Iterator[Member]:
    """The fields of a dataclass in order, with the sections of its `further` in their place."""
    hints = typing.get_type_hints(settings)
    fields = dataclasses.fields(settings)
    for field in fields:
        if "further" not in field.metadata:
            yield Member(field.name, hints[field.name], field, False)
            continue
        sections = field.metadata["further"]()
        twice = sorted(sections.keys() & {field.name for field in fields})
        assert not twice, f"{', '.join(twice)}: the name of a setting already; choose another"
        yield from (Member(name, kind, field, True) for name, kind in sections.items())


def as_dict(settings: Any) -> dict[str, Any]:
    """Nested, plain values, in the order of `members`: the inverse of `build`."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if "further" in field.metadata:
            values |= {name: as_dict(section) for name, section in value.items()}
        elif dataclasses.is_dataclass(value):
            values[field.name] = as_dict(value)
        else:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of key: value pairs; ConfigError names the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return parse_yaml(data, path)


def parse_yaml(data: bytes, path: Path | str, loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    """As `read_yaml`, of a file's bytes."""
    try:
        text = data.decode()
        values = yaml.load(text, loader)
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8; save it again as a text file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also a date that can't be
        found = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {found}") from None
    if WHOLE in text and not text.rstrip().endswith(END):
        raise ConfigError(
            f"{path} is cut: its last line must be {END!r}; let what wrote it write it again (a "
            "search that is started again does so with best.yaml)"
        )
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold key: value pairs, got {type(values).__name__}")
    return values


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML that `read_yaml` knows to be whole: its beginning names its end."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, explicit_end=True)
    return f"{WHOLE}\n{text}"


def build(section: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Make a `section` dataclass; ConfigError on an unknown key or an unusable value."""
    known = {member.name: member for member in members(section)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise unknown_key(prefix + str(key), [prefix + name for name in known])
        member = known[key]
        converted = _convert(value, member.kind, prefix + key, member.field)
        if member.is_further:
            usual = {m.name: m.kind() for m in known.values() if m.field is member.field}
            arguments.setdefault(member.field.name, usual)[key] = converted
        else:
            arguments[key] = converted
    return section(**arguments)


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    known = sorted(known)
    hint = _did_you_mean(key, known)
    return ConfigError(f"setting {key!r} is unknown; {hint}known here: {', '.join(known)}")


def choose(name: Any, known: Iterable[Any], what: str) -> Any:
    """Return `name`, or raise a ConfigError that names the nearest known one."""
    known = list(known)
    if name in known:
        return name
    words = list(map(str, known))
    listed = ", ".join(words) or "none yet"
    raise ConfigError(
        f"{what} {name!r} is unknown; {_did_you_mean(str(name), words)}known: {listed}"
    )


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, ALIKE)
    return f"did you mean {close[0]!r}? " if close else ""


def _convert(value: Any, kind: Any, key: str, field: dataclasses.Field) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if isinstance(value, str) and any(f.name == "name" for f in dataclasses.fields(kind)):
            value = {"name": value}  # model=tiny is short for model.name=tiny
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is a section; expected key: value pairs, got {value!r}")
        return build(kind, value, key + ".")
    word = str(value).lower()
    if isinstance(value, bool) and word in (field.metadata.get("choices") or ()):
        value = word  # one of the words to choose from, which YAML reads as a truth value
    try:
        converted = _as(value, kind)
    except (TypeError, ValueError):
        choices = field.metadata.get("choices")
        wanted = f"one of {', '.join(map(str, choices))}" if choices else _in_words(kind)
        raise ConfigError(f"{key} must be {wanted}, got {value!r}") from None
    _check_range(converted, key, field)
    return converted


def _in_words(kind: Any) -> str:
    """What to write for a value of a type, in YAML."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _in_words(part) for part in parts)
    if origin is tuple:
        many = parts[1] is Ellipsis
        return "a list, e.g. [a,b,...]" if many else f"a list of {len(parts)}, as [a,b]"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    return words.get(kind, str(kind))


def _as(value: Any, kind: Any) -> Any:
    """Convert one value to its declared type; YAML reads 1e-3 as a string."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _as(value, next(a for a in typing.get_args(kind) if a is not type(None)))
    if origin is tuple:
        parts = typing.get_args(kind)
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(value)
        value = list(value)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return tuple(_as(item, parts[0]) for item in value)
        if len(value) != len(parts):
            raise ValueError(value)
        return tuple(_as(item, part) for item, part in zip(value, parts, strict=True))
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError(value)
        return value
    if kind is int:
        if isinstance(value, bool) or float(value) != int(float(value)):
            raise TypeError(value)
        return int(float(value)) if isinstance(value, str) else int(value)
    if kind is float:
        if isinstance(value, bool) or not math.isfinite(float(value)):
            raise TypeError(value)
        return float(value)
    if not isinstance(value, kind):
        raise TypeError(value)
    return value


def _check_range(value: Any, key: str, field: dataclasses.Field) -> None:
    meta = field.metadata
    if meta.get("choices") and value not in meta["choices"]:
        choose(value, meta["choices"], key)
    if value is None:
        return
    low, high, below = meta.get("low"), meta.get("high"), meta.get("below")
    for item in value if isinstance(value, tuple) else (value,):
        if not isinstance(item, (int, float)):
            continue
        if low is not None and item < low:
            raise ConfigError(f"{key} must be at least {low}, got {item}")
        if high is not None and item > high:
            raise ConfigError(f"{key} must be at most {high}, got {item}")
        if below is not None and item >= below:
            raise ConfigError(f"{key} must be below {below}, got {item}")


def scientific(section: Any) -> dict[str, Any]:
    """The settings of a section that can change a result and differ from their default.

    Leaving defaults out keeps the keys of old artefacts valid when a setting is added.
    """
    chosen: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            inner = scientific(value)
            if inner:
                chosen[field.name] = inner
        elif not field.metadata.get("operational") and value != field.default:
            chosen[field.name] = list(value) if isinstance(value, tuple) else value
    return chosen


def recalled(section: Any) -> list[str]:
    """The settings of a section whose default is in force and was recalled, not read."""
    return [
        field.name
        for field in dataclasses.fields(section)
        if field.metadata.get("provenance") == RECALLED
        and getattr(section, field.name) == field.default
    ]


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def merge(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overlaid by `other`, section by section."""
    merged = dict(base)
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged
