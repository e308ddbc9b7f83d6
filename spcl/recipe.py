"""Run a recipe: each stage once, its result stored by key, then every evaluation, then the table.

Runs on every rank alike, under plain Python, torchrun or Ray; what is stored decides what is left
to do, so a killed run continues by running the same command.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spcl import atomic, checkpoint, distributed, heartbeat, passes
from spcl import chosen_by as choices
from spcl.artefacts import ArtefactStore
from spcl.checkpoint import Checkpoints
from spcl.config import Config, Domain, Train, differences, from_dict
from spcl.data.catalog import open_data
from spcl.data.labels import colorize
from spcl.data.loader import Steps, StoredLabels, Stream
from spcl.data.predictions import PredictionSet
from spcl.data.shards import ShardSet
from spcl.data.transforms import Augment, decode, decode_label
from spcl.errors import ConfigError, UserError
from spcl.evaluate import Predict, evaluate, predict_labels
from spcl.export import write_png
from spcl.methods import METHODS
from spcl.methods.base import StageConfig
from spcl.models.normalization import fill_unseen_statistics
from spcl.models.segmentor import Segmentor, build_segmentor
from spcl.panels import captioned_grid, same_size
from spcl.protocols import absence_notes, score
from spcl.provenance import agree, code_version, describe
from spcl.pseudo_label import apply_thresholds, class_thresholds
from spcl.results.store import RunFolder, read_confusions, write_confusions
from spcl.settings import digest, dump_yaml, read_yaml
from spcl.stages import Stage, plan
from spcl.trainer import Surroundings, fit

PANEL_IMAGES = 6  # rows of the qualitative panel


@dataclass(frozen=True)
class PseudoLabels:
    """Stored predictions, confident ones only: where a target stream's labels come from."""

    shards: ShardSet
    predictions: PredictionSet
    thresholds: np.ndarray  # (K,) in integer confidences

    def __call__(self, index: int) -> torch.Tensor:
        label, confidence = self.predictions[self.shards.sample_ids[index]]
        return torch.from_numpy(apply_thresholds(label, confidence, self.thresholds))


