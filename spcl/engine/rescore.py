"""A finished run, scored again: numbers, predictions and features on any converted split.

It is made of shares, strided sets of groups of images, that any map-like callable may run anywhere:
its numbers and files are the same for any number of workers.  It opens evaluation labels after the
training is over, and changes nothing in the run but its own folder.

    evaluation.json      what was scored, the table        confusions.parquet  per image
    predictions/         color/ and train_ids/             server/             for Cityscapes
    analysis/            ccd.json, pca.png, tsne.png
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spcl.configuration.chosen_by import SECTION, stored
from spcl.configuration.config import Config
from spcl.configuration.sections import Evaluation
from spcl.data import export
from spcl.data.shards import ShardSet
from spcl.data.transforms import normalize
from spcl.engine.artefacts import MANIFEST, verify
from spcl.engine.devices import set_up_torch
from spcl.engine.inputs import check_native, check_same_classes
from spcl.engine.networks import load_segmentor
from spcl.engine.provenance import code_version, commit
from spcl.engine.run_config import run_config
from spcl.errors import DataError, UserError
from spcl.inference.analysis import PixelSample, merge, sample_pixels, write_analysis
from spcl.inference.predict import confusions as group_confusions
from spcl.inference.predict import predict_labels, view_sizes
from spcl.inference.reader import Group, groups, read, view
from spcl.losses.contrast import downsample_labels
from spcl.methods import METHODS
from spcl.models.segmentor import Segmentor
from spcl.scoring.protocols import absence_notes, check_classes, score
from spcl.settings import choose
from spcl.store import atomic
from spcl.store.run_folder import SCHEMA, RunFolder, write_confusions

SHARE = 16  # images; small enough for a progress line and for workers of unequal speed
SCORES = "evaluation.json"


@dataclass(frozen=True)
class Job:
    """What every share of a report reads: plain values, so that it travels to other processes."""

    run: Path
    stage: str
    split: Path  # folder of the shards
    settings: Evaluation
    device: str
    out: Path
    predictions: bool = False
    server: bool = False
    analysis: bool = False


@dataclass(frozen=True)
class Share:
    job: Job
    groups: list[range]  # of images


@dataclass(frozen=True)
class Result:
    """What one share found."""

    images: int
    confusions: dict[int, np.ndarray]  # image -> (K, K); empty without labels
    pixels: PixelSample | None


class FinishedRun:
    """A run that is done.  UserError where it isn't."""

    def __init__(self, folder: Path):
        self.run = RunFolder(folder)
        if self.run.done is None:
            raise UserError(
                f"run {self.run.name} is not finished; run the command that started it again"
            )
        self.done: dict[str, Any] = self.run.done
        self.config: Config = run_config(folder)

    def network(self, stage: str) -> Path:
        """The folder of the artefact that a stage's evaluation reads, every file checked."""
        choose(stage, self.config.stages, "stage")
        artefacts = self.done["artefacts"]
        name = artefacts.get(f"statistics of {stage}", artefacts[stage])
        folder = self.run.folder.parent / "artefacts" / name
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"the network of stage {stage!r} is gone: no {folder}; train the run again"
            )
        verify(folder)
        return folder


@functools.lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[ShardSet, Segmentor]:
    """Once in each process that runs shares."""
    finished = FinishedRun(job.run)
    set_up_torch(finished.config.train)
    classes = len(finished.done["classes"])
    segmentor = load_segmentor(finished.config, classes, finished.network(job.stage))
    return ShardSet(job.split), segmentor.to(job.device).eval()


@torch.no_grad()
def read_share(share: Share) -> Result:
    """Predict and count the images of one share; writes their files."""
    job = share.job
    shards, segmentor = _opened(job)
    device, sizes = torch.device(job.device), view_sizes(job.settings)
    confusions: dict[int, np.ndarray] = {}
    samples = []
    threads = FinishedRun(job.run).config.train.loader_workers
    for group in read(
        "the evaluation", shards, share.groups, sizes, labelled=shards.labelled, threads=threads
    ):
        predicted = predict_labels(
            segmentor.predict, group.inputs(device), group.shapes, job.settings
        )
        if group.labels:
            confusions |= group_confusions(group, predicted, segmentor.num_classes)
        for index, labels in zip(group.indices, predicted, strict=True):
            _write_files(job, shards, index, labels.cpu().numpy())
        if job.analysis:
            samples += _sample_features(group, segmentor, job.settings.size, device)
    images = sum(map(len, share.groups))
    return Result(images, confusions, merge(samples) if samples else None)


