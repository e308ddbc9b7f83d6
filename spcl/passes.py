"""Passes over a data set with a trained network: memories, predictions, target statistics.

Each reads every sample once, without augmentation or gradient, a rank taking every W-th.
"""

import io
from pathlib import Path

import numpy as np
import torch

from spcl import atomic, distributed, heartbeat
from spcl.data.loader import rank_indices
from spcl.data.predictions import HISTOGRAM, PredictionWriter
from spcl.data.shards import ShardSet
from spcl.data.transforms import decode_label, resize_label
from spcl.evaluate import load_image
from spcl.losses.segmentation import upsample
from spcl.methods.base import SourcePass
from spcl.models.normalization import DomainNorm
from spcl.models.segmentor import Segmentor
from spcl.pseudo_label import CONFIDENCE_LEVELS, confidence_histogram, quantize

STATISTICS_BATCH = 8  # images that are normalised together, over all ranks


def _mine(shards: ShardSet) -> np.ndarray:
    return rank_indices(len(shards), distributed.rank(), distributed.world_size())


@torch.no_grad()
def source_pass(
    segmentor: Segmentor,
    shards: ShardSet,
    size: tuple[int, int],
    device: torch.device,
    memory: SourcePass,
) -> dict[str, torch.Tensor]:
    """A method's own look at the whole source; its result, on the CPU, equal on all ranks."""
    segmentor.to(device).eval()
    for index in heartbeat.counted("the source pass", _mine(shards)):
        output = segmentor(load_image(shards, index, size).to(device), "source")
        label = resize_label(decode_label(shards.label(index)), size).to(device)
        memory.add(output, label[None])
    return {name: tensor.cpu() for name, tensor in memory.result().items()}


@torch.no_grad()
def prediction_pass(
    segmentor: Segmentor,
    shards: ShardSet,
    size: tuple[int, int],
    device: torch.device,
    folder: Path,
) -> None:
    """Store each target image's label and confidence at `size`, and their histogram.

    A confidence is, by definition, the integer floor(p * 65535): thresholds, and what they keep,
    are exact on those integers.
    """
    segmentor.to(device).eval()
    histogram = np.zeros((segmentor.num_classes, CONFIDENCE_LEVELS), np.int64)
    with PredictionWriter(folder, distributed.rank()) as writer:
        for index in heartbeat.counted("the prediction pass", _mine(shards)):
            logits = segmentor.predict(load_image(shards, index, size).to(device))
            confidence, best = upsample(logits.float(), size).softmax(1).max(1)
            levels = quantize(confidence[0].cpu().numpy())
            label = best[0].cpu().numpy().astype(np.uint8)
            histogram += confidence_histogram(label, levels, segmentor.num_classes)
            writer.add(shards.sample_ids[index], label, levels)
    total = distributed.all_reduce(torch.from_numpy(histogram).to(device)).cpu().numpy()
    if distributed.rank() == 0:
        buffer = io.BytesIO()
        np.save(buffer, total)
        atomic.write_bytes(folder / HISTOGRAM, buffer.getvalue())


@torch.no_grad()
def statistics_pass(
    segmentor: Segmentor,
    shards: ShardSet,
    size: tuple[int, int],
    device: torch.device,
    *,
    domain: str = "target",
) -> None:
    """AdaBN: replace a domain's running statistics by those of these images, one of its splits.

    The cumulative mean of batch statistics, each batch normalised by its own on the way, as in
    training.  Source: Li et al. 2016, arXiv:1603.04779.
    """
    layers = [m for m in segmentor.modules() if isinstance(m, DomainNorm)]
    momenta = [layer.momentum for layer in layers]
    segmentor.to(device).train()
    for layer in layers:
        layer.forget(domain)
        layer.momentum = None  # cumulative
    rank, world = distributed.rank(), distributed.world_size()
    empty = torch.empty(0, 3, *size)  # a rank without an image still takes part in the sums
    for start in range(0, len(shards), STATISTICS_BATCH):
        heartbeat.moved("the statistics pass", start, "image")
        batch = range(start, min(start + STATISTICS_BATCH, len(shards)))[rank::world]
        images = torch.cat([empty, *(load_image(shards, i, size) for i in batch)])
        segmentor(images.to(device), domain)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    segmentor.eval()
