"""One job of a search: continue a configuration to a rung, validate the network, record it.

Runs where Ray Tune puts it: in the trial's process with one device, in workers of a Ray Train group
nested in the trial with more.  The record, <experiment>/jobs/NNNN-R.json, is the only result; a job
that fails writes one with its reason, and only what is left, killed processes, is for Tune to try
again; a full disk is no failure of a configuration and ends the search.  A job opens no label of
the target unless the search's objective is made of labels.
"""

import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ray_jobs.piece import perform, waiting_lease
from spcl import distributed
from spcl.configuration.config import from_dict
from spcl.configuration.sections import Evaluation
from spcl.data.shards import ShardSet
from spcl.engine.inputs import split_source
from spcl.engine.networks import load_segmentor
from spcl.engine.piece import Piece
from spcl.engine.recipe import Recipe
from spcl.engine.stages import Stage
from spcl.errors import StorageError
from spcl.inference.predict import evaluate
from spcl.inference.validation import few_label, validate
from spcl.models.segmentor import Segmentor
from spcl.scoring.protocols import headline, score
from spcl.settings import build
from spcl.store import atomic, records
from spcl.store.lease import check
from spcl.store.run_folder import RunFolder
from tune.searching.experiment import REFERENCE, halves, read_job
from tune.searching.rungs import SOURCE_ONLY

BOOTSTRAP = 200  # resamples of the images, for the standard deviations that scores are divided by
ATTEMPTS = "attempts.jsonl"  # of a configuration: when each began
SHARED = "shared_steps.jsonl"  # steps of shared stages that its attempts set out to make
STOPPED = "stopped"  # in what a trial reports: why nothing more can be written
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
    shared: list[str]  # stages that no parameter changes: all share them, or the reference's own
    steps: int  # that this job adds
    worker: dict[str, float]  # resources of each worker
    label_budget: int = 0  # labelled target images that the objective reads
    few_label: int = 0  # that many of them, of the target's training images
    oracle: dict[str, Any] | None = None  # the evaluation section, for target_oracle alone
    reference_steps: list[int] = field(
        default_factory=list
    )  # see `tune.searching.rungs`; of each rung
    commit: str = ""  # the driver's: Ray leaves .git and the driver's environment behind

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

    @property
    def piece(self) -> Piece:
        return Piece(
            config=self.config,
            data=self.data,
            run=str(self.run.folder),
            storage=self.storage,
            continued=True,  # a rung goes on where the one below ended
            one_of_many=True,
            commit=self.commit,
        )


def record_path(experiment: Path, configuration: int, rung: int) -> Path:
    name = "reference" if configuration == REFERENCE else f"{configuration:04d}-{rung}"
    return experiment / "jobs" / f"{name}.json"


def trial(config: dict[str, Any]) -> None:
    """What Ray Tune runs."""
    from ray import tune

    try:
        found = {"status": run(Job(**json.loads(config["job"])))["status"]}
    except StorageError as error:  # raised, it would be tried again
        found = {STOPPED: str(error)}
    tune.report(found)


def run(job: Job) -> dict[str, Any]:
    """The job's record; made unless it stands.

    Raises only what another attempt may mend, and StorageError.
    """
    with waiting_lease(job.run.folder) as lease:
        if not job.record.exists():
            attempts = _count_attempt(job)
            work = partial(make_and_record, job=job, attempts=attempts)
            failed = perform(job.piece, work, lease.id, job.worker)
            if failed and not job.record.exists():
                write_failure(job, failed, attempts)
        if not job.record.exists():
            raise RuntimeError("the workers ended without a record")
        return read_job(job.record)


