"""Which stages any number of workers may train, and how the others refuse another number by name.

Most stages are the same with any number, to rounding, and may go on with another.  Where ranks keep
state or losses of their own, the number is in the stage's key, and another number is another stage.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spcl.errors import ConfigError

REDUCTION = "train.reduction"

#: Settings by dotted name: what makes the number matter, and the choice that does not.
Choices = dict[str, tuple[Any, Any]]


def choices(sections: Mapping[str, Any], reduction: str) -> Choices:
    """The settings by which a stage's result depends on the number of workers; empty: it does not.

    sections   of the stage's method and extras, by name
    reduction  `train.reduction`
    """
    found: Choices = {}
    for name, section in sections.items():
        usual = {field.name: field.default for field in dataclasses.fields(section)}
        found |= {f"{name}.{s}": (getattr(section, s), usual[s]) for s in section.by_rank}
    if reduction == "per_rank":
        found[REDUCTION] = ("per_rank", "global")
    return found


def expect(stage: str, found: Choices, meant: int, workers: int) -> None:
    """ConfigError where a stage of a certain number of workers would be trained by another."""
    if found and meant != workers:
        raise ConfigError(refusal(stage, found, meant, workers))


def refusal(stage: str, found: Choices, meant: int, workers: int) -> str:
    """Which stage, by which settings, the two numbers, and what to do."""
    why = " and ".join(_said(name, one) for name, (one, _) in found.items())
    exact = " and ".join(_said(name, other) for name, (_, other) in found.items())
    return (
        f"the result of stage {stage!r} depends on the number of workers, since {why}: it is one "
        f"of train.workers={meant}, got {workers}; run it with {meant}, or begin another with "
        f"train.workers={workers}, or take {exact}, which any number may train"
    )


def _said(name: str, value: Any) -> str:
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"
