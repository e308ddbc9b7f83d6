"""Passes over a data set with a trained network: what methods learn there, target statistics.

Each reads every sample once, without augmentation or gradient, a rank taking every W-th group.
"""

import torch

from spcl import distributed
from spcl.data.shards import ShardSet
from spcl.data.transforms import resize_label
from spcl.inference.reader import groups, of_rank, read
from spcl.methods.passes import Pass
from spcl.models.normalization import DomainNorm
from spcl.models.segmentor import Output, Segmentor

STATISTICS_BATCH = 8  # images that are normalised together, over all ranks


@torch.no_grad()
def run_pass(
    one: Pass,
    segmentor: Segmentor,
    shards: ShardSet,
    size: tuple[int, int],
    device: torch.device,
    *,
    threads: int = 0,
) -> None:
    """A method's own look at a whole domain; its result is in the pass's folder afterwards.

    threads  that read ahead
    """
    segmentor.to(device).eval()
    mine = of_rank(groups(len(shards), size))
    labelled = one.domain == "source"  # a target's labels are opened by nobody here
    where = f"the {one.name} pass"
    for group in read(where, shards, mine, [size], labelled=labelled, threads=threads):
        images = group.inputs(device)[0]
        output = segmentor(images, one.domain)
        for place, index in enumerate(group.indices):
            label = None
            if labelled:
                label = resize_label(group.labels[place], size)[None].to(device)
            only = slice(place, place + 1)
            one.add(shards.sample_ids[index], images[only], _part(output, only), label)
    one.finish()


def _part(output: Output, images: slice) -> Output:
    return Output(
        output.features[images],
        output.logits[images],
        tuple(level[images] for level in output.levels),
    )


@torch.no_grad()
def statistics_pass(
    segmentor: Segmentor,
    shards: ShardSet,
    size: tuple[int, int],
    device: torch.device,
    *,
    domain: str = "target",
    threads: int = 0,
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
    starts = range(0, len(shards), STATISTICS_BATCH)
    # A rank without an image still takes part in the sums, with a group of none.
    mine = [range(n, min(n + STATISTICS_BATCH, len(shards)))[rank::world] for n in starts]
    for group in read("the statistics pass", shards, mine, [size], threads=threads):
        segmentor(group.inputs(device)[0], domain)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    segmentor.eval()
