"""The ladder of a search and who climbs it: pure functions of what is known.

A *rung* is a prefix of the recipe.  The first stage that a parameter touches is climbed at a
quarter, half and all of its steps, every later stage at once; what comes before is shared.  The
schedule's horizon stays: a configuration at a rung is one that was stopped there.

The *reference* is the network that the scores of all configurations are measured against: the one
that they share, which is where they start.  Where a parameter touches the first stage (always so
in a recipe of one stage) they share none and start from `model.weights`; the reference is then a
source-only stage beside the recipe, and a rung is measured against it after as many steps.

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
from tune.searching.experiment import REFERENCE

if TYPE_CHECKING:
    from spcl.configuration.config import Config

SHORTEST = 1e-9  # seconds
FRACTIONS = (Fraction(1, 4), Fraction(1, 2), Fraction(1))  # of the first stage that is touched
SOURCE_ONLY = "source_only"  # the method of a reference that is no stage of the recipe
SAME = ("dataset", "split", "size", "holdout")  # of the domains: what validators see


@dataclass(frozen=True)
class Rung:
    name: str
    steps: dict[str, int]  # stage -> steps, in order; the shared stages included

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.steps)


def shared_stages(config: Config, keys: Collection[str]) -> tuple[str, ...]:
    """The stages before the first one that a parameter touches; none if it is the first.

    ConfigError where no stage is touched, or where networks could not be scored alike.
    """
    _check_scored_alike(keys)
    touched = [index for key in keys for index in _touched(config, key)]
    if not touched:
        raise ConfigError(
            f"a space must touch a stage of {list(config.stages)}, but it holds {', '.join(keys)}"
        )
    return config.stages[: min(touched)]


def _check_scored_alike(keys: Collection[str]) -> None:
    """One reference, one ensemble and one audit judge all networks of a search."""
    for key in keys:
        section, _, name = key.partition(".")
        if section == "model" or (section in ("source", "target") and name in SAME):
            raise ConfigError(
                f"a search compares networks of one model on the same images, so its space "
                f"can't hold {key}; search once for each value, given as {key}=VALUE"
            )


def reference_stages(config: Config, keys: Collection[str]) -> tuple[str, ...]:
    """The training stages of the reference: the shared ones, else a source-only stage."""
    return shared_stages(config, keys) or (SOURCE_ONLY,)


def reference_steps(config: Config, rungs: Sequence[Rung]) -> tuple[int, ...]:
    """Of a source-only reference, the steps after which each rung is measured against it.

    As many as a configuration has trained in all, at most its own: who has trained a quarter must
    not know the source as well as who has trained whole.
    """
    whole = config.of(SOURCE_ONLY).steps
    return tuple(min(sum(rung.steps.values()), whole) for rung in rungs)


def references(config: Config, keys: Collection[str]) -> tuple[Config, ...]:
    """Recipes that the reference's job runs in turn, unable to open a label of the target.

    The last one holds the reference whole.  A source-only stage is that of the default
    configuration, so that its key is an ordinary one; it is stored after fewer steps first, each
    the beginning of the next.  ConfigError where its settings, which no stage of the recipe need
    read, do not go together.
    """
    rungs = ladder(config, keys)
    if shared_stages(config, keys):
        return (at_rung(config, rungs[0]),)  # with the passes over what is shared
    whole = config.of(SOURCE_ONLY).steps
    ends = sorted({*reference_steps(config, rungs), whole})
    found = tuple(at_rung(config, Rung(SOURCE_ONLY, {SOURCE_ONLY: steps})) for steps in ends)
    found[-1].check()
    return found


def _touched(config: Config, key: str) -> list[int]:
    """Indices of the stages that read a setting."""
    section = key.split(".")[0]
    own = [i for i, name in enumerate(config.stages) if section in config.sections_of(name)]
    return own or [0]  # data, network, optimisation: everything


def ladder(config: Config, keys: Collection[str]) -> tuple[Rung, ...]:
    """The rungs of a recipe, lowest first."""
    first = len(shared_stages(config, keys))
    steps = {name: config.of(name).steps for name in config.stages}
    before = {name: steps[name] for name in config.stages[:first]}
    touched, *later = config.stages[first:]
    rungs: list[Rung] = []
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
    from spcl.configuration.sections import NO_DATASET  # imports torch

    closed = dataclasses.replace(config.evaluation, dataset=NO_DATASET)
    return dataclasses.replace(
        config.with_sections(sections), stages=rung.stages, evaluation=closed
    )


def added_steps(rungs: Sequence[Rung], rung: int, shared: Collection[str]) -> dict[str, int]:
    """Steps of a job by stage: from the rung below (what is shared, if any) to this one."""
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
    REFERENCE) is among them, else over 0: nobody has started from a reference of its own.
    """
    known = {(r.configuration, r.rung): r for r in results}
    shared = known.get((REFERENCE, REFERENCE))

    def gain_per_second(job: JobKey) -> float:
        number, rung = job
        last, before = known[number, rung - 1], known.get((number, rung - 2), shared)
        start = before.score if before and before.score is not None else 0.0
        assert last.score is not None, "only what has a score is promoted"
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
    scored = [(-result.score, result) for result in results if result.score is not None]
    return [r for _, r in sorted(scored, key=lambda one: (one[0], one[1].configuration))]


def _waits(result: Result, results: Sequence[Result], running: Collection[JobKey]) -> bool:
    higher = [(r.configuration, r.rung) for r in results] + list(running)
    return not any(n == result.configuration and r > result.rung for n, r in higher)


def expected_jobs(trials: int, rungs: int, eta: int) -> list[int]:
    """Jobs per rung if no early promotion turns out wrong."""
    counts = [trials]
    for _ in range(rungs - 1):
        counts.append(max(1, counts[-1] // eta))
    return counts
