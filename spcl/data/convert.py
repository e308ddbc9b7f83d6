"""Raw dataset files -> shards: plan, check every file, write, finish.

`convert` plans shard boundaries from sorted names and file sizes, hands one task per shard to any
map-like callable, and moves the result into place in one step, so that its output is the same to
the byte for any number of workers.  Finished shards of a killed conversion are taken up again.
Not here: what is checked (`listing`, `checks`, `judgement`) and the file format (`shards`).
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spcl import atomic, records
from spcl.data import output, shards
from spcl.data.checks import Job, read_sample
from spcl.data.datasets import DATASETS, Dataset, LabelFiles, terms_of
from spcl.data.encodings import COLOR, ENCODINGS
from spcl.data.judgement import ENOUGH, Census, compare, golden_problem, judge, rare_classes
from spcl.data.labels import IGNORE_INDEX
from spcl.data.layouts import SHOWN_NAMES
from spcl.data.listing import ERROR, Problem, Sample, list_samples
from spcl.data.pictures import MAX_PIXELS
from spcl.data.streets import trees as streets
from spcl.errors import DataError
from spcl.settings import choose, digest

CONVERTER_VERSION = 2  # raise when the same files give other bytes
SHARD_BYTES = 256 * 2**20
LOOKS = 8  # samples probed first: a set of which all of these are unusable is told at once
MIN_SHARDS = 8  # work for 8 processes, also where a split is small
SHOWN = 3  # problems named in an error line; the report names all
DISK_MARGIN = 1.05  # labels are re-encoded and the index is added

PART = ".{}.part"  # the folder beside the result where shards are made
STATE = "{}.json"  # beside a finished shard there


@dataclass(frozen=True)
class Task:
    """One shard to write."""

    job: Job
    folder: str
    shard: int
    samples: tuple[Sample, ...]

    @property
    def path(self) -> Path:
        return Path(self.folder, f"shard-{self.shard:05d}.arrow")

    @property
    def state(self) -> Path:
        return self.path.with_name(STATE.format(self.path.name))

    @property
    def key(self) -> str:
        """What the shard is made from: names, sizes, and how."""
        job = self.job
        options = [CONVERTER_VERSION, job.root, job.prefix, job.on_mismatch, job.drop_blank]
        return digest([options, job.metadata, self.samples])


@dataclass(frozen=True)
class Done:
    """One shard written: its manifest entry and index rows, and what the checks found."""

    shard: int
    entry: dict[str, Any]
    rows: list[dict[str, Any]]
    problems: list[Problem]
    census: Census


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
    """Check the samples of one shard and write those that pass; a shard that is there is kept.

    Two processes may do the same task: each writes a file of its own, and renames it.
    """
    done = _finished(task)
    if done:
        return done
    problems: list[Problem] = []
    census = Census(task.job.num_classes)

    def rows() -> Iterator[dict[str, Any]]:
        for sample in task.samples:
            read = read_sample(task.job, sample)
            problems.extend(read.problems)
            census.add(read)
            if read.row is not None:
                yield read.row

    temporary = task.path.with_name(f"{task.path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with atomic.writing(task.path):
        try:
            entry, index = shards.write_shard(temporary, task.job.metadata, rows())
            atomic.fsync(temporary)
            os.replace(temporary, task.path)
        finally:
            temporary.unlink(missing_ok=True)
    entry["name"] = task.path.name
    if not any(problem.severity == ERROR for problem in problems):  # else it is to be made again
        state = {"key": task.key, "entry": entry, "problems": problems}
        records.write(task.state, state | {"census": dataclasses.asdict(census)})
    return Done(task.shard, entry, index, problems, census)


def _finished(task: Task) -> Done | None:
    """What an earlier, killed conversion of the same files has written for this task, if whole."""
    try:
        state = records.read(task.state, "it is made again")
        if state["key"] != task.key or atomic.sha256(task.path) != state["entry"]["sha256"]:
            return None
    except (OSError, DataError, KeyError):
        return None
    problems = [Problem(c, s, tuple(files), text) for c, s, files, text in state["problems"]]
    with_raw = {int(raw): count for raw, count in state["census"].pop("with_raw").items()}
    census = Census(**state["census"], with_raw=with_raw)
    return Done(task.shard, state["entry"], shards.read_rows(task.path), problems, census)


def convert(
    dataset: str | Dataset,
    root: Path,
    out: Path,
    *,
    split: str,
    name: str | None = None,
    map_tasks: Callable[[Callable[[Task], Done], list[Task]], Iterable[Done]] = map,
    on_mismatch: str = "skip",
    drop_blank: bool = False,
    label_encoding: str | None = None,
    only: Path | None = None,
    golden: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
    max_pixels: int = MAX_PIXELS,
    licence: str | None = None,
) -> dict[str, Any]:
    """Convert one split into the folder `out`; returns the report.

    dataset         a name of DATASETS, or what a description of the user's own files says
    name            stands for the dataset's name in the result, as for a set in its format
    map_tasks       like `map`, in any order: where the shards are written
    on_mismatch     "skip" leaves out pairs of unequal size and images or labels without partner;
                    "error" makes them errors
    label_encoding  how labels are stored, if not as in the release
    only            a file that names the images to take
    golden          an error unless counts, sizes and classes are those of the published release
    overwrite       replace what an earlier conversion wrote to `out`
    progress        called with the number of samples done and of all
    max_pixels      an image or label file of more is an error
    licence         of the files, where the dataset's is not theirs

    Does nothing when `out` already holds the same names and sizes, converted in the same way.
    DataError, and nothing written but a report beside `out`, when any file is unusable; shards that
    were finished stay beside it, hidden, and are taken up by the next try.
    """
    root, out = Path(root).absolute(), Path(out).absolute()
    source = DATASETS[dataset] if isinstance(dataset, str) else dataset
    if split not in source.splits:
        raise DataError(f"{source.name} has no split {split!r}; it has {', '.join(source.splits)}")
    name = name or source.name
    if not re.fullmatch(r"[a-z0-9_-]+(/[a-z0-9_-]+)*", name):
        raise DataError(f"a name is of lower-case letters, digits, _, - and /; got {name!r}")
    release = source.releases.get(split) if name == source.name and not only else None
    if golden and release is None:
        raise DataError(f"the release of {name}/{split} is not known; leave --verify-golden away")
    started = datetime.datetime.now(datetime.UTC)
    listed = list_samples(source, root, source.splits[split], on_mismatch, only)
    samples, problems = listed.samples, listed.problems
    label_files = _with_encoding(source, listed.labels, label_encoding)
    terms = _terms(source, name, root) | ({"licence": licence} if licence else {})
    job = Job(
        dataset=source,
        split=source.splits[split],
        labels=label_files,
        root=str(listed.root),
        prefix=name + source.splits[split].prefix.removeprefix(source.name),
        metadata=_metadata(source, split, name, label_files, only, terms),
        on_mismatch=on_mismatch,
        drop_blank=drop_blank,
        max_pixels=max_pixels,
    )
    inputs = {
        "converter_version": CONVERTER_VERSION,
        "name": job.metadata["name"],
        "files": len(samples),
        "names_and_sizes": hashlib.sha256(json.dumps(samples).encode()).hexdigest(),
        "on_mismatch": on_mismatch,
        "drop_blank": drop_blank,
        "label_encoding": label_encoding,
        "id_map": job.metadata["id_map"],
        "shard_bytes": shard_bytes,
    }
    report = {
        "schema": output.REPORT_SCHEMA,
        "name": job.metadata["name"],
        "root": str(listed.root),
        "out": str(out),
        "host": socket.gethostname(),
        "started": started.isoformat(timespec="seconds"),
        "samples": len(samples),
    }
    failed = out.with_name(f"{out.name}.{output.REPORT}")
    with atomic.writing(out), output.only_writer(out):
        if not overwrite and output.is_done(out, inputs):
            manifest = shards.read_manifest(out)
            old = _old_report(out / output.REPORT) if golden else {}
            wrong = golden_problem(old.get("differs_from_release", {}))
            if golden and wrong:
                raise DataError(f"{out}: {wrong.message}")
            return {**report, "status": "unchanged", **output.summary(manifest)}
        if overwrite:
            output.check_replaceable(out)
        try:
            part = out.with_name(PART.format(out.name))
            atomic.mkdir(part)
            tasks = plan_tasks(job, part, samples, shard_bytes)
            _check_space(samples, out, part)
            _check_some(job, samples, problems)
            finished, resumed = _write(tasks, len(samples), map_tasks, progress)
            manifest, differing = _finish(job, part, finished, inputs, problems, release, golden)
            report |= {"status": "done", **output.summary(manifest), **_findings(problems, source)}
            report |= {"shards_from_before": resumed, "differs_from_release": differing}
            report |= output.clock(started)
            atomic.write_json(part / output.REPORT, report)
            with output.replacing(out, part):
                pass
            failed.unlink(missing_ok=True)
        except _Unusable as stop:
            report |= {"status": "failed", **_findings(problems, source), **output.clock(started)}
            atomic.write_json(failed, report)
            raise DataError(_failure(f"{name}/{split}", str(stop), problems, failed)) from None
        finally:
            with contextlib.suppress(OSError):
                part.rmdir()  # if nothing was finished
    return report


def _old_report(path: Path) -> dict[str, Any]:
    """What a conversion that is there has reported; {} where there is none."""
    try:
        return records.read(path, "convert again with --overwrite")
    except records.MissingRecord:
        return {}


class _Unusable(Exception):
    """Some check found an error; the problems say which."""


def _with_encoding(
    source: Dataset, label_files: LabelFiles | None, encoding: str | None
) -> LabelFiles | None:
    """The kind of label files, stored otherwise than in the release."""
    if encoding is None or label_files is None:
        return label_files
    choose(encoding, ENCODINGS, "label encoding")
    if encoding == COLOR and source.palette is None:
        raise DataError(f"the colours of {source.name}'s labels are not known; use its id files")
    if encoding != COLOR and COLOR in label_files.encodings:
        raise DataError(
            f"--label-encoding {encoding} can't be: the ids in {source.described_in} are colours; "
            f"change labels.encoding and labels.ids there"
        )
    return dataclasses.replace(label_files, encodings=(encoding,))


def _metadata(
    source: Dataset,
    split: str,
    name: str,
    label_files: LabelFiles | None,
    only: Path | None,
    terms: dict[str, str],
) -> dict[str, Any]:
    """What is known before the first file is opened; goes into every shard."""
    where = source.splits[split]
    chosen = None
    if only:
        chosen = {"name": only.name, "sha256": atomic.sha256(only)}
    return {
        "schema_version": shards.SCHEMA_VERSION,
        "name": f"{name}/{split}",
        "dataset": name,
        "split": split,
        "domain_role": where.role,
        "labelled": label_files is not None,
        "format": source.name,
        "converter": "spcl.data.convert",
        "converter_version": CONVERTER_VERSION,
        "label_space": source.label_space,
        "class_names": list(source.class_names),
        "palette": source.class_colors.tolist(),
        "ignore_index": IGNORE_INDEX,
        "tail_classes": list(source.tail),
        "absent_train_ids": list(source.absent),
        "id_map": {str(raw): to for raw, to in label_files.ids.items()} if label_files else None,
        "raw_encoding": (
            f"{' or '.join(label_files.encodings)} {label_files.space}" if label_files else None
        ),
        "label_size": "its own" if where.any_size else "the image's",
        "split_source": {"images": where.images, "labels": where.labels, "list": chosen},
        **terms,
        "view": None,  # not resized, not re-encoded
    }


def _terms(source: Dataset, name: str, root: Path) -> dict[str, str]:
    """Licence and redistribution of the files."""
    if streets.are_rendered(root):
        return streets.TERMS
    return terms_of(source, only_its_format=name != source.name and not source.described_in)


def plan_tasks(job: Job, folder: Path, samples: list[Sample], shard_bytes: int) -> list[Task]:
    plan = plan_shards([sample.bytes for sample in samples], shard_bytes)
    return [
        Task(job, str(folder), number, tuple(samples[bounds.start : bounds.stop]))
        for number, bounds in enumerate(plan)
    ]


def _write(
    tasks: list[Task],
    total: int,
    map_tasks: Callable,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Done], int]:
    """Write all shards, in order; also how many were there from before."""
    _clear(Path(tasks[0].folder), {path.name for task in tasks for path in (task.path, task.state)})
    finished = [done for task in tasks if (done := _finished(task))]
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


def _finish(
    job: Job,
    folder: Path,
    finished: list[Done],
    inputs: dict[str, Any],
    problems: list[Problem],
    release: Any,
    golden: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Judge the whole, then write index and manifest.  Problems come in order of the samples.

    Returns the manifest and what differs from the published release.
    """
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
    manifest = shards.write_manifest(folder, job.metadata, inputs, kept)
    differing = compare(release, manifest, census)
    if golden and (wrong := golden_problem(differing)):
        (folder / shards.MANIFEST).unlink()
        problems.append(wrong)
        raise _Unusable
    _clear(folder, {shards.MANIFEST, shards.INDEX, *(entry["name"] for entry, _ in kept)})
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


