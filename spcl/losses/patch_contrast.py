"""Contrast of the same place in two crops: where they overlap, who learns from whom, the loss.

Source: PiPa, arXiv:2211.07609, its patch term, and its code, after Lai et al. 2021
(arXiv:2106.14371), "context-aware consistency".
Letters: B images, P = h * w cells of a crop's grid, D embedding dimension, N anchors, M negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spcl.data.labels import IGNORE_INDEX
from spcl.errors import ConfigError
from spcl.losses.directions import EPSILON
from spcl.losses.supervised_contrast import LEAST
from spcl.precision import at_least_float32, without_autocast

CHUNK = 1024  # anchors whose similarities to all negatives exist at a time


def on_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, h', w') -> (B, C, h, w): cells of a finer grid are averaged."""
    if values.shape[-2:] == grid:
        return values
    if values.shape[-2] > grid[0]:
        return F.adaptive_avg_pool2d(values, grid)
    return F.interpolate(values, grid, mode="bilinear")


def matching_cells(
    boxes: Tensor, flips: Tensor, crop: tuple[int, int], grid: tuple[int, int], multiple: int
) -> tuple[Tensor, Tensor]:
    """For every cell of either crop the one of the other crop that shows the same.

    boxes     (B, 2, 4), flips (B, 2): as in `spcl.data.batch.Pair`
    crop      (H, W) pixels, grid (h, w) cells of each of the two
    multiple  of the pixels between the crops' corners

    Returns indices (B, 2, P) into the other crop's cells, 0 where it shows the place not, and
    whether it does (B, 2, P).  ConfigError where the grids cannot lie on each other.
    """
    strides = tuple(whole // cells for whole, cells in zip(crop, grid, strict=True))
    if any(c % g or multiple % s for c, g, s in zip(crop, grid, strides, strict=True)):
        raise ConfigError(
            f"two crops are compared cell by cell, so their size and the pixels between them must "
            f"be multiples of a cell's, got crops of {crop[0]}x{crop[1]} at multiples of "
            f"{multiple} pixels and a grid of {grid[0]}x{grid[1]}; change pipa.crop or "
            "pipa.multiple"
        )
    sides = torch.tensor(strides * 2, device=boxes.device)
    top, left, height, width = (boxes // sides)[..., None, None].unbind(2)  # (B, 2, 1, 1)
    down = torch.arange(grid[0], device=boxes.device)[:, None] - top
    across = torch.arange(grid[1], device=boxes.device) - left
    inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
    mirrored = (flips != flips.flip(1))[..., None, None]
    across = torch.where(mirrored, width - 1 - across, across)
    index = (top.flip(1) + down) * grid[1] + left.flip(1) + across
    return torch.where(inside, index, 0).flatten(2), inside.flatten(2)


def learners(own: Tensor, other: Tensor, threshold: float) -> Tensor:
    """Which cells learn from what shows the same: it is confident, and more so than they are."""
    return (other > threshold) & (own < other)


def patch_contrast(
    anchors: Tensor,
    positives: Tensor,
    wanted: Tensor,
    labels: Tensor,
    negatives: Tensor,
    negative_labels: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Pull anchors toward their place in another surrounding, away from places of other classes.

    anchors    (N, D), and `wanted` (N,) bool, which of them count
    positives  (N, D), negatives (M, D): without a gradient
    labels, negative_labels  (N,), (M,) pseudo labels; 255, or the anchor's, is no negative
    temperature  divides the cosine

    Returns (sum, count) over the anchors that count; (0, 0) with a graph where none does.
    """
    with without_autocast(anchors):
        a, p, n = (
            F.normalize(at_least_float32(x), dim=1, eps=EPSILON)
            for x in (anchors, positives.detach(), negatives.detach())
        )
        total = a.new_zeros(())
        for start in range(0, len(a), CHUNK):
            some = slice(start, start + CHUNK)
            total = total + checkpoint(
                _sum_of,
                a[some],
                p[some],
                wanted[some],
                labels[some],
                n,
                negative_labels,
                temperature,
                use_reentrant=False,
                preserve_rng_state=False,  # it draws nothing
            )
        return total, wanted.sum()


def _sum_of(
    a: Tensor,
    p: Tensor,
    wanted: Tensor,
    labels: Tensor,
    n: Tensor,
    negative_labels: Tensor,
    temperature: float,
) -> Tensor:
    positive = (a * p).sum(1) / temperature
    other = (labels[:, None] != negative_labels) & (negative_labels != IGNORE_INDEX)
    negative = (a @ n.T / temperature).masked_fill(~other, LEAST).logsumexp(1)
    return ((torch.logaddexp(negative, positive) - positive) * wanted).sum()
