"""The loop.  Every training stage of every method runs through `fit`; there is no other.

What all runs do is here, in order; what differs between methods is in the method.  `report` is the
one seam through which a cluster (Ray Train) hears of progress.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spcl import distributed
from spcl.configuration import elastic
from spcl.configuration.sections import Train
from spcl.data.batch import Batch
from spcl.data.labels import TRAIN_ID_COLORS
from spcl.data.loader import Steps
from spcl.engine.gradients import runner
from spcl.engine.panels import training_panel
from spcl.errors import UserError
from spcl.inference.predict import batch_confusion
from spcl.methods import optimization
from spcl.methods.base import ACTIVITY, Method, Term
from spcl.methods.stage import StageConfig
from spcl.randomness import Step
from spcl.scoring.metrics import mean_iou
from spcl.store import checkpoint, heartbeat
from spcl.store.checkpoint import Checkpoints
from spcl.store.telemetry import Telemetry

Report = Callable[[dict[str, Any]], None]


class TrainingError(UserError):
    """Training cannot go on: a loss is not finite."""


@dataclass
class Context:
    """Device, log and progress callback of a run; the same for all of its stages."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    telemetry: Telemetry = field(default_factory=lambda: Telemetry(None))
    report: Report = lambda metrics: None
    palette: np.ndarray = field(default_factory=lambda: TRAIN_ID_COLORS)  # (K, 3), for pictures


def fit(
    name: str,
    method: Method,
    data: Steps,
    train: Train,
    checkpoints: Checkpoints,
    context: Context,
    seed: int = 0,
) -> None:
    """Train `method` for its configured steps, from the newest checkpoint if there is one.

    Two rules hold it together.  Step s is a function of the state after step s - 1 and of data[s],
    nothing else: so a resumed run ends with the same bits.  All ranks call the same collectives in
    the same order, whatever they logged or failed at: so none waits for ever.
    seed  of what a step draws: see `spcl.randomness`
    """
    stage: StageConfig = method.config
    device = context.device
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    method.to(device).to(memory_format=layout).train()
    if train.compile:
        method.segmentor.compile()
    # Optimizers hold the parameters that were moved above, so they come after the move.
    optimizers = method.all_optimizers()
    rates = optimization.rates_of(optimizers)
    share = data.batch // distributed.world_size()
    # Gives every rank the buffers of rank 0, so it comes before a checkpoint is loaded.
    running = runner(method, share, train, device.type)
    sections = {name: stage} | {n: extra.config for n, extra in method.extras().items()}
    by_rank = elastic.choices(sections, train.reduction)
    start = _resume(name, method, optimizers, checkpoints, context, by_rank)
    window, idle = Window(device), Idle(name, method)

    for number, batch in enumerate(_batches(data, start, stage.steps, train, device), start):
        step = Step(number, seed, name)
        heartbeat.moved(f"stage {name}", number)  # sets a variable: nothing here may write or wait
        for optimizer in optimizers:  # before the forward, which then has their memory
            optimizer.zero_grad(set_to_none=True)
        # One forward for all players and domains: DDP then sums every gradient in one backward.
        terms = running.terms(batch, step)
        # Outside of autocast, in float32: sums over a million pixels do not fit bfloat16.
        loss, counts = total(terms, train.reduction)
        running.backward(loss)
        # After the backward, in which DDP has averaged: every rank sees, and clips, the same.
        if train.clip_norm:
            optimization.clip(optimizers, train.clip_norm)
        # Set from the step's number, not advanced: a resumed run needs no scheduler's state.
        optimization.schedule(optimizers, rates, optimization.factor(stage, number))
        for optimizer in optimizers:
            optimizer.step()
        method.after_step(step)
        # Sums stay on the device until a log line: reading them here would stop the GPU every step.
        window.add(number, terms, counts, loss)

        done = number + 1
        last = done == stage.steps
        save = last or done % train.checkpoint_every == 0
        # Every rank comes here at the same steps, since `read` is a collective; a loss that was not
        # finite thus ends all ranks, and before the checkpoint that would have kept it.
        if save or done % train.log_every == 0:
            losses, activity, rate = window.read(data, name)
            idle.add(activity)
            context.telemetry.write(
                name,
                done,
                stage.steps,
                losses=losses,
                **({"activity": activity} if activity else {}),
                learning_rate=optimizers[0].param_groups[0]["lr"],
                images_per_second=rate * data.batch,
                eta_seconds=(stage.steps - done) / rate,
                **_source_miou(method, batch, context),
            )
        if done % train.panel_every == 0 and distributed.rank() == 0:
            context.telemetry.panel(name, done, _panel(method, batch, context))
        if save:
            # Gathered from all ranks, written by one: Ray's restart and a new launch both find it.
            state = _state(method, optimizers, done, by_rank)
            if distributed.rank() == 0:
                checkpoints.save(done, state)
            context.report({"stage": name, "step": done})
    for warning in idle.warnings():
        context.telemetry.message(warning)
    method.eval()


def total(terms: dict[str, Term], reduction: str = "global") -> tuple[Tensor, Tensor]:
    """The loss to differentiate and the global counts (one per term).

    All counts travel in one all-reduce.  DDP averages gradients over ranks, so local sums are
    multiplied by the world size: N ranks then equal one.
    reduction  "global"; "per_rank" is the mean of each rank's own mean, see `sections.Train`
    """
    own = torch.stack([term.count.detach().double() for term in terms.values()])
    counts = distributed.all_reduce(own.clone())
    if reduction == "per_rank":
        scales = 1 / own.clamp(min=1)
    else:
        scales = distributed.world_size() / counts.clamp(min=1)
    losses = [
        t.weight * t.sum * s.to(t.sum.dtype) for t, s in zip(terms.values(), scales, strict=True)
    ]
    return torch.stack(losses).sum(), counts


