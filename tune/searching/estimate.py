"""What a search would cost: jobs, steps, memory, and device-hours where a step is timed."""

from collections.abc import Mapping, Sequence

from spcl.dry_run import key_columns, mebibytes
from spcl.engine.artefacts import ArtefactStore
from spcl.engine.devices import set_up_torch
from spcl.engine.footprint import memory
from spcl.engine.inputs import expect_data
from spcl.engine.planned import Planned, count_classes, last_lines
from spcl.engine.stages import plan
from spcl.engine.timing import HOUR, UNTIMED, step_seconds, timed_on
from tune.searching.jobs import touched
from tune.searching.request import Search
from tune.searching.rungs import SOURCE_ONLY, added_steps, at_rung, expected_jobs


def describe(search: Search, missing: Sequence[Planned], timed: bool) -> str:
    """Space, rungs, jobs, steps, memory, reference; device-hours if `timed`; what is missing.

    missing  splits that the search needs and that are not there
    """
    config = search.config
    closed = at_rung(config, search.rungs[-1])
    splits = expect_data(closed, search.data)
    budget = "?" if search.label_budget is None else search.label_budget
    lines = [
        f"search {search.name} in {search.folder}",
        f"objective {search.objective}, "
        f"{budget} labelled target images; {search.trials} configurations, "
        f"sampler {search.sampler}, seed {search.seed}",
    ]
    lines += [f"{role:<11}{s}" for role, s in splits.items() if isinstance(s, Planned)]
    lines += ["", f"{'parameter':<34}{'default':>12}   searched"]
    defaults = search.space.defaults(config)
    for p in search.space.parameters:
        span = list(p.choices) or f"[{p.low:g}, {p.high:g}]{' log' if p.log else ''}"
        note = f" when {dict(p.when)}" if p.when else ""
        value = defaults.get(p.name, "-")
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"{p.name:<34}{shown:>12}   {span}{note}")

    data = {role: split.fingerprint for role, split in splits.items()}
    store = ArtefactStore(search.storage)
    what = "shared" if search.shared else "reference"
    lines += ["", f"{what + ' stage':<34}{'key':<18}{'stored':<8}"]
    lines += [
        f"{stage.title:<34}{key_columns(stage, store)}"
        for stage in plan(search.references[-1], data)
        if not touched(stage, search.reference_stages)
    ]
    if search.reference_steps:
        after = ", ".join(map(str, search.reference_steps))
        lines.append(f"  each rung is measured against it after as many steps: {after}")

    classes = count_classes(splits.values())
    need: dict[str, int] = {}  # by stage, as `seconds`; both empty if the classes are unknown
    seconds: dict[str, float] = {}
    trained = dict.fromkeys([*search.reference_stages, *closed.stages])
    if classes is not None:
        for name in trained:
            batch = closed.batch_of(name) // search.devices
            need[name] = memory(closed, name, batch, classes, search.devices)
    if timed and classes is not None:
        set_up_torch(config.train)
        seconds = {n: step_seconds(closed, n, classes, search.devices) for n in trained}

    def hours(steps: Mapping[str, int]) -> float:
        return sum(steps[n] * seconds.get(n, 0.0) for n in steps) * search.devices / HOUR

    def costs(steps: Mapping[str, int], jobs: int) -> str:
        """The last columns of a row; the memory is that of the stage that needs most."""
        spent = f"{jobs * hours(steps):>14.2f}" if seconds else ""
        if not steps:  # all is stored
            return spent
        most = max(need[n] for n in steps if steps[n]) if need else None
        return f"{spent}{mebibytes(most):>12}"

    head = f"{'device-hours':>14}" if seconds else ""
    lines += ["", f"{'rung':<24}{'jobs':>6}{'steps a job':>13}{head}{'MiB/worker':>12}"]
    jobs = expected_jobs(search.trials, len(search.rungs), search.eta)
    rungs = [added_steps(search.rungs, index, search.shared) for index in range(len(jobs))]
    for rung, steps, count in zip(search.rungs, rungs, jobs, strict=True):
        lines.append(f"{rung.name:<24}{count:>6}{sum(steps.values()):>13}{costs(steps, count)}")
    first = _to_make(search, data, store)
    lines.append(f"{what:<24}{'':>6}{'':>13}{costs(first, 1)}")
    parts = [*zip(rungs, jobs, strict=True), (first, 1)]
    if search.starts_as_reference:
        parts += [(_spared(search), -1)]
        lines.append(
            f"the default configuration's {SOURCE_ONLY} is the reference's: of each rung that it "
            "climbs, one job less trains"
        )
    if seconds:
        total = sum(count * hours(steps) for steps, count in parts)
        told = f"{total:.2f} device-hours of training {timed_on(config)}; loading and validation"
        told += " come on top"
    else:
        total = sum(count * sum(steps.values()) for steps, count in parts)
        told = f"{total} steps of training; {UNTIMED}"
    lines.append(f"{sum(jobs)} jobs, {told}; nothing was started")
    return "\n".join([*lines, *last_lines(missing, search.data)])


def _spared(search: Search) -> dict[str, int]:
    """Steps by stage that the default configuration takes from the reference, as far as it is sure
    to climb: to the first rung, and through all if nobody else climbs.
    """
    sure = len(search.rungs) if search.trials == 1 else 1
    steps = [added_steps(search.rungs, rung, search.shared) for rung in range(sure)]
    return {SOURCE_ONLY: sum(added[SOURCE_ONLY] for added in steps)}


def _to_make(
    search: Search, data: Mapping[str, str | None], store: ArtefactStore
) -> dict[str, int]:
    """Steps by stage of what the reference job has to train: all but what is stored.

    A source-only stage is stored after several numbers of steps, each the beginning of the next.
    """
    steps: dict[str, int] = {}
    for recipe in search.references:
        for stage in plan(recipe, data):
            made = stage.method in search.reference_stages
            if made and not (stage.has_key and store.has(stage)):
                steps[stage.method] = recipe.of(stage.method).steps
    return steps
