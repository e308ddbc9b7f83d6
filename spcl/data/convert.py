"""Raw dataset files -> shards: plan, check every file, write, finish.

`convert` hands one task per shard (`shard_task`) to any map-like callable, and moves the result
into place in one step, so that its output is the same to the byte for any number of workers.
Finished shards of a killed conversion are taken up again.  Not here: what may be asked for
(`request`), what is checked (`listing`, `checks`, `judgement`) and the file format (`shards`).
"""

import contextlib
import datetime
import shutil
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spcl.data import output
from spcl.data.checks import Job, read_sample
from spcl.data.datasets import DATASETS, Dataset
from spcl.data.judgement import ENOUGH, Census, compare, golden_problem, judge, rare_classes
from spcl.data.listing import Sample, list_samples
from spcl.data.manifest import INDEX, MANIFEST, read_manifest, write_manifest
from spcl.data.problems import ERROR, Problem
from spcl.data.request import Options, checked_name, inputs_of, job_of, release_of
from spcl.data.shard_task import (
    Done,
    Task,
    made_before,
    plan_tasks,
    write_task,
)
from spcl.errors import DataError
from spcl.store import atomic, records

LOOKS = 8  # samples probed first: a set of which all of these are unusable is told at once
SHOWN = 3  # problems named in an error line; the report names all
DISK_MARGIN = 1.05  # labels are re-encoded and the index is added
PART = ".{}.part"  # the folder beside the result where shards are made
USUAL = Options()
MapTasks = Callable[[Callable[[Task], Done], list[Task]], Iterable[Done]]


