"""How much memory a step of training, or a prediction, needs: counted without any.

The step runs on fake tensors, which have shapes and types but no data, and the count follows every
storage from its first operation to its last reference.  So it holds whatever a method does: frozen
networks have no gradient and no optimizer state, AdamW has two where SGD has one, a backward frees
what its forward kept.  What no tensor shows comes on top: the device's context and the workspaces
of its kernels.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spcl import distributed
from spcl.configuration.config import Config
from spcl.engine.gradients import AtOnce, runner
from spcl.engine.networks import new_method, new_segmentor, random_batch
from spcl.engine.stages import Stage
from spcl.engine.trainer import total
from spcl.inference.passes import STATISTICS_BATCH
from spcl.losses.segmentation import upsample
from spcl.methods import METHODS
from spcl.randomness import Step

COUNTED_STEPS = 2  # from the second on an optimizer has its state


@dataclass(frozen=True)
class Footprint:
    """Bytes on one worker at the moment of a step that needs most.

    weights     parameters, trained and frozen, each once
    buffers     statistics, prototypes, moments
    gradients   of what is trained
    optimizers  momentum, moments of Adam
    batch       images, labels, positions
    peak        all of it, with what autograd keeps and what lives for an operation alone
    """

    weights: int
    buffers: int
    gradients: int
    optimizers: int
    batch: int
    peak: int

    @property
    def activations(self) -> int:
        """The rest: at the peak, what autograd keeps and what lives for an operation alone."""
        held = self.weights + self.buffers + self.gradients + self.optimizers + self.batch
        return max(0, self.peak - held)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations within it make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()  # views share a storage, which counts once
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def training(
    config: Config, stage: str, batch: int, num_classes: int, *, workers: int = 1
) -> Footprint:
    """Of a training stage's step.

    batch  images of each stream on this worker, of `workers`: with several, DDP's buckets hold the
           gradients from the first step on, and gradients are views of them
    """
    # Under torchrun every rank counts for itself: fake tensors have nothing to send.
    with distributed.on_its_own(), FakeTensorMode(), LiveBytes() as live:
        method = new_method(config, stage, new_segmentor(config, num_classes, weights="none"))
        running = runner(method.train(), batch, config.train)
        optimizers = method.all_optimizers()
        data = random_batch(config, stage, batch, num_classes)
        trained = [p for p in method.parameters() if p.requires_grad]
        buckets = workers > 1 and isinstance(running, AtOnce)
        if buckets:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        for number in range(COUNTED_STEPS):  # as in `trainer.fit`
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=not buckets)
            loss, _ = total(running.terms(data, Step(number)), config.train.reduction)
            running.backward(loss)
            for optimizer in optimizers:
                optimizer.step()
        return Footprint(
            weights=_bytes(method.parameters()),
            buffers=_bytes(method.buffers()),
            gradients=_bytes(trained),
            optimizers=_bytes(tree_leaves([o.state_dict()["state"] for o in optimizers])),
            batch=_bytes(
                tensor for content in data.streams.values() for tensor in content.tensors()
            ),
            peak=live.peak,
        )


def prediction(config: Config, size: tuple[int, int], num_classes: int, images: int = 1) -> int:
    """Peak bytes of the network on images of a size, and of their probabilities there.

    What passes and evaluations do with an image, without gradients.
    """
    with distributed.on_its_own(), torch.no_grad(), FakeTensorMode(), LiveBytes() as live:
        segmentor = new_segmentor(config, num_classes, weights="none").eval()
        logits = segmentor(torch.empty(images, 3, *size), "target").logits
        upsample(logits.float(), size).softmax(1).max(1)
        return live.peak


def without_training(config: Config, stage: Stage, workers: int, num_classes: int) -> int:
    """Peak bytes of a stage that trains nothing: a method's pass, statistics, an evaluation."""
    if stage.kind == "evaluation":
        scale = max(config.evaluation.scales)
        height, width = (round(side * scale) for side in config.evaluation.size)
        return prediction(config, (height, width), num_classes)
    if stage.kind == "statistics":
        images = math.ceil(STATISTICS_BATCH / workers)
        return prediction(config, config.target.size, num_classes, images)
    (look,) = (p for p in METHODS[stage.reader].passes if p.name == stage.kind)
    return prediction(config, getattr(config, look.domain).size, num_classes)


def _bytes(tensors: Any) -> int:
    """Each storage once; what is no tensor has none."""
    storages = {t.untyped_storage()._cdata: t for t in tensors if isinstance(t, Tensor)}
    return sum(t.untyped_storage().nbytes() for t in storages.values())


def memory(config: Config, name: str, batch: int, num_classes: int, workers: int = 1) -> int:
    """Bytes that a training step needs on each worker; `python -m spcl.plan` says what for."""
    return training(config, name, batch, num_classes, workers=workers).peak