class Recipe:
    """One run of a configuration on this rank.

    storage   where stages are stored and shared (default: the folder of the run's folder)
    continued  leave each stage's last checkpoint, so that a run of more steps goes on from it
    """

    def __init__(
        self,
        config: Config,
        data: Path,
        run: RunFolder,
        around: Surroundings,
        *,
        storage: Path | None = None,
        continued: bool = False,
    ):
        self.config, self.run = config, run
        self.shards = open_data(config, data)
        self.around = dataclasses.replace(around, palette=self.shards["source"].palette)
        self.store = ArtefactStore(storage or run.folder.parent)
        self.continued = continued
        fingerprints = {role: shards.fingerprint for role, shards in self.shards.items()}
        self.stages = plan(config, fingerprints)
        agree(config=digest(config.as_dict()), data=digest(fingerprints), code=code_version())

    def __call__(self) -> dict[str, Any]:
        """Make what is missing; returns the summary that DONE.json holds."""
        self.make(self.stages)
        return self._finish()

    def make(self, stages: Sequence[Stage]) -> None:
        """Make those of the recipe's stages that are missing, and nothing else."""
        rank, ranks = distributed.rank(), distributed.world_size()
        with heartbeat.beating(self.run.folder, self.around.telemetry, rank, ranks):
            self._make(stages)

    def _make(self, stages: Sequence[Stage]) -> None:
        set_up_torch(self.config.train)
        if distributed.rank() == 0:
            united = self.config.chosen_by | choices.stored(self.run)
            config = dataclasses.replace(self.config, chosen_by=united)
            about = describe(config, self.stages, self.shards, self.run.name)
            self.run.write("manifest.json", about)
        makers = {
            "train": self._train,
            "predictions": self._predictions,
            "statistics": self._statistics,
            "evaluation": self._evaluation,
        }
        for stage in stages:
            if self.store.has(stage):
                self.around.telemetry.message(f"{stage.title}: done before, reused")
                continue
            self.around.telemetry.message(f"{stage.title}: started")
            # Only training leaves checkpoints: what a killed pass took is lost with its work.
            self.checkpoints = Checkpoints(self.run.folder / "checkpoints" / stage.progress)
            make = self._source_pass if stage.reader else makers[stage.kind]
            make(stage)

    # One method per kind of stage.

    def _train(self, stage: Stage) -> None:
        config = self.config
        seed = int(digest({"seed": config.seed, "stage": stage.method})[:8], 16)
        torch.manual_seed(seed)
        segmentor = self._segmentor(stage)
        method = METHODS[stage.method](segmentor, config.of(stage.method))
        if method.source_pass:
            name = method.source_pass.name
            path = self.store.open(stage.inputs[name]) / f"{name}.pt"
            method.start_from(checkpoint.load(path, torch.device("cpu")))
        checkpoints = self.checkpoints
        fit(stage.method, method, self._steps(stage), config.train, checkpoints, self.around)
        fill_unseen_statistics(method.segmentor)
        self._store_state(stage, method.cpu().state_dict())
        if distributed.rank() == 0 and not self.continued:
            checkpoints.clear()

    def _source_pass(self, stage: Stage) -> None:
        segmentor, device = self._segmentor(stage), self.around.device
        memory = METHODS[stage.reader].source_pass(segmentor, self.config.of(stage.reader), device)
        size = self.config.source.size
        result = passes.source_pass(segmentor, self.shards["source"], size, device, memory)
        with self.store.write(stage, self.checkpoints.seconds) as folder:
            if distributed.rank() == 0:
                with atomic.opened(folder / f"{stage.kind}.pt") as file:
                    torch.save(result, file)

    def _predictions(self, stage: Stage) -> None:
        with self.store.write(stage, self.checkpoints.seconds) as folder:
            passes.prediction_pass(
                self._segmentor(stage),
                self.shards["target"],
                self.config.target.size,
                self.around.device,
                folder,
            )

    def _statistics(self, stage: Stage) -> None:
        segmentor = self._segmentor(stage)
        size = self.config.target.size
        passes.statistics_pass(segmentor, self.shards["target"], size, self.around.device)
        state = {f"segmentor.{k}": v for k, v in segmentor.cpu().state_dict().items()}
        self._store_state(stage, state)

    def _evaluation(self, stage: Stage) -> None:
        predict, shards = self._predict(stage.inputs["checkpoint"]), self.shards["evaluation"]
        ids, matrices = evaluate(predict, shards, self.config.evaluation, self.around.device)
        with self.store.write(stage, self.checkpoints.seconds) as folder:
            if distributed.rank() == 0:
                write_confusions(folder / "confusions.parquet", ids, matrices)
                with atomic.opened(folder / "samples.npz") as file:
                    np.savez_compressed(file, **self._samples(predict, shards))

    # What stages share.

    def _segmentor(self, stage: Stage) -> Segmentor:
        """The network that a stage starts from: its checkpoint's, or a new one."""
        start = stage.inputs.get("checkpoint")
        folder = self.store.open(start) if start else None
        return load_segmentor(self.config, len(self._class_names), folder)

    def _predict(self, trained: Stage) -> Predict:
        """Target images to logits, by the network that a stage has stored."""
        classes, folder = len(self._class_names), self.store.open(trained)
        segmentor = load_segmentor(self.config, classes, folder).to(self.around.device).eval()
        return segmentor.predict

    @property
    def _class_names(self) -> list[str]:
        return self.shards["source"].class_names

    def _steps(self, stage: Stage) -> Steps:
        """The two streams of a training stage, as this rank reads them."""
        config = self.config
        streams: dict[str, Stream | None] = {"source": None, "target": None}
        for role in METHODS[stage.method].domains:
            section, shards = getattr(config, role), self.shards[role]
            labels = StoredLabels(shards) if role == "source" else None
            if role == "target" and "predictions" in stage.inputs:
                labels = self._pseudo_labels(stage.inputs["predictions"])
            streams[role] = Stream(
                name=f"{stage.method}/{role}",
                shards=shards,
                augment=augmentation(section, role, config.of(stage.method)),
                labels=labels,
                seed=config.seed,
                order=section.order,
            )
        return Steps(
            **streams,
            batch=config.batch_of(stage.method),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def _pseudo_labels(self, stage: Stage) -> PseudoLabels:
        predictions, c = PredictionSet(self.store.open(stage)), self.config.pseudo_label
        thresholds = class_thresholds(
            predictions.histogram(), cap=c.cap, quantile=c.quantile, median=c.median
        )
        return PseudoLabels(self.shards["target"], predictions, thresholds)

    def _store_state(self, stage: Stage, state: dict[str, torch.Tensor]) -> None:
        with self.store.write(stage, self.checkpoints.seconds) as folder:
            if distributed.rank() == 0:
                with atomic.opened(folder / "checkpoint.pt") as file:
                    torch.save({"schema": checkpoint.SCHEMA, "method": state}, file)

    @torch.no_grad()
    def _samples(self, predict: Predict, shards: ShardSet) -> dict[str, np.ndarray]:
        """Predictions of the panel's images by sample number, at label (else image) resolution."""
        samples = {}
        for index in panel_indices(shards):
            image = decode(shards.image(index))
            shape = decode_label(shards.label(index)).shape if shards.labelled else image.shape[1:]
            settings, device = self.config.evaluation, self.around.device
            prediction = predict_labels(predict, image, tuple(shape), settings, device)
            samples[str(index)] = prediction.cpu().numpy()
        return samples

    # The end of a run.

    def _finish(self) -> dict[str, Any]:
        """Rank 0 writes the run's results; every rank returns the summary."""
        summary: dict[str, Any] = {}
        if distributed.rank() == 0:
            evaluated = self.config.evaluation.wanted
            source = self.shards["source"]
            summary = {
                "classes": self._class_names,
                "protocol": self.config.evaluation.protocol if evaluated else None,
                "images": len(self.shards["evaluation"]) if evaluated else 0,
                "selection": self.config.selection,
                "seed": self.config.seed,
                "source": {k: source.metadata[k] for k in ("dataset", "absent_train_ids")},
                "artefacts": {stage.title: stage.folder for stage in self.stages},
                "device_seconds": {
                    stage.title: self.store.cost(stage)
                    for stage in self.stages
                    if stage.kind == "train"
                },
            } | (self._table() if evaluated else self._pictures())
            self.run.finish(summary)
        distributed.barrier()
        return summary

    def _table(self) -> dict[str, Any]:
        """Every evaluation's row and the notes below them; writes matrices and panel."""
        rows, samples, hashes = [], {}, {}
        protocol = self.config.evaluation.protocol
        for stage in (s for s in self.stages if s.kind == "evaluation"):
            folder = self.store.open(stage)
            ids, matrices = read_confusions(folder / "confusions.parquet")
            scored = stage.inputs["checkpoint"]
            trained = scored.inputs["checkpoint"] if scored.kind == "statistics" else scored
            path = self.run.folder / "evaluations" / f"{trained.title}.parquet"
            write_confusions(path, ids, matrices)
            hashes[trained.title] = atomic.sha256(path)
            confusion = matrices.sum(0)
            title = METHODS[trained.method].title
            rows.append({"stage": trained.title, "title": title} | score(confusion, protocol))
            samples[title] = np.load(folder / "samples.npz")
        self._write_panel(samples, self.shards["evaluation"])
        source = self.shards["source"].metadata
        notes = absence_notes(
            confusion, source["dataset"], source["absent_train_ids"], self._class_names
        )
        return {"table": rows, "notes": notes, "matrices": hashes}

    def _pictures(self) -> dict[str, Any]:
        """Without labels to score with: an empty table, a panel of target training images."""
        estimated = {s.inputs["checkpoint"]: s for s in self.stages if s.kind == "statistics"}
        samples, shards = {}, self.shards["target"]
        for stage in (s for s in self.stages if s.kind == "train"):
            predict = self._predict(estimated.get(stage, stage))
            samples[METHODS[stage.method].title] = self._samples(predict, shards)
        self._write_panel(samples, shards)
        return {"table": [], "notes": [], "matrices": {}}

    def _write_panel(self, samples: dict[str, Any], shards: ShardSet) -> None:
        """samples: stage title -> predictions by sample number."""
        rows = []
        for index in panel_indices(shards):
            image = decode(shards.image(index)).permute(1, 2, 0).numpy()
            truth = [decode_label(shards.label(index)).numpy()] if shards.labelled else []
            labels = [*truth, *(by_index[str(index)] for by_index in samples.values())]
            rows.append([image, *(colorize(label, shards.palette) for label in labels)])
        captions = ("image", *(["ground truth"] if shards.labelled else []), *samples)
        picture = captioned_grid(same_size(rows), captions)
        write_png(self.run.folder / "panel.png", picture)


def augmentation(section: Domain, role: str, stage: StageConfig) -> Augment:
    """What happens to a domain's images in a stage."""
    geometry = Augment(section.size, scale=stage.scale)
    if stage.augment == "none" or (stage.augment == "source" and role != "source"):
        return geometry
    return dataclasses.replace(
        geometry,
        jitter=section.jitter,
        grayscale=section.grayscale,
        blur=section.blur,
        flip=section.flip if stage.augment == "both" else 0.0,
    )


def choose_device(train: Train, local_rank: int) -> torch.device:
    """This process's device, made its current one.  UserError where cuda is asked for in vain."""
    available = torch.cuda.is_available()
    if train.device == "cuda" and not available:
        raise UserError("train.device=cuda needs a GPU, but torch sees none; use train.device=cpu")
    if train.device == "cpu" or not available:
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def set_up_torch(train: Train) -> None:
    """What the bits of a result depend on besides the data; once in each process."""
    # Before the first parallel region, since threads inherit it.  A softmax makes numbers below
    # 1e-38, and a processor takes up to a hundred times longer over each of those.
    torch.set_flush_denormal(True)
    torch.set_num_threads(train.threads)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)


