"""What a search would cost: jobs, steps, memory, and device-hours where a step is timed."""

from collections.abc import Mapping, Sequence

from spcl.artefacts import ArtefactStore
from spcl.data.catalog import expect_data
from spcl.data.planned import Planned, count_classes, last_lines
from spcl.devices import set_up_torch
from spcl.dry_run import key_columns, mebibytes, memory
from spcl.stages import plan
from spcl.timing import HOUR, UNTIMED, step_seconds, timed_on
from tune.jobs import touched
from tune.request import Search
from tune.rungs import added_steps, at_rung, expected_jobs


def describe(search: Search, missing: Sequence[Planned], timed: bool) -> str:
    """Space, rungs, jobs, steps, memory, shared stages; device-hours if `timed`; what is missing.

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

    stages = plan(closed, {role: s.fingerprint for role, s in splits.items()})
    store = ArtefactStore(search.storage)
    lines += ["", f"{'shared stage':<34}{'key':<18}{'stored':<8}"]
    for stage in stages:
        if not touched(stage, search.shared):
            lines.append(f"{stage.title:<34}{key_columns(stage, store)}")

    classes = count_classes(splits.values())
    need: dict[str, int] = {}  # by stage, as `seconds`; both empty if the classes are unknown
    seconds: dict[str, float] = {}
    for name in closed.stages if classes else ():
        need[name] = memory(closed, name, closed.batch_of(name) // search.devices, classes)
    if timed and classes:
        set_up_torch(config.train)
        seconds = {n: step_seconds(closed, n, classes, search.devices) for n in closed.stages}

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
    shared = {
        stage.method: config.of(stage.method).steps
        for stage in stages
        if stage.method in search.shared and not (stage.has_key and store.has(stage))
    }
    lines.append(f"{'shared':<24}{'':>6}{'':>13}{costs(shared, 1)}")
    parts = [*zip(rungs, jobs, strict=True), (shared, 1)]
    if seconds:
        total = sum(count * hours(steps) for steps, count in parts)
        told = f"{total:.2f} device-hours of training {timed_on(config)}; loading and validation"
        told += " come on top"
    else:
        total = sum(count * sum(steps.values()) for steps, count in parts)
        told = f"{total} steps of training; {UNTIMED}"
    lines.append(f"{sum(jobs)} jobs, {told}; nothing was started")
    return "\n".join([*lines, *last_lines(missing, search.data)])