def convert(
    dataset: str | Dataset,
    root: Path,
    out: Path,
    *,
    split: str,
    options: Options = USUAL,
    map_tasks: MapTasks = map,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Convert one split into the folder `out`; returns the report.

    dataset    a name of DATASETS, or what a description of the user's own files says
    map_tasks  like `map`, in any order: where the shards are written
    progress   called with the number of samples done and of all

    Does nothing when `out` already holds the same names and sizes, converted in the same way.
    DataError, and nothing written but a report beside `out`, when any file is unusable; shards that
    were finished stay beside it, hidden, and are taken up by the next try.
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    source = DATASETS[dataset] if isinstance(dataset, str) else dataset
    name = checked_name(source, split, options)
    started = datetime.datetime.now(datetime.UTC)
    listed = list_samples(source, root, source.splits[split], options.on_mismatch, options.only)
    job = job_of(source, split, name, root, listed, options)
    inputs = inputs_of(job, listed.samples, options)
    release = release_of(source, split, name, options)
    work = _Work(job, listed.samples, listed.problems, inputs, out, options, release)
    report = {
        "schema": output.REPORT_SCHEMA,
        "name": job.metadata["name"],
        "root": str(listed.root),
        "out": str(out),
        "host": socket.gethostname(),
        "started": started.isoformat(timespec="seconds"),
        "samples": len(listed.samples),
    }
    with atomic.writing(out), output.only_writer(out):
        if not options.overwrite and output.is_done(out, inputs):
            return {**report, "status": "unchanged", **_as_before(out, options.golden)}
        if options.overwrite:
            output.check_replaceable(out)
        return _done_or_failed(work, report, started, map_tasks, progress)


@dataclass(frozen=True)
class _Work:
    """One conversion: of what, and where to; `problems` grows as they are found."""

    job: Job
    samples: list[Sample]
    problems: list[Problem]
    inputs: dict[str, Any]
    out: Path
    options: Options
    release: Any

    @property
    def part(self) -> Path:
        return self.out.with_name(PART.format(self.out.name))


def _as_before(out: Path, golden: bool) -> dict[str, Any]:
    """What is reported of a result that is there already; DataError if it had to be golden."""
    manifest = read_manifest(out)
    old = _old_report(out / output.REPORT) if golden else {}
    wrong = golden_problem(old.get("differs_from_release", {}))
    if golden and wrong:
        raise DataError(f"{out}: {wrong.message}")
    return output.summary(manifest)


def _done_or_failed(
    work: _Work,
    report: dict[str, Any],
    started: datetime.datetime,
    map_tasks: MapTasks,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """The report, which lies in the result, or, with the DataError that it explains, beside it."""
    source, out = work.job.dataset, work.out
    failed = out.with_name(f"{out.name}.{output.REPORT}")
    try:
        report |= {"status": "done", **_make(work, map_tasks, progress)}
        report |= output.clock(started)
        atomic.write_json(work.part / output.REPORT, report)
        with output.replacing(out, work.part):
            pass
        failed.unlink(missing_ok=True)
    except _Unusable as stop:
        report |= {"status": "failed", **_findings(work.problems, source)} | output.clock(started)
        atomic.write_json(failed, report)
        name = work.job.metadata["name"]
        raise DataError(_failure(name, str(stop), work.problems, failed)) from None
    finally:
        with contextlib.suppress(OSError):
            work.part.rmdir()  # if nothing was finished
    return report


def _make(
    work: _Work, map_tasks: MapTasks, progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    """Write everything but the report; what the report says of it."""
    part, samples = work.part, work.samples
    atomic.mkdir(part)
    tasks = plan_tasks(work.job, part, samples, work.options.shard_bytes)
    _check_space(samples, work.out, part)
    _check_some(work.job, samples, work.problems)
    done, resumed = _write(tasks, len(samples), map_tasks, progress)
    manifest, differing = _finish(work, done)
    return {
        **output.summary(manifest),
        **_findings(work.problems, work.job.dataset),
        "shards_from_before": resumed,
        "differs_from_release": differing,
    }


def _old_report(path: Path) -> dict[str, Any]:
    """What a conversion that is there has reported; {} where there is none."""
    try:
        return records.read(path, "convert again with --overwrite")
    except records.MissingRecord:
        return {}


class _Unusable(Exception):
    """Some check found an error; the problems say which."""


def _write(
    tasks: list[Task],
    total: int,
    map_tasks: MapTasks,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Done], int]:
    """Write all shards, in order; also how many were there from before."""
    _clear(Path(tasks[0].folder), {path.name for task in tasks for path in (task.path, task.state)})
    finished = [done for task in tasks if (done := made_before(task))]
    there = {done.shard for done in finished}
    results = iter(map_tasks(write_task, [task for task in tasks if task.shard not in there]))
    try:
        for done in results:
            finished.append(done)
            if progress:
                progress(sum(one.census.read for one in finished), total)
    finally:
        if hasattr(results, "close"):
            results.close()  # remote tasks stop before the lock is given back
    return sorted(finished, key=lambda done: done.shard), len(there)


def _clear(folder: Path, known: set[str]) -> None:
    """Remove what a killed conversion left half-written, or what was planned otherwise."""
    for path in folder.iterdir():
        if path.name not in known:
            path.unlink()


def _finish(work: _Work, finished: list[Done]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Judge the whole, then write index and manifest.  Problems come in order of the samples.

    Returns the manifest and what differs from the published release.
    """
    job, problems, folder = work.job, work.problems, work.part
    census = Census(job.num_classes)
    for done in finished:
        problems.extend(done.problems)
        census.merge(done.census)
    problems[:] = judge(job, census, problems)
    if any(problem.severity == ERROR for problem in problems):
        raise _Unusable
    kept = [(done.entry, done.rows) for done in finished if done.rows]
    if not kept:
        problems.append(
            Problem("nothing_left", ERROR, (), "every sample was left out; nothing to write")
        )
        raise _Unusable
    problems += rare_classes(job, [row for _, rows in kept for row in rows])
    manifest = write_manifest(folder, job.metadata, work.inputs, kept)
    differing = compare(work.release, manifest, census)
    if work.options.golden and (wrong := golden_problem(differing)):
        (folder / MANIFEST).unlink()
        problems.append(wrong)
        raise _Unusable
    _clear(folder, {MANIFEST, INDEX, *(entry["name"] for entry, _ in kept)})
    return manifest, differing


def _check_some(job: Job, samples: list[Sample], problems: list[Problem]) -> None:
    """Stop before the work when the first look finds nothing usable: files of a wrong kind."""
    some = samples[:: -(-len(samples) // ENOUGH)]
    census, found = Census(job.num_classes), []
    first = some[:LOOKS]
    bad = 0
    for sample in some:
        if census.read == len(first) and bad == len(first):
            break
        read = read_sample(job, sample)
        census.add(read)
        found += read.problems
        bad += any(problem.severity == ERROR for problem in read.problems)
    if bad == census.read:
        problems.extend(judge(job, census, found))
        raise _Unusable(f"none of {census.read} samples looked at is usable: ")
    wrong = [p for p in judge(job, census, []) if p.check in ("wrong_flavour", "one_class_labels")]
    if wrong:
        problems.extend(wrong)
        raise _Unusable


def _check_space(samples: list[Sample], out: Path, part: Path) -> None:
    needed = DISK_MARGIN * sum(sample.bytes for sample in samples)
    needed -= sum(path.stat().st_size for path in part.iterdir())
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise DataError(
            f"{out} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there; "
            f"write elsewhere with --out"
        )


def _findings(problems: list[Problem], source: Dataset) -> dict[str, Any]:
    """Counts and files of each check that fired, for the report."""
    checks: dict[str, dict[str, Any]] = {}
    for problem in problems:
        check = checks.setdefault(
            problem.check,
            {"severity": problem.severity, "count": 0, "files": [], "messages": []},
        )
        check["count"] += len(problem.files)
        check["files"] += problem.files
        check["messages"].append(problem.message)
        if problem.check in source.hints:
            check["known"] = source.hints[problem.check]
    return {"checks": checks}


def _failure(name: str, first: str, problems: list[Problem], report: Path) -> str:
    """One line: the first few errors, how many there are, where all are listed."""
    errors = [problem.message for problem in problems if problem.severity == ERROR]
    more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    shown = "; ".join(errors[:SHOWN])
    return f"{name} was not converted: {first}{shown}{more} (all are listed in {report})"