def verify(folder: Path) -> dict[str, Any]:
    """Hash every file of a converted split again; DataError naming each that differs.

    What the manifest says of the samples is counted again from the index, and what it says of the
    data set is compared with what every shard says, so that one without a checksum is checked, too.

    Returns the manifest.
    """
    folder = Path(folder).absolute()
    manifest = shards.read_manifest(folder)
    damaged = []
    for entry in (*manifest["shards"], manifest["index"]):
        path = folder / entry["name"]
        if not path.is_file():
            damaged.append(f"{entry['name']} is missing")
        elif path.stat().st_size != entry["bytes"]:
            damaged.append(f"{entry['name']} has {path.stat().st_size} of {entry['bytes']} bytes")
        elif atomic.sha256(path) != entry["sha256"]:
            damaged.append(f"{entry['name']} has another sha256 than when it was written")
            with contextlib.suppress(DataError, ValueError):  # where the rest is whole
                samples = shards.ShardSet(folder).altered(entry["name"])
                shown = ", ".join(samples[:SHOWN_NAMES]) or "nothing but what is between samples"
                damaged[-1] += f" (altered: {shown})"
    if not damaged:
        wrong = shards.contradictions(folder, manifest)
        damaged = [f"{shards.MANIFEST} says another {key} than the shards" for key in wrong]
    if damaged:
        shown = "; ".join(damaged[:SHOWN_NAMES])
        raise DataError(
            f"{len(damaged)} files of {folder} are damaged: {shown}; write the split again with: "
            f"{shards.ingest_command(folder, manifest)}"
        )
    return manifest
