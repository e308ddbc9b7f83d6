"""The ladder of a search and who climbs it: pure functions of what is known.

A *rung* is a prefix of the recipe.  The first stage that a parameter touches is climbed at a
quarter, half and all of its steps, every later stage at once; what comes before is shared.  The
schedule's horizon stays: a configuration at a rung is one that was stopped there.

Promotion is asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): it never waits for
a rung to be full.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from spcl.errors import ConfigError
from tune.experiment import REFERENCE

if TYPE_CHECKING:
    from spcl.config import Config

SHORTEST = 1e-9  # seconds
FRACTIONS = (Fraction(1, 4), Fraction(1, 2), Fraction(1))  # of the first stage that is touched


@dataclass(frozen=True)
class Rung:
    name: str
    steps: dict[str, int]  # stage -> steps, in order; the shared stages included

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.steps)


def shared_stages(config: Config, keys: Collection[str]) -> tuple[str, ...]:
    """The stages before the first one that a parameter touches.

    ConfigError where there are none: their network is what validators are measured against.
    """
    touched = [index for key in keys for index in _touched(config, key)]
    if not touched:
        raise ConfigError(
            f"a space must touch a stage of {list(config.stages)}, but it holds {', '.join(keys)}"
        )
    if min(touched) == 0:
        raise ConfigError(
            f"a search starts from a network that all configurations share, but its space touches "
            f"the first stage, {config.stages[0]}; leave out what that stage reads"
        )
    return config.stages[: min(touched)]


def _touched(config: Config, key: str) -> list[int]:
    """Indices of the stages that read a setting."""
    from spcl.methods import METHODS  # imports torch

    section = key.split(".")[0]
    if section == "pseudo_label":
        return [i for i, name in enumerate(config.stages) if section in METHODS[name].sections]
    if section in config.stages:
        return [config.stages.index(section)]
    return [0]  # data, network, optimisation: everything


def ladder(config: Config, keys: Collection[str]) -> tuple[Rung, ...]:
    """The rungs of a recipe, lowest first."""
    first = len(shared_stages(config, keys))
    steps = {name: config.of(name).steps for name in config.stages}
    before = {name: steps[name] for name in config.stages[:first]}
    touched, *later = config.stages[first:]
    rungs = []
    for fraction in FRACTIONS:
        part = math.ceil(steps[touched] * fraction)
        if not rungs or part > rungs[-1].steps[touched]:  # a stage of two steps has no quarter
            name = touched if part == steps[touched] else f"{touched} {fraction}"
            rungs.append(Rung(name, before | {touched: part}))
    for name in later:
        rungs.append(Rung(name, rungs[-1].steps | {name: steps[name]}))
    return tuple(rungs)


def at_rung(config: Config, rung: Rung) -> Config:
    """The part of a recipe up to a rung, unable to open a label of the target."""
    sections = {
        name: dataclasses.replace(config.of(name), steps=steps)
        for name, steps in rung.steps.items()
    }
    from spcl.config import NO_DATASET  # imports torch

    closed = dataclasses.replace(config.evaluation, dataset=NO_DATASET)
    return dataclasses.replace(config, stages=rung.stages, evaluation=closed, **sections)


def added_steps(rungs: Sequence[Rung], rung: int, shared: Collection[str]) -> dict[str, int]:
    """Steps of a job by stage: from the rung below (the shared network) to this one."""
    below = rungs[rung - 1].steps if rung else {}
    here = rungs[rung].steps
    return {name: here[name] - below.get(name, 0) for name in here if name not in shared}


@dataclass(frozen=True)
class Result:
    """A finished job.  score None: it failed, or violated a constraint."""

    configuration: int
    rung: int
    score: float | None
    seconds: float = 0.0  # of device time


JobKey = tuple[int, int]  # configuration, rung
Promotion = Callable[[Sequence[Result], int, int, Collection[JobKey]], JobKey | None]


def next_job(
    results: Sequence[Result], rungs: int, eta: int, running: Collection[JobKey] = ()
) -> JobKey | None:
    """Whom to promote now, of the highest rung first; None: nobody, start a new configuration.

    Of n finished at a rung the best floor(n / eta) climb; of equal ones the lower number first.
    """
    return next(_promotable(results, rungs, eta, running), None)


def cost_aware(
    results: Sequence[Result], rungs: int, eta: int, running: Collection[JobKey] = ()
) -> JobKey | None:
    """Of those that may be promoted, the one that gained most per device-second of its last job.

    At the lowest rung the gain is over the shared network, if its result (number and rung are both
    REFERENCE) is among them, else over 0.
    """
    known = {(r.configuration, r.rung): r for r in results}
    shared = known.get((REFERENCE, REFERENCE))

    def gain_per_second(job: JobKey) -> float:
        number, rung = job
        last, before = known[number, rung - 1], known.get((number, rung - 2), shared)
        start = before.score if before and before.score is not None else 0.0
        return (last.score - start) / max(last.seconds, SHORTEST)

    # max keeps the first of equal ones, which is that of the highest rung.
    return max(_promotable(results, rungs, eta, running), key=gain_per_second, default=None)


PROMOTIONS: dict[str, Promotion] = {"asha": next_job, "cost_aware": cost_aware}


def _promotable(
    results: Sequence[Result], rungs: int, eta: int, running: Collection[JobKey]
) -> Iterator[JobKey]:
    for rung in reversed(range(rungs - 1)):
        here = [result for result in results if result.rung == rung]
        for result in _best_first(here)[: len(here) // eta]:
            if _waits(result, results, running):
                yield result.configuration, rung + 1


def last_resort(results: Sequence[Result], rungs: int) -> JobKey | None:
    """When nothing else is left to do: the best that waits, until one has reached the top."""
    if any(result.rung == rungs - 1 and result.score is not None for result in results):
        return None
    for rung in reversed(range(rungs - 1)):
        for result in _best_first([result for result in results if result.rung == rung]):
            if _waits(result, results, ()):
                return result.configuration, rung + 1
    return None


def _best_first(results: Sequence[Result]) -> list[Result]:
    """Those with a score, the best first."""
    scored = [result for result in results if result.score is not None]
    return sorted(scored, key=lambda result: (-result.score, result.configuration))


def _waits(result: Result, results: Sequence[Result], running: Collection[JobKey]) -> bool:
    higher = [(r.configuration, r.rung) for r in results] + list(running)
    return not any(n == result.configuration and r > result.rung for n, r in higher)


def expected_jobs(trials: int, rungs: int, eta: int) -> list[int]:
    """Jobs per rung if no early promotion turns out wrong."""
    counts = [trials]
    for _ in range(rungs - 1):
        counts.append(max(1, counts[-1] // eta))
    return counts
