"""What a command would do: stages, keys, what is stored already, steps, memory."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from spcl.artefacts import ArtefactStore
from spcl.config import Config
from spcl.data.batch import Batch
from spcl.data.catalog import open_data
from spcl.launch import Request
from spcl.methods import METHODS
from spcl.recipe import new_segmentor
from spcl.stages import plan

MIB = 2**20
STATE_COPIES = 3  # a weight, its gradient and its momentum


def describe(request: Request, workers: int) -> str:
    """A table of the stages, in the order they would run."""
    config = request.config
    shards = open_data(config, request.data)
    stages = plan(config, {role: s.fingerprint for role, s in shards.items()})
    store = ArtefactStore(request.storage)
    lines = [f"run {request.name} in {request.storage / request.name}"]
    if config.compat == "official":
        lines.append(
            f"  compat=official: what the authors' code does, configs/compat/{config.method}.yaml"
        )
    for role, split in shards.items():
        lines.append(f"  {role:<11}{split.name}, {len(split)} images, {split.folder}")
    lines.append(f"{'stage':<34}{'key':<18}{'stored':<8}{'steps':>7}{'batch':>7}{'MiB/worker':>12}")
    for stage in stages:
        stored = "yes" if store.has(stage) else "no"
        row = f"{stage.title:<34}{stage.key[:16]:<18}{stored:<8}"
        if stage.method:
            section = config.of(stage.method)
            batch = config.batch_of(stage.method)
            classes = len(shards["source"].class_names)
            need = memory(config, stage.method, batch // workers, classes) / MIB
            row += f"{section.steps:>7}{batch:>7}{need:>12.0f}"
        lines.append(row)
    lines.append(f"{workers} worker(s), {config.train.threads} thread(s) each; nothing was started")
    return "\n".join(lines)


def memory(config: Config, name: str, batch: int, num_classes: int) -> int:
    """Bytes that a training step keeps on each worker: weights, optimizer state and activations.

    Counted on tensors without data, from what autograd saves; workspaces of the kernels and the
    CUDA context come on top.
    """
    with FakeTensorMode():
        segmentor = new_segmentor(config, num_classes, weights="none")
        method = METHODS[name](segmentor, config.of(name)).train()
        images, labels = {}, {}
        for role in METHODS[name].domains:
            size = getattr(config, role).size
            images[f"{role}_image"] = torch.empty(batch, 3, *size)
            labels[f"{role}_label"] = torch.zeros(batch, *size, dtype=torch.uint8)
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            terms = method(Batch(**images, **labels), 0)
    del terms
    weights = sum(p.numel() * p.element_size() for p in method.parameters())
    return STATE_COPIES * weights + sum(saved.values())