def _count_attempt(job: Job) -> int:
    """Note that an attempt begins; returns how many there were."""
    path = job.run.folder / ATTEMPTS
    line = {"rung": job.rung, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    atomic.append(path, json.dumps(line))
    return sum(line.get("rung") == job.rung for line in _lines(path))


def _lines(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines, where one may be cut short; none where there is no file."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def spent_before(job: Job) -> float:
    """Device-seconds of the job's attempts before this one, each up to its last log line."""
    starts = [(line["time"], line["rung"]) for line in _lines(job.run.folder / ATTEMPTS)]
    logged = [line["time"] for line in _lines(job.run.folder / "metrics.jsonl")]
    spent = 0.0
    for (start, rung), (end, _) in itertools.pairwise(starts):
        if rung == job.rung:
            spent += max((time for time in logged if start <= time < end), default=start) - start
    return spent * from_dict(job.config).train.workers


def make_and_record(recipe: Recipe, job: Job, attempts: int) -> None:
    """On every rank: make the job's stages, validate the network, write the record."""
    started = time.perf_counter()
    found = _at_rungs(job, recipe) if job.reference_steps else _work(job, recipe)
    seconds = (time.perf_counter() - started) * distributed.world_size()
    if distributed.rank() == 0:
        spent = seconds + spent_before(job)
        _write(job, status="done", attempts=attempts, device_seconds=spent, **found)


def _at_rungs(job: Job, recipe: Recipe) -> dict[str, Any]:
    """What `_work` finds of a source-only reference, and for each rung after as many steps.

    The shorter ones come first, so that each goes on from the one before.
    """
    section = job.config[SOURCE_ONLY]
    earlier = {}
    for steps in sorted({*job.reference_steps} - {section["steps"]}):
        shorter = from_dict(job.config | {SOURCE_ONLY: section | {"steps": steps}})
        beginning = Recipe(
            shorter,
            Path(job.data),
            recipe.run,
            recipe.context,
            storage=Path(job.storage),
            continued=True,
        )
        earlier[steps] = _work(job, beginning)["validators"]
    found = _work(job, recipe)
    rungs = [earlier.get(steps, found["validators"]) for steps in job.reference_steps]
    return found | {"rungs": rungs}


def _work(job: Job, recipe: Recipe) -> dict[str, Any]:
    shared = [stage for stage in recipe.stages if not touched(stage, job.shared)]
    made = _shared_steps(job, recipe, shared)  # before anything is: of a kill nothing else tells
    wanted = shared if job.is_reference else recipe.stages
    if job.is_reference:
        recipe.make(wanted)
    else:
        recipe()
    scored = [stage for stage in wanted if stage.kind in ("train", "statistics")][-1]
    return {
        "artefact": scored.folder,
        "steps": 0 if job.is_reference else job.steps,
        "shared_steps": made,
        "validators": _validators(job, recipe, scored),
    }


def _shared_steps(job: Job, recipe: Recipe, shared: Sequence[Stage]) -> dict[str, int]:
    """Steps of the shared stages that this job makes; those of its killed attempts, too."""
    made = {
        stage.method: recipe.config.of(stage.method).steps
        for stage in shared
        if stage.method and not recipe.store.has(stage)
    }
    path = job.run.folder / SHARED
    if made and distributed.rank() == 0:
        atomic.append(path, json.dumps({"rung": job.rung, "steps": made}))
    for line in _lines(path):
        made |= line["steps"] if line["rung"] == job.rung else {}
    return made


def touched(stage: Stage, shared: Sequence[str]) -> bool:
    """Does a parameter of the space change this stage's result?"""
    mine = stage.method != "" and stage.method not in shared
    return mine or any(touched(other, shared) for other in stage.inputs.values())


def _validators(job: Job, recipe: Recipe, scored: Stage) -> dict[str, Any]:
    config, data, device = recipe.config, Path(job.data), recipe.context.device
    classes = len(recipe.shards["source"].class_names)
    segmentor = load_segmentor(config, classes, recipe.store.open(scored)).to(device).eval()
    held = split_source(config, ShardSet(data / config.source.dataset / config.source.split))[1]
    bootstrap = BOOTSTRAP if job.is_reference else 0
    target = recipe.shards["target"]
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
    nothing: dict[str, Any] = {"artefact": None, "steps": 0, "shared_steps": {}, "validators": {}}
    _write(job, status="failed", reason=reason, attempts=attempts, device_seconds=0.0, **nothing)


def _write(job: Job, **found: Any) -> None:
    record = {
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
    records.write(job.record, record | found)
