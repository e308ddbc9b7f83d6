"""One job of a search: continue a configuration to a rung, validate the network, record it.

Runs where Ray Tune puts it: in the trial's process with one device, in workers of a Ray Train group
nested in the trial with more.  The record, <experiment>/jobs/NNNN-R.json, is the only result; a job
that fails writes one with its reason, and only what is left, killed processes, is for Tune to try
again.  A job opens no label of the target unless the search's objective is made of labels.
"""

import contextlib
import gc
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ray_jobs.group import worker_group
from spcl import atomic, distributed
from spcl.config import Config, Evaluation, from_dict
from spcl.data.catalog import split_source
from spcl.data.shards import ShardSet
from spcl.errors import UserError
from spcl.evaluate import evaluate
from spcl.lease import EXPIRES, Lease, LeaseLost, check, under
from spcl.models.segmentor import Segmentor
from spcl.protocols import headline, score
from spcl.recipe import Recipe, choose_device, load_segmentor
from spcl.results.store import RunFolder
from spcl.settings import build
from spcl.stages import Stage
from spcl.telemetry import Telemetry
from spcl.trainer import Surroundings
from spcl.validation import few_label, validate
from tune.experiment import REFERENCE, SCHEMA, halves

BOOTSTRAP = 200  # resamples of the images, for the standard deviations that scores are divided by
LEASE_POLL = 0.5  # seconds
LABELLED_SPLIT = "train_labelled"  # of the target, for few_label


@dataclass(frozen=True)
class Job:
    """Everything a worker needs: plain values only."""

    experiment: str  # folder
    data: str
    storage: str
    configuration: int
    rung: int
    config: dict[str, Any]  # of this rung, with no evaluation split
    parameters: dict[str, Any]
    settings: dict[str, Any]
    shared: list[str]  # stages that all configurations share
    steps: int  # that this job adds
    worker: dict[str, float]  # resources of each worker
    label_budget: int = 0  # labelled target images that the objective reads
    few_label: int = 0  # that many of them, of the target's training images
    oracle: dict[str, Any] | None = None  # the evaluation section, for target_oracle alone

    @property
    def is_reference(self) -> bool:
        return self.configuration == REFERENCE

    @property
    def record(self) -> Path:
        return record_path(Path(self.experiment), self.configuration, self.rung)

    @property
    def run(self) -> RunFolder:
        name = "reference" if self.is_reference else f"{self.configuration:04d}"
        return RunFolder(Path(self.experiment) / "configurations" / name)


def record_path(experiment: Path, configuration: int, rung: int) -> Path:
    name = "reference" if configuration == REFERENCE else f"{configuration:04d}-{rung}"
    return experiment / "jobs" / f"{name}.json"


def trial(config: dict[str, Any]) -> None:
    """What Ray Tune runs."""
    from ray import tune

    tune.report({"status": run(Job(**json.loads(config["job"])))["status"]})


def run(job: Job) -> dict[str, Any]:
    """The job's record; made unless it stands.  Raises only what another attempt may mend."""
    with waiting_lease(job.run.folder) as lease:
        if job.record.is_file():
            return json.loads(job.record.read_text())
        attempts = _count_attempt(job)
        if from_dict(job.config).train.workers > 1:
            _nested(job, attempts, lease.id)
        else:
            attempt(job, attempts)
    free_memory()
    return json.loads(job.record.read_text())


def free_memory() -> None:
    """After a piece of work: the process is used again."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def waiting_lease(folder: Path) -> Iterator[Lease]:
    """One writer per configuration; a killed driver's workers live on for some seconds."""
    deadline = time.monotonic() + 2 * EXPIRES
    lease = Lease(folder)
    while True:
        try:
            lease.__enter__()
            break
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LEASE_POLL)
    try:
        yield lease
    finally:
        lease.__exit__()