class Window:
    """Running sums between two log lines, on the device: no host sync until they are read."""

    def __init__(self, device: torch.device):
        self.device = device
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._clear()

    def _clear(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.steps = 0
        self.started = time.perf_counter()

    def add(self, step: int, terms: dict[str, Term], counts: Tensor, loss: Tensor) -> None:
        sums = torch.stack([term.sum.detach().double() for term in terms.values()])
        pair = torch.stack([sums, counts.to(sums.device) / distributed.world_size()])
        self.sums = pair if self.sums is None else self.sums + pair
        self.names = list(terms)
        self.steps += 1
        bad = ~torch.isfinite(loss.detach()) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, step, self.first_bad)

    def read(self, data: Steps, stage: str) -> tuple[dict[str, float], dict[str, float], float]:
        """Mean of each loss and each activity over the window and all ranks, and steps per second;
        then clear.
        """
        assert self.sums is not None, "a window is read after a step"
        sums = distributed.all_reduce(self.sums)
        bad = [step for step in distributed.gather(int(self.first_bad)) if step >= 0]
        if bad:
            first = min(bad)  # where it began: the others follow a step later
            ids = "; ".join(f"{k}: {', '.join(v)}" for k, v in data.sample_ids(first).items())
            raise TrainingError(
                f"the loss of stage {stage!r} must stay finite, but it was not at step {first} "
                f"(samples {ids}); lower {stage}.learning_rate or look at these samples"
            )
        values = (sums[0] / sums[1].clamp(min=1)).tolist()
        losses, activity = {}, {}
        for name, value in zip(self.names, values, strict=True):
            if name.startswith(ACTIVITY):
                activity[name.removeprefix(ACTIVITY)] = value
            else:
                losses[name] = value
        rate = self.steps / max(time.perf_counter() - self.started, 1e-9)
        self._clear()
        return losses, activity, rate


class Idle:
    """Which activities were 0 in every line of a stage, or since it was resumed."""

    def __init__(self, stage: str, method: Method):
        self.stage = stage
        self.hints = {name: f"{stage}.{setting}" for name, setting in method.hints.items()}
        for extra, one in method.extras().items():
            for name, settings in one.hints.items():
                self.hints[f"{extra}/{name}"] = " and ".join(f"{extra}.{s}" for s in settings)
        self.most: dict[str, float] = {}

    def add(self, activity: dict[str, float]) -> None:
        for name, value in activity.items():
            self.most[name] = max(value, self.most.get(name, 0.0))

    def warnings(self) -> list[str]:
        """A line for each, which names the setting."""
        return [
            f"warning: {self.stage}: {name} was 0 throughout, so its term has done nothing; "
            f"look at {self.hints.get(name, name)}"
            for name, value in self.most.items()
            if value == 0
        ]


def _batches(
    data: Steps, start: int, stop: int, train: Train, device: torch.device
) -> Iterator[Batch]:
    cuda = device.type == "cuda"
    for batch in data.batches(start, stop, train.loader_workers, pin=cuda):
        yield batch.to(device, train.channels_last)


def _state(method: Method, optimizers: list, step: int, by_rank: elastic.Choices) -> dict[str, Any]:
    """What a checkpoint holds; every rank calls it, as it has each one's buffers if they differ."""
    state = {
        "schema": checkpoint.SCHEMA,
        "step": step,
        "method": method.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    if by_rank:
        state["workers"] = distributed.world_size()
        own = {name: buffer.cpu() for name, buffer in method.named_buffers()}
        state["buffers"] = distributed.gather(own)
    return state


def _resume(
    name: str,
    method: Method,
    optimizers: list,
    checkpoints: Checkpoints,
    context: Context,
    by_rank: elastic.Choices,
) -> int:
    """Load the newest checkpoint into everything; returns the first step still to do.

    Rank 0 chooses the file and says so: ranks must not pick different ones.
    """
    path = distributed.gather(
        checkpoints.newest(method.config.steps) if distributed.rank() == 0 else None
    )[0]
    if path is None:
        return 0
    state = checkpoint.load(path, context.device)
    if by_rank and "workers" in state:  # older code's do not say
        elastic.expect(name, by_rank, state["workers"], distributed.world_size())
    method.load_state_dict(state["method"])
    if by_rank and "buffers" in state:  # nor have them for train.reduction alone
        method.load_state_dict(state["buffers"][distributed.rank()], strict=False)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    context.telemetry.message(f"{name}: resumed at step {state['step']}")
    return state["step"]


@torch.no_grad()
def _source_miou(method: Method, batch: Batch, context: Context) -> dict[str, float]:
    """mIoU on this step's source images: a sign of life, not a result.  Rank 0's share only."""
    if "source" not in batch.streams or distributed.rank() != 0:
        return {}
    source = batch.source
    with evaluating(method):
        logits = method.get_submodule(method.scored)(source.image, "source").logits
    confusion = batch_confusion(logits, source.label).sum(0)
    return {"source_miou": mean_iou(confusion.cpu().numpy())[0]}


@torch.no_grad()
def _panel(method: Method, batch: Batch, context: Context) -> np.ndarray:
    with evaluating(method):
        return training_panel(method, batch, context.palette)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In eval mode within; each sub-module is then back in the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