def _sample_features(
    group: Group, segmentor: Segmentor, size: tuple[int, int], device: torch.device
) -> list[PixelSample]:
    """Of each labelled image of a group."""
    found = segmentor(normalize(view(group.images, size).to(device)), "target").features.cpu()
    grids = [downsample_labels(label[None], tuple(found.shape[-2:]))[0] for label in group.labels]
    return [
        sample_pixels(features.numpy(), grid.numpy(), index)
        for features, grid, index in zip(found, grids, group.indices, strict=True)
    ]


def _write_files(job: Job, shards: ShardSet, index: int, prediction: np.ndarray) -> None:
    sample_id = shards.sample_ids[index]
    if job.predictions:
        name = sample_id.removeprefix(shards.name + "/")
        export.write_prediction(job.out / "predictions", name, prediction, shards.palette)
    if job.server:
        export.write_for_server(job.out / "server", sample_id, prediction)


def check(job: Job) -> None:
    """UserError on what can't be made, before any network is loaded."""
    finished, shards = FinishedRun(job.run), ShardSet(job.split)
    finished.network(job.stage)
    check_same_classes(f"run {finished.run.name}", finished.done["classes"], shards)
    check_native(shards)
    if shards.labelled:
        check_classes(job.settings.protocol, shards.class_names, shards.name)
    elif job.analysis:
        raise DataError(f"--analysis needs labels, and {shards.name} has none")
    elif not (job.predictions or job.server):
        raise DataError(
            f"{shards.name} has no labels, so there is nothing to score; ask for --predictions or "
            f"--export-server"
        )
    if job.server:
        export.check_server_can_read(shards.name, shards.sample_ids, shards.class_names)
    if job.out.exists() and any(job.out.iterdir()) and not (job.out / SCORES).is_file():
        raise UserError(f"{job.out} holds files that are no report; give another --out")


def make_report(
    job: Job,
    map_shares: Callable[[Callable[[Share], Result], list[Share]], Iterable[Result]] = map,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run all shares, write the report to `job.out`, in one step, and return evaluation.json.

    map_shares  like `map`, in any order
    """
    check(job)
    shards = ShardSet(job.split)
    whole = groups(len(shards), job.settings.size)
    count = -(-len(shards) // SHARE)
    with atomic.folder(job.out) as folder:
        inside = dataclasses.replace(job, out=folder)
        shares = [Share(inside, part) for n in range(count) if (part := whole[n::count])]
        confusions: dict[int, np.ndarray] = {}
        pixels, done = None, 0
        results = iter(map_shares(read_share, shares))
        try:
            for result in results:
                confusions |= result.confusions
                if result.pixels is not None:
                    pixels = merge([pixels, result.pixels] if pixels else [result.pixels])
                done += result.images
                if progress:
                    progress(done, len(shards))
        finally:
            if hasattr(results, "close"):
                results.close()  # remote tasks stop before their folder goes
        report = _describe(job, shards)
        if confusions:
            matrices = np.stack([confusions[i] for i in range(len(shards))])
            write_confusions(folder / "confusions.parquet", shards.sample_ids, matrices)
            report |= _score(job, matrices.sum(0))
        if pixels is not None:
            report["ccd"] = write_analysis(
                folder / "analysis", pixels, shards.class_names, shards.palette
            )
        atomic.write_json(folder / SCORES, report)
        atomic.flush(folder)  # a full disk may be noticed here, while the old report stands
        if job.out.exists():
            shutil.rmtree(job.out)
    return report


def _describe(job: Job, shards: ShardSet) -> dict[str, Any]:
    finished = FinishedRun(job.run)
    settings = dataclasses.asdict(job.settings)
    return {
        "schema": SCHEMA,
        "run": finished.run.name,
        "stage": job.stage,
        "seed": finished.done["seed"],
        "selection": finished.done["selection"],
        SECTION: dataclasses.asdict(stored(finished.run)),
        "data": {"name": shards.name, "fingerprint": shards.fingerprint},
        "settings": {k: v for k, v in settings.items() if k not in ("dataset", "split")},
        "classes": shards.class_names,
        "images": len(shards),
        "protocol": job.settings.protocol if shards.labelled else None,
        "table": [],
        "notes": [],
        "code": code_version(),
        "commit": commit().hash,
        "dirty": commit().dirty,
    }


def _score(job: Job, confusion: np.ndarray) -> dict[str, Any]:
    done = FinishedRun(job.run).done
    title = {"stage": job.stage, "title": METHODS[job.stage].title}
    source = done.get("source", {"dataset": "", "absent_train_ids": []})
    notes = absence_notes(confusion, source["dataset"], source["absent_train_ids"], done["classes"])
    return {"table": [title | score(confusion, job.settings.protocol)], "notes": notes}
