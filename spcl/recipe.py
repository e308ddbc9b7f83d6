"""Run a recipe: each stage once, its result stored by key, then every evaluation, then the table.

Runs on every rank alike, under plain Python, torchrun or Ray; what is stored decides what is left
to do, so a killed run continues by running the same command.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from spcl import atomic, checkpoint, distributed, passes
from spcl.artefacts import ArtefactStore
from spcl.checkpoint import Checkpoints
from spcl.config import Config, differences, from_dict
from spcl.data.catalog import open_data
from spcl.data.labels import colorize
from spcl.data.loader import Steps, StoredLabels, Stream
from spcl.data.predictions import PredictionSet
from spcl.data.shards import ShardSet
from spcl.data.transforms import Augment, decode, decode_label
from spcl.errors import ConfigError
from spcl.evaluate import evaluate, load_image
from spcl.losses.segmentation import upsample
from spcl.methods import METHODS
from spcl.metrics import iou, mean_iou
from spcl.models.normalization import fill_unseen_statistics
from spcl.models.segmentor import Segmentor, build_segmentor
from spcl.panels import captioned_grid
from spcl.protocols import PROTOCOLS
from spcl.provenance import agree, code_version, describe
from spcl.pseudo_label import apply_thresholds, class_thresholds
from spcl.results.store import RunFolder, read_confusions, write_confusions
from spcl.settings import digest
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
    """One run of a configuration on this rank."""

    def __init__(self, config: Config, data: Path, run: RunFolder, around: Surroundings):
        self.config, self.run, self.around = config, run, around
        self.shards = open_data(config, data)
        self.store = ArtefactStore(run.folder.parent)
        fingerprints = {role: shards.fingerprint for role, shards in self.shards.items()}
        self.stages = plan(config, fingerprints)
        agree(config=digest(config.as_dict()), data=digest(fingerprints), code=code_version())

    def __call__(self) -> dict[str, Any]:
        """Make what is missing; returns the summary that DONE.json holds."""
        config = self.config
        # Before the first parallel region, since threads inherit it.  A softmax makes numbers below
        # 1e-38, and a processor takes up to a hundred times longer over each of those.
        torch.set_flush_denormal(True)
        torch.set_num_threads(config.train.threads)
        if config.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
            torch.use_deterministic_algorithms(True)
        if distributed.rank() == 0:
            about = describe(config, self.stages, self.shards, self.run.name)
            self.run.write("manifest.json", about)
        for stage in self.stages:
            if self.store.has(stage):
                self.around.telemetry.message(f"{stage.title}: done before, reused")
                continue
            self.around.telemetry.message(f"{stage.title}: started")
            getattr(self, f"_{stage.kind}")(stage)
        return self._finish()

    # One method per kind of stage.

    def _train(self, stage: Stage) -> None:
        config = self.config
        seed = int(digest({"seed": config.seed, "stage": stage.method})[:8], 16)
        torch.manual_seed(seed)
        segmentor = self._segmentor(stage)
        method = METHODS[stage.method](segmentor, config.of(stage.method))
        if "prototypes" in stage.inputs:
            state = checkpoint.load(
                self.store.open(stage.inputs["prototypes"]) / "prototypes.pt", torch.device("cpu")
            )
            method.prototypes.load(state["mean"], state["seen"])
        checkpoints = Checkpoints(self.run.folder / "checkpoints" / stage.folder)
        fit(stage.method, method, self._steps(stage), config.train, checkpoints, self.around)
        fill_unseen_statistics(method.segmentor)
        self._store_state(stage, method.cpu().state_dict())
        if distributed.rank() == 0:
            checkpoints.clear()

    def _prototypes(self, stage: Stage) -> None:
        section = self._consumer(stage)
        result = passes.prototype_pass(
            self._segmentor(stage),
            self.shards["source"],
            self.config.source.size,
            self.around.device,
            init=section.init,
            mask=section.source_mask,
        )
        with self.store.write(stage) as folder:
            if distributed.rank() == 0:
                torch.save(result, folder / "prototypes.pt")

    def _predictions(self, stage: Stage) -> None:
        with self.store.write(stage) as folder:
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
        segmentor, device = self._segmentor(stage).to(self.around.device).eval(), self.around.device
        shards, size = self.shards["evaluation"], self.config.evaluation.size

        def predict(image: torch.Tensor) -> torch.Tensor:
            return segmentor(image, "target").logits

        ids, matrices = evaluate(predict, shards, size, device)
        with self.store.write(stage) as folder:
            if distributed.rank() == 0:
                write_confusions(folder / "confusions.parquet", ids, matrices)
                np.savez_compressed(folder / "samples.npz", **self._samples(predict))

    # What stages share.

    def _segmentor(self, stage: Stage) -> Segmentor:
        """The network of a stage: its checkpoint's, or a new one."""
        config, start = self.config, stage.inputs.get("checkpoint")
        segmentor = build_segmentor(
            config.model.name,
            len(self._class_names),
            norm=config.norm,
            weights="none" if start else config.weights,
            aspp_branches=config.model.aspp_branches,
        )
        if start:
            path = self.store.open(start) / "checkpoint.pt"
            state = checkpoint.load(path, torch.device("cpu"))["method"]
            prefix = "segmentor."
            segmentor.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
        return segmentor

    @property
    def _class_names(self) -> list[str]:
        return self.shards["evaluation"].metadata["class_names"]

    def _consumer(self, stage: Stage) -> Any:
        """The settings of the method that reads a pass's result."""
        reader = next(s for s in self.stages if s.method and stage in s.inputs.values())
        return self.config.of(reader.method)

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
                augment=Augment(
                    section.size, section.jitter, section.flip, config.of(stage.method).scale
                ),
                labels=labels,
                seed=config.seed,
                class_balanced=role == "source" and config.source.class_balanced,
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
        with self.store.write(stage) as folder:
            if distributed.rank() == 0:
                torch.save({"schema": checkpoint.SCHEMA, "method": state}, folder / "checkpoint.pt")

    def _panel_indices(self) -> list[int]:
        count = len(self.shards["evaluation"])
        return sorted({int(i) for i in np.linspace(0, count - 1, PANEL_IMAGES)})

    @torch.no_grad()
    def _samples(self, predict) -> dict[str, np.ndarray]:
        """Predictions of the panel's images at label resolution, by sample number."""
        shards, size = self.shards["evaluation"], self.config.evaluation.size
        samples = {}
        for index in self._panel_indices():
            logits = predict(load_image(shards, index, size).to(self.around.device)).float()
            shape = decode_label(shards.label(index)).shape
            samples[str(index)] = upsample(logits, shape).argmax(1)[0].byte().cpu().numpy()
        return samples

    # The end of a run.

    def _finish(self) -> dict[str, Any]:
        """Rank 0 writes the run's results; every rank returns the summary."""
        evaluations = {s.inputs["checkpoint"]: s for s in self.stages if s.kind == "evaluation"}
        summary: dict[str, Any] = {}
        if distributed.rank() == 0:
            rows, predictions = [], {}
            for scored, stage in evaluations.items():
                folder = self.store.open(stage)
                ids, matrices = read_confusions(folder / "confusions.parquet")
                trained = scored.inputs["checkpoint"] if scored.kind == "statistics" else scored
                path = self.run.folder / "evaluations" / f"{trained.title}.parquet"
                write_confusions(path, ids, matrices)
                rows.append(
                    {"stage": trained.title, "title": METHODS[trained.method].title}
                    | score(matrices.sum(0), self.config.evaluation.protocol)
                )
                predictions[rows[-1]["title"]] = np.load(folder / "samples.npz")
            self._write_panel(predictions)
            summary = {
                "classes": self._class_names,
                "protocol": self.config.evaluation.protocol,
                "images": len(self.shards["evaluation"]),
                "selection": self.config.selection,
                "seed": self.config.seed,
                "table": rows,
                "artefacts": {stage.title: stage.folder for stage in self.stages},
            }
            self.run.finish(summary)
        distributed.barrier()
        return summary

    def _write_panel(self, predictions: dict[str, Any]) -> None:
        shards = self.shards["evaluation"]
        rows = []
        for index in self._panel_indices():
            truth = decode_label(shards.label(index)).numpy()
            image = decode(shards.image(index)).permute(1, 2, 0).numpy()
            if image.shape[:2] != truth.shape:
                image = np.array(Image.fromarray(image).resize(truth.shape[::-1]))
            guesses = [colorize(samples[str(index)]) for samples in predictions.values()]
            rows.append([image, colorize(truth), *guesses])
        picture = captioned_grid(rows, ("image", "ground truth", *predictions))
        Image.fromarray(picture).save(self.run.folder / "panel.png")


def score(confusion: np.ndarray, protocol: str) -> dict[str, Any]:
    """Per-class IoU and the protocol's means, each with the number of classes averaged."""
    per_class = [None if np.isnan(v) else float(v) for v in iou(confusion)]
    means = {}
    for name, classes in PROTOCOLS[protocol].means.items():
        value, count = mean_iou(confusion, classes)
        means[name] = {"value": float(value), "classes": int(count)}
    return {"iou": per_class, "means": means}


def open_run(config: Config, storage: Path, name: str) -> RunFolder:
    """The run's folder, new or to be continued.  ConfigError where it belongs to another config."""
    run = RunFolder(storage / name)
    path = run.folder / "config.yaml"
    if path.is_file():
        old = from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        changed = differences(old, config)
        if changed:
            raise ConfigError(
                f"run {name!r} exists with other settings ({'; '.join(changed[:5])}); "
                f"choose another --name, or remove it with: python -m spcl.runs rm {name}"
            )
    text = yaml.safe_dump(config.as_dict(), sort_keys=False)
    atomic.write_bytes(path, text.encode())
    return run