def panel_indices(shards: ShardSet) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, len(shards) - 1, PANEL_IMAGES)})


def new_segmentor(config: Config, num_classes: int, *, weights: str | None = None) -> Segmentor:
    """The network of a configuration; `weights` in place of those that it names."""
    return build_segmentor(
        config.model.name,
        num_classes,
        norm=config.norm,
        weights=config.weights if weights is None else weights,
        input=config.input,
        aspp_branches=config.model.aspp_branches,
        absent=config.model.absent,
        mean_order=config.model.mean_order,
    )


def load_segmentor(config: Config, num_classes: int, artefact: Path | None) -> Segmentor:
    """The network of an artefact that holds a checkpoint, or a new one."""
    segmentor = new_segmentor(config, num_classes, weights="none" if artefact else None)
    if artefact:
        state = checkpoint.load(artefact / "checkpoint.pt", torch.device("cpu"))["method"]
        prefix = "segmentor."
        segmentor.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
    return segmentor


def run_config(folder: Path) -> Config:
    """The settings of a run.  ConfigError names a damaged config.yaml and the way out."""
    path = folder / "config.yaml"
    way_out = f"restore it, or remove the run with: python -m spcl.runs rm {folder.name}"
    try:
        values = read_yaml(path)
        if not values:
            raise ConfigError(f"{path} holds no settings")
        return from_dict(values)
    except ConfigError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ConfigError(f"{where}{error}; {way_out}") from None


def find_run(config: Config, storage: Path, name: str) -> RunFolder:
    """The run's folder, which may not exist yet.  ConfigError where it is of another config."""
    run = RunFolder(storage / name)
    path = run.folder / "config.yaml"
    if path.exists():
        old = run_config(run.folder)
        changed = differences(old, config)
        if changed:
            raise ConfigError(
                f"run {name!r} exists with other settings ({'; '.join(changed[:5])}); "
                f"choose another --name, or remove it with: python -m spcl.runs rm {name}"
            )
    return run


def open_run(config: Config, storage: Path, name: str) -> RunFolder:
    """The run's folder, new or to be continued.  ConfigError where it is of another config.

    A search that has chosen the config, now or at an earlier launch, stays named in it.
    """
    run = find_run(config, storage, name)
    config = dataclasses.replace(config, chosen_by=choices.carry(run, config.chosen_by))
    atomic.write_bytes(run.folder / "config.yaml", dump_yaml(config.as_dict()).encode())
    return run
