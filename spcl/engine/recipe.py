"""Run a recipe: each stage once, its result stored by key, then every evaluation, then the table.

Runs on every rank alike, under plain Python, torchrun or Ray; what is stored decides what is left
to do, so a killed run continues by running the same command.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spcl import distributed
from spcl.configuration import chosen_by as choices
from spcl.configuration import elastic
from spcl.configuration.config import Config
from spcl.configuration.sections import Domain
from spcl.data.batch import Labels
from spcl.data.export import write_png
from spcl.data.labels import colorize
from spcl.data.loader import Steps, StoredFrames, StoredLabels, Stream, stored_flow
from spcl.data.pairs import AugmentPair, PairCrops
from spcl.data.reads import Read, domain_of
from spcl.data.shards import ShardSet
from spcl.data.transforms import Augment, decode, decode_label
from spcl.engine.artefacts import ArtefactStore
from spcl.engine.devices import set_up_torch
from spcl.engine.inputs import open_data
from spcl.engine.networks import load_segmentor, network_state, new_method
from spcl.engine.panels import captioned_grid, same_size
from spcl.engine.provenance import check_ranks_agree, code_version, describe
from spcl.engine.stages import Stage, plan
from spcl.engine.trainer import Context, fit
from spcl.inference import passes
from spcl.inference.predict import Predict, evaluate, predict_labels
from spcl.methods import METHODS
from spcl.methods.passes import LabelPass, StatePass
from spcl.methods.stage import StageConfig
from spcl.models.normalization import fill_unseen_statistics
from spcl.models.segmentor import Segmentor
from spcl.scoring.protocols import absence_notes, score
from spcl.settings import digest
from spcl.store import atomic, checkpoint, heartbeat
from spcl.store.checkpoint import Checkpoints
from spcl.store.run_folder import RunFolder, read_confusions, write_confusions

PANEL_IMAGES = 6  # rows of the qualitative panel


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
        context: Context,
        *,
        storage: Path | None = None,
        continued: bool = False,
    ):
        self.config, self.run = config, run
        self.shards = open_data(config, data)
        self.context = dataclasses.replace(context, palette=self.shards["source"].palette)
        self.store = ArtefactStore(storage or run.folder.parent)
        self.continued = continued
        fingerprints = {role: shards.fingerprint for role, shards in self.shards.items()}
        self.stages = plan(config, fingerprints)
        check_ranks_agree(
            config=digest(config.as_dict()), data=digest(fingerprints), code=code_version()
        )

    def __call__(self) -> dict[str, Any]:
        """Make what is missing; returns the summary that DONE.json holds."""
        self.make(self.stages)
        return self._finish()

    def make(self, stages: Sequence[Stage]) -> None:
        """Make those of the recipe's stages that are missing, and nothing else."""
        rank, ranks = distributed.rank(), distributed.world_size()
        with heartbeat.beating(self.run.folder, self.context.telemetry, rank, ranks):
            self._make(stages)

    def _make(self, stages: Sequence[Stage]) -> None:
        set_up_torch(self.config.train)
        for stage in stages:
            if stage.method and not self.store.has(stage):
                meant, ranks = self.config.train.workers, distributed.world_size()
                elastic.expect(stage.method, self.config.by_rank(stage.method), meant, ranks)
        if distributed.rank() == 0:
            united = self.config.chosen_by | choices.stored(self.run)
            config = dataclasses.replace(self.config, chosen_by=united)
            about = describe(config, self.stages, self.shards, self.run.name)
            self.run.write("manifest.json", about)
        makers = {
            "train": self._train,
            "statistics": self._statistics,
            "evaluation": self._evaluation,
        }
        for stage in stages:
            if self.store.has(stage):
                self.context.telemetry.message(f"{stage.title}: done before, reused")
                continue
            self.context.telemetry.message(f"{stage.title}: started")
            # Only training leaves checkpoints: what a killed pass took is lost with its work.
            self.checkpoints = Checkpoints(self.run.folder / "checkpoints" / stage.progress)
            make = self._pass if stage.reader else makers[stage.kind]
            make(stage)

    # One method per kind of stage.

    def _train(self, stage: Stage) -> None:
        config = self.config
        seed = int(digest({"seed": config.seed, "stage": stage.method})[:8], 16)
        torch.manual_seed(seed)
        method = new_method(config, stage.method, self._segmentor(stage))
        learnt = [look for look in method.passes if issubclass(look, StatePass)]
        if learnt:
            paths = [self.store.open(stage.inputs[p.name]) / f"{p.name}.pt" for p in learnt]
            states = [checkpoint.load(path, torch.device("cpu")) for path in paths]
            method.start_from({k: v for state in states for k, v in state.items()})
        checkpoints, steps = self.checkpoints, self._steps(stage)
        fit(stage.method, method, steps, config.train, checkpoints, self.context, seed)
        fill_unseen_statistics(method)
        self._store(stage, network_state(method))
        if distributed.rank() == 0 and not self.continued:
            checkpoints.clear()

    def _pass(self, stage: Stage) -> None:
        segmentor, device = self._segmentor(stage), self.context.device
        (look,) = (p for p in METHODS[stage.reader].passes if p.name == stage.kind)
        size = getattr(self.config, look.domain).size
        with self.store.write(stage, self.checkpoints.seconds) as folder:
            one = look(segmentor, self.config.of(stage.reader), device, folder)
            passes.run_pass(one, segmentor, self.shards[look.domain], size, device)

    def _statistics(self, stage: Stage) -> None:
        segmentor = self._segmentor(stage)
        size = self.config.target.size
        passes.statistics_pass(segmentor, self.shards["target"], size, self.context.device)
        state = {f"segmentor.{k}": v for k, v in segmentor.cpu().state_dict().items()}
        self._store(stage, {"schema": checkpoint.SCHEMA, "method": state})

    def _evaluation(self, stage: Stage) -> None:
        predict, shards = self._predict(stage.inputs["checkpoint"]), self.shards["evaluation"]
        ids, matrices = evaluate(predict, shards, self.config.evaluation, self.context.device)
        with self.store.write(stage, self.checkpoints.seconds) as folder:
            if distributed.rank() == 0:
                write_confusions(folder / "confusions.parquet", ids, matrices)
                samples: dict[str, Any] = self._samples(predict, shards)
                with atomic.opened(folder / "samples.npz") as file:
                    np.savez_compressed(file, **samples)

    # What stages share.

    def _segmentor(self, stage: Stage) -> Segmentor:
        """The network that a stage starts from: its checkpoint's, or a new one."""
        start = stage.inputs.get("checkpoint")
        folder = self.store.open(start) if start else None
        return load_segmentor(self.config, len(self._class_names), folder)

    def _predict(self, trained: Stage) -> Predict:
        """Target images to logits, by the network that a stage has stored."""
        classes, folder = len(self._class_names), self.store.open(trained)
        segmentor = load_segmentor(self.config, classes, folder).to(self.context.device).eval()
        return segmentor.predict

    @property
    def _class_names(self) -> list[str]:
        return self.shards["source"].class_names

    def _steps(self, stage: Stage) -> Steps:
        """The streams of a training stage, as this rank reads them."""
        config = self.config
        streams = {
            name: self._stream(stage, name, read)
            for name, read in config.reads_of(stage.method).items()
        }
        return Steps(
            streams,
            batch=config.batch_of(stage.method),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def _stream(self, stage: Stage, name: str, read: Read) -> Stream:
        domain = domain_of(name)
        section, shards = getattr(self.config, domain), self.shards[domain]
        augment = augmentation(section, domain, self.config.of(stage.method))
        stream = Stream(
            name=f"{stage.method}/{name}",
            shards=shards,
            augment=augment,
            labels=None,
            seed=self.config.seed,
            order=section.order,
            rarity=section.rarity,
        )
        if isinstance(read, PairCrops):
            return dataclasses.replace(stream, augment=AugmentPair(augment, read))
        return dataclasses.replace(
            stream,
            labels=self._labels(stage, domain) if "label" in read else None,
            previous=StoredFrames(shards) if "previous" in read else None,
            flow=stored_flow(shards) if "flow" in read else None,
        )

    def _labels(self, stage: Stage, domain: str) -> Labels:
        """A stream's labels: the truth of the source; of the target what a pass has predicted."""
        shards = self.shards[domain]
        if domain == "source":
            return StoredLabels(shards)
        (look,) = (p for p in METHODS[stage.method].passes if issubclass(p, LabelPass))
        return look.labels(self.store.open(stage.inputs[look.name]), shards.sample_ids, self.config)

    def _store(self, stage: Stage, content: dict[str, Any]) -> None:
        with self.store.write(stage, self.checkpoints.seconds) as folder:
            if distributed.rank() == 0:
                with atomic.opened(folder / "checkpoint.pt") as file:
                    torch.save(content, file)

    @torch.no_grad()
    def _samples(self, predict: Predict, shards: ShardSet) -> dict[str, np.ndarray]:
        """Predictions of the panel's images by sample number, at label (else image) resolution."""
        samples = {}
        for index in panel_indices(shards):
            image = decode(shards.image(index))
            shape = decode_label(shards.label(index)).shape if shards.labelled else image.shape[1:]
            settings, device = self.config.evaluation, self.context.device
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
    geometry = Augment(
        section.size,
        scale=stage.scale,
        crop=section.crop,
        shows=section.crop_shows,
        most=section.crop_most,
    )
    if stage.augment == "none" or (stage.augment == "source" and role != "source"):
        return geometry
    return dataclasses.replace(
        geometry,
        jitter=section.jitter,
        grayscale=section.grayscale,
        blur=section.blur,
        flip=section.flip if stage.augment == "both" else 0.0,
    )


def panel_indices(shards: ShardSet) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, len(shards) - 1, PANEL_IMAGES)})
