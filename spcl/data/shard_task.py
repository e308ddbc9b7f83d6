"""The work of a conversion, cut into one task per shard: planned, done, taken up again.

Boundaries follow from sorted names and file sizes alone, so that they are the same for any number
of workers; a shard that a killed conversion has finished is not made again.
"""

import dataclasses
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spcl.data import shards
from spcl.data.checks import Job, read_sample
from spcl.data.judgement import Census
from spcl.data.listing import Sample
from spcl.data.problems import ERROR, Problem
from spcl.errors import DataError
from spcl.settings import digest
from spcl.store import atomic, records

CONVERTER_VERSION = 2  # raise when the same files give other bytes
SHARD_BYTES = 256 * 2**20
MIN_SHARDS = 8  # work for 8 processes, also where a split is small
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
    done = made_before(task)
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


def made_before(task: Task) -> Done | None:
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


def plan_tasks(job: Job, folder: Path, samples: list[Sample], shard_bytes: int) -> list[Task]:
    plan = plan_shards([sample.bytes for sample in samples], shard_bytes)
    return [
        Task(job, str(folder), number, tuple(samples[bounds.start : bounds.stop]))
        for number, bounds in enumerate(plan)
    ]