def _count_attempt(job: Job) -> int:
    """Note that an attempt begins; returns how many there were."""
    path = job.run.folder / "attempts.jsonl"
    line = {"rung": job.rung, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return sum(f'"rung": {job.rung},' in line for line in path.read_text().splitlines())


def attempt(job: Job, attempts: int, local_rank: int = 0) -> None:
    """Run the job on this rank; its record stands afterwards, done or failed."""
    started = time.perf_counter()
    try:
        found = _work(job, local_rank)
    except LeaseLost:
        raise  # the record is for another process to write
    except Exception as error:
        write_failure(job, _reason(error), attempts)
        (job.run.folder / "traceback.txt").write_text(traceback.format_exc())
        if distributed.world_size() > 1:
            raise  # other ranks wait for this one until Ray stops the group
        return
    seconds = (time.perf_counter() - started) * distributed.world_size()
    if distributed.rank() == 0:
        _write(job, status="done", attempts=attempts, device_seconds=seconds, **found)


def _work(job: Job, local_rank: int) -> dict[str, Any]:
    config, run = from_dict(job.config), job.run
    device = choose_device(config.train, local_rank)
    telemetry = Telemetry(run.folder if distributed.rank() == 0 else None)
    try:
        around = Surroundings(device, telemetry)
        data, storage = Path(job.data), Path(job.storage)
        recipe = Recipe(config, data, run, around, storage=storage, continued=True)
        shared = [stage for stage in recipe.stages if not touched(stage, job.shared)]
        made = {
            stage.method: config.of(stage.method).steps
            for stage in shared
            if stage.method and not recipe.store.has(stage)
        }
        wanted = shared if job.is_reference else recipe.stages
        if job.is_reference:
            recipe.make(wanted)
        else:
            recipe()
    finally:
        telemetry.close()
    scored = [stage for stage in wanted if stage.kind in ("train", "statistics")][-1]
    folder = recipe.store.open(scored)
    classes = len(recipe.shards["source"].class_names)
    segmentor = load_segmentor(config, classes, folder).to(device).eval()
    return {
        "artefact": scored.folder,
        "steps": 0 if job.is_reference else job.steps,
        "shared_steps": made,
        "validators": _validators(job, config, segmentor, recipe.shards["target"], device),
    }


def touched(stage: Stage, shared: Sequence[str]) -> bool:
    """Does a parameter of the space change this stage's result?"""
    mine = stage.method is not None and stage.method not in shared
    return mine or any(touched(other, shared) for other in stage.inputs.values())


def _validators(
    job: Job, config: Config, segmentor: Segmentor, target: ShardSet, device: torch.device
) -> dict[str, Any]:
    data = Path(job.data)
    held = split_source(config, ShardSet(data / config.source.dataset / config.source.split))[1]
    bootstrap = BOOTSTRAP if job.is_reference else 0
    found = validate(segmentor, held, target, config, device, bootstrap=bootstrap)
    if job.few_label:
        labelled = ShardSet(data / config.target.dataset / LABELLED_SPLIT)
        found["few_label"] = few_label(segmentor, labelled, job.few_label, config, device)
    if job.oracle:
        found["target_oracle"] = _oracle(job.oracle, data, segmentor, device)
    return found


def _oracle(
    section: dict[str, Any], data: Path, segmentor: Segmentor, device: torch.device
) -> float:
    """mIoU on the half of the evaluation images that a target_oracle search may choose by."""
    settings = build(Evaluation, section, "evaluation.")
    whole = ShardSet(data / settings.dataset / settings.split)
    half = whole.subset(halves(whole.sample_ids)[0])
    matrices = evaluate(segmentor.predict, half, settings, device)[1]
    return headline(score(matrices.sum(0), settings.protocol)["means"])["value"]


def write_failure(job: Job, reason: str, attempts: int) -> None:
    """The record of a job that gave no network."""
    nothing = {"artefact": None, "steps": 0, "shared_steps": {}, "validators": {}}
    _write(job, status="failed", reason=reason, attempts=attempts, device_seconds=0.0, **nothing)


def _write(job: Job, **found: Any) -> None:
    record = {
        "schema": SCHEMA,
        "configuration": job.configuration,
        "rung": job.rung,
        "parameters": job.parameters,
        "settings": job.settings,
        "label_budget": job.label_budget,
        "reason": None,
        "host": socket.gethostname(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    check(job.run.folder)  # the record lies outside of it
    atomic.write_json(job.record, record | found)


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"


# More than one device.


def _nested(job: Job, attempts: int, lease: str) -> None:
    """Run the job in a Ray Train worker group; what that raises without a record, this raises."""
    train = from_dict(job.config).train
    trainer = worker_group(
        nested_worker,
        {"job": asdict(job), "attempts": attempts, "lease": lease},
        Path(job.experiment) / "ray" / "train",
        train.workers,
        job.worker,
        timeout=train.collective_timeout,
        restarts=0,
    )
    try:
        trainer.fit()
    except Exception:
        if not job.record.is_file():
            raise
    if not job.record.is_file():
        raise RuntimeError("the workers ended without a record")


def nested_worker(values: dict[str, Any]) -> None:
    """What each worker of the group runs."""
    from ray.train.torch import get_device

    job = Job(**values["job"])
    with under(job.run.folder, values["lease"]):
        attempt(job, values["attempts"], get_device().index or 0)
