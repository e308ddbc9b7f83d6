"""Passes over a data set with a trained network: what methods learn there, target statistics.

Each reads every sample once, without augmentation or gradient, a rank taking every W-th.
"""

import numpy as np
import torch

from spcl import distributed
from spcl.data.loader import rank_indices
from spcl.data.shards import ShardSet
from spcl.data.transforms import decode_label, resize_label
from spcl.inference.predict import load_image
from spcl.methods.passes import Pass
from spcl.models.normalization import DomainNorm
from spcl.models.segmentor import Segmentor
from spcl.store import heartbeat

STATISTICS_BATCH = 8  # images that are normalised together, over all ranks


def _mine(shards: ShardSet) -> np.ndarray:
    return rank_indices(len(shards), distributed.rank(), distributed.world_size())


@torch.no_grad()
def run_pass(
    one: Pass, segmentor: Segmentor, shards: ShardSet, size: tuple[int, int], device: torch.device
) -> None:
    """A method's own look at a whole domain; its result is in the pass's folder afterwards."""
    segmentor.to(device).eval()
    for index in heartbeat.counted(f"the {one.name} pass", _mine(shards)):
        image = load_image(shards, index, size).to(device)
        output = segmentor(image, one.domain)
        label = None
        if one.domain == "source":  # a target's labels are opened by nobody here
            label = resize_label(decode_label(shards.label(index)), size)[None].to(device)
        one.add(shards.sample_ids[index], image, output, label)
    one.finish()


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
    segmentor.to(device).eval()
    for layer in layers:
        layer.train()  # these alone: nothing else may be random or move here
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
