"""Raw dataset files -> shards: plan, check every file, write, finish.

`convert` plans shard boundaries from sorted names and file sizes, hands one task per shard to any
map-like callable, and moves the result into place in one step, so that its output is the same to
the byte for any number of workers.  Not here: what is checked (`spcl.data.listing`,
`spcl.data.checks`) and the file format (`spcl.data.shards`).
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spcl import atomic
from spcl.data import labels, shards
from spcl.data.checks import Job, judge_label_space, read_sample
from spcl.data.datasets import DATASETS, Dataset
from spcl.data.labels import IGNORE_INDEX, NUM_CLASSES
from spcl.data.listing import ERROR, SHOWN_NAMES, Problem, Sample, list_samples
from spcl.errors import DataError

CONVERTER_VERSION = 1  # raise when the same files give other bytes
SHARD_BYTES = 256 * 2**20
MIN_SHARDS = 8  # work for 8 processes, also where a split is small
LOOKS = 8  # samples checked before the work starts
SHOWN = 3  # problems named in an error line; the report names all
DISK_MARGIN = 1.05  # labels are re-encoded and the index is added

REPORT = "conversion_report.json"
REPORT_SCHEMA = 1


@dataclass(frozen=True)
class Task:
    """One shard to write."""

    job: Job
    folder: str
    shard: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Done:
    """One shard written: its manifest entry and index rows, and what the checks found."""

    shard: int
    read: int
    entry: dict[str, Any]
    rows: list[dict[str, Any]]
    problems: list[Problem]


def plan_shards(sizes: list[int], shard_bytes: int) -> list[range]:
    """Cut samples of these sizes into contiguous shards of about `shard_bytes`, none empty."""
    total = sum(sizes)
    count = min(len(sizes), max(MIN_SHARDS, -(-total // shard_bytes)))
    bounds, filled, start = [], 0, 0
    for shard in range(count):
        last = len(sizes) - (count - 1 - shard)  # leaves one sample for each shard to come
        end = start + 1
        filled += sizes[start]
        while end < last and (shard == count - 1 or filled * count < total * (shard + 1)):
            filled += sizes[end]
            end += 1
        bounds.append(range(start, end))
        start = end
    return bounds


def write_task(task: Task) -> Done:
    """Check the samples of one shard and write those that pass.  Safe to run again."""
    problems: list[Problem] = []

    def rows() -> Iterator[dict[str, Any]]:
        for sample in task.samples:
            row, found = read_sample(task.job, sample)
            problems.extend(found)
            if row is not None:
                yield row

    path = Path(task.folder, f"shard-{task.shard:05d}.arrow")
    entry, index = shards.write_shard(path, task.job.metadata, rows())
    return Done(task.shard, len(task.samples), entry, index, problems)


def convert(
    dataset: str,
    root: Path,
    out: Path,
    *,
    split: str,
    name: str | None = None,
    map_tasks: Callable[[Callable[[Task], Done], list[Task]], Iterable[Done]] = map,
    on_mismatch: str = "skip",
    drop_blank: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Convert one split into the folder `out`; returns the report.

    name         stands for the dataset's name in the result, as for a set in its format
    map_tasks    like `map`, in any order: where the shards are written
    on_mismatch  "skip" leaves out pairs of unequal size and images or labels without partner;
                 "error" makes them errors
    overwrite    replace what an earlier conversion wrote to `out`
    progress     called with the number of samples done and of all

    Does nothing when `out` already holds the same names and sizes, converted in the same way.
    DataError, and nothing written but a report beside `out`, when any file is unusable.
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    source = DATASETS[dataset]
    if split not in source.splits:
        raise DataError(f"{dataset} has no split {split!r}; it has {', '.join(source.splits)}")
    name = name or dataset
    if not re.fullmatch(r"[a-z0-9_-]+(/[a-z0-9_-]+)*", name):
        raise DataError(f"a name is of lower-case letters, digits, _, - and /; got {name!r}")
    started = datetime.datetime.now(datetime.UTC)
    samples, kind, problems = list_samples(source, root, source.splits[split], on_mismatch)
    job = Job(
        dataset=dataset,
        kind=kind,
        root=str(root),
        prefix=name + source.splits[split].prefix.removeprefix(dataset),
        metadata=_metadata(source, split, name, kind),
        on_mismatch=on_mismatch,
        drop_blank=drop_blank,
    )
    inputs = {
        "converter_version": CONVERTER_VERSION,
        "name": job.metadata["name"],
        "files": len(samples),
        "names_and_sizes": hashlib.sha256(json.dumps(samples).encode()).hexdigest(),
        "on_mismatch": on_mismatch,
        "drop_blank": drop_blank,
        "shard_bytes": shard_bytes,
    }
    report = {
        "schema": REPORT_SCHEMA,
        "name": job.metadata["name"],
        "root": str(root),
        "out": str(out),
        "host": socket.gethostname(),
        "started": started.isoformat(timespec="seconds"),
        "samples": len(samples),
    }
    failed = out.with_name(f"{out.name}.{REPORT}")
    with _only_writer(out):
        if not overwrite and _is_done(out, inputs):
            manifest = shards.read_manifest(out)
            return {**report, "status": "unchanged", **_summary(manifest)}
        if overwrite:
            _check_replaceable(out)
        try:
            _check_space(samples, out)
            _check_some(job, samples, problems)
            with _replacing(out) as folder:
                manifest = _write(
                    job, samples, folder, inputs, problems, map_tasks, progress, shard_bytes
                )
                report |= {"status": "done", **_summary(manifest), **_findings(problems, source)}
                report |= _clock(started)
                atomic.write_json(folder / REPORT, report)
            failed.unlink(missing_ok=True)
        except _Unusable as stop:
            report |= {"status": "failed", **_findings(problems, source), **_clock(started)}
            atomic.write_json(failed, report)
            raise DataError(_failure(f"{name}/{split}", str(stop), problems, failed)) from None
    return report


class _Unusable(Exception):
    """Some check found an error; the problems say which."""


def _metadata(source: Dataset, split: str, name: str, kind: int | None) -> dict[str, Any]:
    """What is known before the first file is opened; goes into every shard."""
    label_files = source.labels[kind] if kind is not None else None
    where = source.splits[split]
    return {
        "schema_version": shards.SCHEMA_VERSION,
        "name": f"{name}/{split}",
        "dataset": name,
        "split": split,
        "domain_role": where.role,
        "labelled": kind is not None,
        "format": source.name,
        "converter": "spcl.data.convert",
        "converter_version": CONVERTER_VERSION,
        "label_space": f"cityscapes{NUM_CLASSES}",
        "class_names": list(labels.CLASS_NAMES),
        "palette": labels.TRAIN_ID_COLORS.tolist(),
        "ignore_index": IGNORE_INDEX,
        "tail_classes": list(labels.TAIL_CLASSES),
        "absent_train_ids": [],
        "id_map": {str(raw): to for raw, to in label_files.ids.items()} if label_files else None,
        "raw_encoding": f"{label_files.encoding} {label_files.space}" if label_files else None,
        "split_source": {"images": where.images, "labels": where.labels, "list": None},
        "licence": source.licence,
        "redistribution": source.redistribution,
        "view": None,  # not resized, not re-encoded
    }


def _write(
    job: Job,
    samples: list[Sample],
    folder: Path,
    inputs: dict[str, Any],
    problems: list[Problem],
    map_tasks: Callable,
    progress: Callable[[int, int], None] | None,
    shard_bytes: int,
) -> dict[str, Any]:
    """Write all shards, then index and manifest.  Problems are added in order of the samples."""
    plan = plan_shards([sample.image_bytes + sample.label_bytes for sample in samples], shard_bytes)
    tasks = [
        Task(job, str(folder), number, tuple(samples[bounds.start : bounds.stop]))
        for number, bounds in enumerate(plan)
    ]
    finished: list[Done] = []
    results = iter(map_tasks(write_task, tasks))
    try:
        for done in results:
            finished.append(done)
            if progress:
                progress(sum(one.read for one in finished), len(samples))
    finally:
        if hasattr(results, "close"):
            results.close()  # remote tasks stop before their folder goes
    finished.sort(key=lambda done: done.shard)
    for done in finished:
        problems.extend(done.problems)
    rows = [row for done in finished for row in done.rows]
    problems[:] = judge_label_space(job, len(samples), rows, problems)
    if any(problem.severity == ERROR for problem in problems):
        raise _Unusable
    for done in finished:
        if not done.rows:  # every sample of this shard was left out
            (folder / done.entry["name"]).unlink()
    kept = [(done.entry, done.rows) for done in finished if done.rows]
    if not kept:
        problems.append(
            Problem("nothing_left", ERROR, (), "every sample was left out; nothing to write")
        )
        raise _Unusable
    return shards.write_manifest(folder, job.metadata, inputs, kept)


def _check_some(job: Job, samples: list[Sample], problems: list[Problem]) -> None:
    """Stop before the work when the first look finds nothing usable: files of a wrong kind."""
    some = samples[:: -(-len(samples) // LOOKS)]
    looks = [read_sample(job, sample)[1] for sample in some]
    if all(any(problem.severity == ERROR for problem in look) for look in looks):
        problems.extend(problem for look in looks for problem in look)
        problems[:] = judge_label_space(job, len(some), [], problems)
        raise _Unusable(f"none of {len(some)} samples looked at is usable: ")


def _check_space(samples: list[Sample], out: Path) -> None:
    needed = int(DISK_MARGIN * sum(sample.image_bytes + sample.label_bytes for sample in samples))
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise DataError(
            f"{out} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there; "
            f"write elsewhere with --out"
        )


def _is_done(out: Path, inputs: dict[str, Any]) -> bool:
    """Whether `out` already holds this conversion; DataError if it holds something else."""
    if not out.is_dir() or not any(out.iterdir()):
        return False
    if not (out / shards.MANIFEST).exists():
        raise DataError(f"{out} holds files but no shards; empty it or write elsewhere with --out")
    shards.ShardSet(out)
    found = shards.read_manifest(out)["inputs"]
    other = [key for key in inputs if found.get(key) != inputs[key]]
    if other:
        differing = ", ".join(
            f"{key} {found.get(key)} there, {inputs[key]} here"
            for key in other
            if key != "names_and_sizes"  # two hashes tell nobody anything
        )
        differing = differing or "the same number of files, of other names or sizes"
        raise DataError(
            f"{out} holds shards made from other inputs ({differing}); write elsewhere with --out "
            f"or replace them with --overwrite"
        )
    return True


def _check_replaceable(out: Path) -> None:
    if out.exists() and not (out / shards.MANIFEST).exists() and any(out.iterdir()):
        raise DataError(f"{out} holds files that are not shards; --overwrite will not remove them")


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder that takes the place of `out`, old contents included, if the block ends well."""
    old = out.with_name(f".{out.name}.old.tmp")
    try:
        with atomic.folder(out) as folder:
            yield folder
            if out.exists():
                os.rename(out, old)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Hold the folder around `out`, and clear what a killed conversion left there.

    Two processes that want the same split on first use: the second waits and finds it done.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        if _lock(handle, out.parent):
            for left in out.parent.glob(f".{out.name}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)  # also unlocks


def _lock(handle: int, folder: Path) -> bool:
    """Wait for the lock; False on a file system that knows none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another conversion in {folder}", file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _clock(started: datetime.datetime) -> dict[str, Any]:
    finished = datetime.datetime.now(datetime.UTC)
    return {
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - started).total_seconds(), 1),
    }


def _summary(manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        "converted": manifest["rows"],
        "shards": len(manifest["shards"]),
        "bytes": manifest["bytes"],
        "fingerprint": manifest["fingerprint"],
        "class_images": manifest["class_images"],
        "image_sizes": manifest["image_sizes"],
    }


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


def verify(folder: Path) -> dict[str, Any]:
    """Hash every file of a converted split again; DataError naming each that differs.

    Returns the manifest.
    """
    folder = Path(folder).absolute()
    manifest = shards.read_manifest(folder)
    damaged = []
    for entry in (*manifest["shards"], manifest["index"]):
        path = folder / entry["name"]
        if not path.exists():
            damaged.append(f"{entry['name']} is missing")
        elif path.stat().st_size != entry["bytes"]:
            damaged.append(f"{entry['name']} has {path.stat().st_size} of {entry['bytes']} bytes")
        elif shards.file_sha256(path) != entry["sha256"]:
            damaged.append(f"{entry['name']} has another sha256 than when it was written")
    if damaged:
        shown = "; ".join(damaged[:SHOWN_NAMES])
        raise DataError(
            f"{len(damaged)} files of {folder} are damaged: {shown}; write the split again with: "
            f"{shards.ingest_command(folder, manifest)}"
        )
    return manifest
