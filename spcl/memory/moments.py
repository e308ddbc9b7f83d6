"""Class distributions: mean, variance per channel and number of the features of each class.

`ClassMoments` follows them during training, `MomentsAccumulator` computes them over a whole split.
Letters: B batch, D feature dimension, K classes, h w feature grid.

Everything is float64 or int64: a class has up to 1e9 source pixels, where a float32 counter has
long stopped and a batch, at a weight of 1e-5, would be rounded off.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl import distributed
from spcl.losses.directions import EPSILON, chunks, lengths
from spcl.precision import without_autocast


@torch.no_grad()
def class_sums(features: Tensor, labels: Tensor, shift: Tensor, *, unit: bool) -> Tensor:
    """What there is to add up about a batch: (K, 1 + 2 D) float64.

    Per class: number of pixels, sum of x - shift, sum of (x - shift) ** 2, with x a pixel's feature
    or, with `unit`, its direction.

    features (B, D, h, w); labels (B, h, w) trainIds, 255 is ignored; shift (K, D).
    """
    flat, labels = features.flatten(2), labels.flatten(1)  # (B, D, h*w), a view
    classes = torch.arange(len(shift), device=labels.device)
    member = (labels[:, None] == classes[:, None]).to(shift.dtype)  # (B, K, h*w)
    first, second = torch.zeros_like(shift), torch.zeros_like(shift)
    length = lengths(flat).to(shift.dtype) if unit else None
    with without_autocast(features):
        for channels, pixels in chunks(flat):
            x, mine = flat[:, channels, pixels], member[:, :, pixels]
            x = x.to(shift.dtype, copy=True) if length is None else x / length[:, :, pixels]
            # Each pixel's own shift, as a product with ones and zeros: exact, and nothing is moved.
            x.baddbmm_(shift[:, channels].mT.expand(len(x), -1, -1), mine, alpha=-1)
            first[:, channels].add_(torch.bmm(mine, x.mT).sum(0))
            second[:, channels].add_(torch.bmm(mine, x.square_().mT).sum(0))
    return torch.cat([member.sum((0, 2))[:, None], first, second], dim=1)


class ClassMoments(nn.Module):
    """A diagonal Gaussian of each class's features, equal on all ranks.

    A batch enters as in the pooled moments of two sets, the second of weight w:
        variance <- (1 - w) variance + w v + w (1 - w) (mean - m) ** 2
        mean     <- (1 - w) mean + w m
    with m and v its own mean and variance (biased).

    momentum  None: w is the batch's share of all pixels so far, so that these are the moments of
              everything seen, in any order; else w = 1 - momentum for a class in the batch
    unit      moments of the features' directions, else of the features

    Source: SDCA, arXiv:2105.05013, authors' code: the diagonal, and the cumulative update.
    """

    mean: Tensor  # (K, D) float64
    variance: Tensor  # (K, D) float64
    count: Tensor  # (K,) int64

    def __init__(
        self, num_classes: int, dimension: int, *, momentum: float | None = None, unit: bool = True
    ):
        super().__init__()
        self.momentum, self.unit = momentum, unit
        shape = num_classes, dimension
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))

    def load(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Start from mean and variance (K, D) and count (K,).  Raises ValueError on others."""
        for name, value in {"mean": mean, "variance": variance, "count": count}.items():
            mine = getattr(self, name)
            if value.shape != mine.shape:
                raise ValueError(
                    f"{name} must have shape {tuple(mine.shape)}, not {tuple(value.shape)}"
                )
            mine.copy_(value)

    @property
    def seen(self) -> Tensor:
        """(K,) bool: classes with a distribution."""
        return self.count > 0

    def sums(self, features: Tensor, labels: Tensor) -> Tensor:
        """This rank's part of a batch, to be added to that of others: (K, 1 + 2 D)."""
        return class_sums(features, labels, self.mean, unit=self.unit)

    @torch.no_grad()
    def merge(self, sums: Tensor) -> None:
        """Take in a batch whose `sums` are of all ranks."""
        new, first, second = sums.split([1, *[self.mean.shape[1]] * 2], dim=1)
        shift, square = first / new.clamp(min=1), second / new.clamp(min=1)
        variance = (square - shift.square()).clamp(min=0)
        old = self.count[:, None]
        if self.momentum is None:
            weight = new / (new + old).clamp(min=1)
        else:
            present, known = (new > 0).to(new.dtype), (old > 0).to(new.dtype)
            # The first batch of a class is all that is known of it.
            weight = present * (1 - self.momentum * known)
        self.variance.lerp_(variance + (1 - weight) * shift.square(), weight)
        self.mean.add_(weight * shift)
        self.count += new[:, 0].long()

    def keys(self, *, unit_rows: bool = False) -> tuple[Tensor, Tensor]:
        """Unit means and variances (K, D) of the distributions that features are compared with.

        unit_rows  bring each class's row of variances to unit length too, as the authors' code does
        """
        variance = F.normalize(self.variance, dim=1, eps=EPSILON) if unit_rows else self.variance
        return F.normalize(self.mean, dim=1, eps=EPSILON), variance


def update_moments(
    levels: Sequence[ClassMoments], maps: Sequence[Tensor], labels: Tensor, *, sync: bool = True
) -> None:
    """Take a batch into each level: maps (B, D, h, w), one for each, labels (B, h, w).

    Every rank must call it: all levels travel in one all-reduce.  sync=False keeps each rank's own
    distributions, as the authors' code does.
    """
    sums = [level.sums(features, labels) for level, features in zip(levels, maps, strict=True)]
    packed = torch.cat(sums, dim=1)
    if sync:
        distributed.all_reduce(packed)
    for level, part in zip(levels, packed.split([s.shape[1] for s in sums], dim=1), strict=True):
        level.merge(part)


class MomentsAccumulator:
    """The moments of each class over everything added, on all ranks, in any order and split."""

    def __init__(
        self,
        num_classes: int,
        dimension: int,
        *,
        unit: bool = True,
        device: torch.device | str = "cpu",
    ):
        self.unit = unit
        # About zero, which all ranks share from the start; in float64 that loses nothing that
        # matters: of the variance, 1e-16 times the squared mean.
        self.zero = torch.zeros(num_classes, dimension, dtype=torch.float64, device=device)
        self.sums = torch.zeros(num_classes, 2 * dimension, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """features (B, D, h, w), labels (B, h, w) trainIds with 255 ignored."""
        sums = class_sums(features, labels, self.zero, unit=self.unit)
        self.sums += sums[:, 1:]
        self.counts += sums[:, 0].long()

    def reduce(self) -> None:
        """Sum over ranks; every rank calls it once, after its last `add`."""
        distributed.all_reduce(self.sums)
        distributed.all_reduce(self.counts)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """mean and variance (K, D) float64, zero where a class never occurred; count (K,) int64."""
        first, second = (self.sums / self.counts.clamp(min=1)[:, None]).chunk(2, dim=1)
        return first, (second - first.square()).clamp(min=0), self.counts
