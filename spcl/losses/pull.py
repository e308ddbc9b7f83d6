"""Pull features of styled source images to source prototypes: the pieces of T2S-DA's loss.

Source: T2S-DA, arXiv:2305.13752, after its abstract and captions; what they leave open is ours.
What is chosen here is chosen from the whole batch, the same on every rank, without a loop and
without a look at values on the host.
Letters: N pixels of the whole batch, Q queries, M negatives, K classes, D feature dimension.
"""

import math

import torch
from torch import Tensor

from spcl import distributed
from spcl.data.labels import IGNORE_INDEX
from spcl.precision import at_least_float32

LEVELS = 4096  # of an entropy: a quantile is exact on these integers
NEVER = 2.0  # a draw of what is not to be chosen: above all others


def slots(positions: Tensor) -> Tensor:
    """(B,) the place of this rank's images among those of the whole batch."""
    return positions % (distributed.world_size() * len(positions))


def all_positions(positions: Tensor) -> Tensor:
    """Of the whole batch, in order, from those of this rank."""
    first = (positions - slots(positions))[:1]
    return first + torch.arange(distributed.world_size() * len(positions), device=positions.device)


def pick(features: Tensor, indices: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Features (P, D) of pixels (P,) of the whole batch, and which of them are this rank's (P,).

    features  (B, D, h, w) of this rank's images, at `positions`; a pixel of another rank gets those
              of one that is here, which the caller leaves out
    """
    pixels = features[0, 0].numel()
    images = distributed.world_size() * len(positions)
    row_of = torch.full((images,), -1, device=indices.device)
    row_of[slots(positions)] = torch.arange(len(positions), device=indices.device)
    rows = row_of[indices // pixels]
    return features.flatten(2)[rows.clamp(min=0), :, indices % pixels], rows >= 0


def entropy(logits: Tensor) -> Tensor:
    """(B, h, w) in nats, of what (B, K, h, w) logits predict."""
    log = at_least_float32(logits).log_softmax(1)
    return -(log.exp() * log).sum(1)


def entropy_levels(logits: Tensor) -> Tensor:
    """(B, h, w) int64, 0 .. LEVELS - 1: the entropy as a share of the largest there can be."""
    share = entropy(logits) / math.log(logits.shape[1])
    return (share * (LEVELS - 1)).long().clamp(0, LEVELS - 1)


def histogram(levels: Tensor) -> Tensor:
    """(LEVELS,) float64 number of pixels at each level."""
    flat = levels.flatten()
    counts = torch.zeros(LEVELS, dtype=torch.float64, device=levels.device)
    return counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.float64))


def quantile_level(counts: Tensor, share: float) -> Tensor:
    """() the lowest level that at least `share` of the pixels counted do not exceed."""
    reached = counts.cumsum(0) >= share * counts.sum()
    return reached.to(torch.uint8).argmax()


def query_counts(pixels: Tensor, each: int) -> Tensor:
    """(K,) int64 ceil(K * each * share of the class): how many queries each class gets.

    pixels  (K,) of each class in the whole batch
    """
    pixels = pixels.long()
    total = pixels.sum().clamp(min=1)
    return (len(pixels) * each * pixels + total - 1) // total


def choose_of_each(
    labels: Tensor, draws: Tensor, counts: Tensor, limit: int
) -> tuple[Tensor, Tensor]:
    """Of each class the pixels with the smallest draws, as many as its count, or all there are.

    labels  (N,) trainIds, 255 is never chosen;  draws (N,) in [0, 1);  counts (K,)
    limit   of pixels in all, which the counts keep by themselves: it makes the shape a fixed one

    Returns indices (Q,) and which of them are meant (Q,), Q = min(limit, N).
    """
    labels = labels.long()
    order = (labels + draws.double()).argsort()  # by class, and in it by draw: exact in float64
    ordered = labels[order]
    starts = torch.searchsorted(ordered, torch.arange(len(counts), device=labels.device))
    kind = ordered.clamp(max=len(counts) - 1)
    place = torch.arange(len(labels), device=labels.device) - starts[kind]
    chosen = (ordered != IGNORE_INDEX) & (place < counts[kind])
    front = (~chosen).to(torch.uint8).argsort(stable=True)[:limit]  # those that are come first
    return order[front], chosen[front]


def choose(labels: Tensor, draws: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The pixels with the smallest draws among those that have a label, at most `count`.

    Returns indices (M,) and which of them are meant (M,), M = min(count, N).
    """
    open_to = torch.where(labels == IGNORE_INDEX, NEVER, draws)
    values, indices = open_to.topk(min(count, len(draws)), largest=False)
    return indices, values < NEVER


def negative_weights(labels: Tensor, meant: Tensor, num_classes: int, total: float) -> Tensor:
    """(K, M) by how much each negative counts for a query of each class.

    labels  (M,) of the negatives;  meant (M,) whether there is one

    Those of a query's own class count nothing, the others alike, and `total` together (nothing
    where there are none): the mean of drawing `total` of them for the query.
    """
    kinds = torch.arange(num_classes, device=labels.device)
    allowed = meant & (labels != kinds[:, None])
    return allowed * (total / allowed.sum(1, keepdim=True).clamp(min=1))


def info_nce(
    queries: Tensor, positives: Tensor, negatives: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """(Q,) minus the logarithm of the positive's share of all similarities.

    queries (Q, D), positives (Q, D), negatives (M, D): unit length
    weights (Q, M): of each negative; 0 leaves it out
    """
    positive = (queries * positives).sum(1, keepdim=True) / temperature
    negative = queries @ negatives.T / temperature + weights.to(queries.dtype).log()
    return torch.cat([positive, negative], 1).logsumexp(1) - positive[:, 0]


def class_weights(confidence: Tensor, power: float, norm: str = "max") -> Tensor:
    """(K,) larger for a class that is predicted with less confidence.

    confidence  (K,) 0 .. 1;  power 0 is the same weight for all
    norm        "max": the largest weight is 1; "mean": their mean is
    """
    lacking = 1 - confidence
    most = lacking.max()
    relative = torch.where(most > 0, lacking / torch.where(most > 0, most, 1.0), 1.0)
    weights = relative**power
    return weights / weights.mean() if norm == "mean" else weights
