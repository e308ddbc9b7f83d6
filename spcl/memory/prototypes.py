"""Class prototypes: the mean unit feature of each class, over all ranks.

`PrototypeBank` follows it during training, `PrototypeAccumulator` computes it over a whole split.
Letters: B batch, D feature dimension, K classes, h w feature grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl import distributed
from spcl.losses.directions import EPSILON, chunks, lengths
from spcl.precision import at_least_float32, without_autocast


@torch.no_grad()
def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum of unit features (K, D), at least float32, and number of pixels (K,) int64 per class.

    features (B, D, h, w); labels (B, h, w) trainIds, 255 is ignored.
    """
    flat, labels = features.flatten(2), labels.flatten(1)  # (B, D, h*w), a view
    classes = torch.arange(num_classes, device=labels.device)
    member = labels[:, None] == classes[:, None]  # (B, K, h*w)
    # A pixel's length goes into its weight: the unit features are never built.
    weight = member / lengths(flat)
    sums = weight.new_zeros(num_classes, flat.shape[1])
    with without_autocast(features):
        for channels, pixels in chunks(flat):
            x = at_least_float32(flat[:, channels, pixels])
            sums[:, channels].add_(torch.bmm(weight[:, :, pixels], x.mT).sum(0))
    return sums, member.sum((0, 2))


class PrototypeBank(nn.Module):
    """An exponential mean of each class's unit features, equal on all ranks.

    momentum        weight of the past: M <- momentum * M + (1 - momentum) * batch mean
    absent          a class that is not in the batch: "keep" leaves it; "decay" multiplies it by the
                    momentum, as the authors' code does
    sync            False keeps each rank's own bank, as the authors' code does
    normalize_keys  False returns the mean itself as key, as the authors' code does

    Source: SPCL, arXiv:2111.12358.
    """

    mean: Tensor  # (K, D)
    seen: Tensor  # (K,) bool

    def __init__(
        self,
        num_classes: int,
        dimension: int,
        *,
        momentum: float = 0.1,
        absent: str = "keep",
        sync: bool = True,
        normalize_keys: bool = True,
    ):
        super().__init__()
        if absent not in ("keep", "decay"):
            raise ValueError(f"absent must be 'keep' or 'decay', not {absent!r}")
        self.momentum, self.absent = momentum, absent
        self.sync, self.normalize_keys = sync, normalize_keys
        self.register_buffer("mean", torch.zeros(num_classes, dimension))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    def load(self, mean: Tensor, seen: Tensor) -> None:
        """Start from mean (K, D) and seen (K,).  Raises ValueError on other shapes."""
        if mean.shape != self.mean.shape or seen.shape != self.seen.shape:
            raise ValueError(
                f"prototypes must have shape {tuple(self.mean.shape)}, not {tuple(mean.shape)} "
                f"with {tuple(seen.shape)} flags"
            )
        self.mean.copy_(mean)
        self.seen.copy_(seen)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Move toward the means of a batch: features (B, D, h, w), labels (B, h, w).

        Every rank must call it.  A class that is seen for the first time becomes its batch mean.
        """
        sums, counts = class_sums(features, labels, len(self.seen))
        packed = torch.cat([sums.double(), counts[:, None].double()], dim=1)  # counts stay exact
        if self.sync:
            distributed.all_reduce(packed)
        sums, counts = packed[:, :-1], packed[:, -1:]  # (K, D), (K, 1)
        batch_mean = (sums / counts.clamp(min=1)).to(self.mean.dtype)
        present, seen = counts > 0, self.seen[:, None]
        moved = torch.where(seen, batch_mean.lerp(self.mean, self.momentum), batch_mean)
        kept = self.mean * self.momentum if self.absent == "decay" else self.mean
        self.mean.copy_(torch.where(present, moved, kept))
        self.seen |= present[:, 0]

    def keys(self) -> Tensor:
        """(K, D), of unit length unless `normalize_keys` is off; zero where a class is not seen."""
        return F.normalize(self.mean, dim=1, eps=EPSILON) if self.normalize_keys else self.mean


class PrototypeAccumulator:
    """The mean unit feature of each class over everything added, on all ranks.

    init  "per_pixel" is the mean over all pixels (paper); "per_image" the mean over images of each
          image's class mean (authors' code)

    Sums are float64 and counts int64: a float32 counter stops at 2**24.
    """

    def __init__(
        self,
        num_classes: int,
        dimension: int,
        *,
        init: str = "per_pixel",
        device: torch.device | str = "cpu",
    ):
        if init not in ("per_pixel", "per_image"):
            raise ValueError(f"init must be 'per_pixel' or 'per_image', not {init!r}")
        self.init = init
        self.sums = torch.zeros(num_classes, dimension, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """features (B, D, h, w), labels (B, h, w) trainIds with 255 ignored."""
        for image, label in zip(features.split(1), labels.split(1), strict=True):
            sums, counts = class_sums(image, label, len(self.counts))
            if self.init == "per_image":
                sums, counts = sums / counts.clamp(min=1)[:, None], counts.clamp(max=1)
            self.sums += sums
            self.counts += counts

    def reduce(self) -> None:
        """Sum over ranks; every rank calls it once, after its last `add`."""
        distributed.all_reduce(self.sums)
        distributed.all_reduce(self.counts)

    def result(self) -> tuple[Tensor, Tensor]:
        """mean (K, D) float32, zero for a class that never occurred, and seen (K,) bool."""
        mean = self.sums / self.counts.clamp(min=1)[:, None]
        return mean.float(), self.counts > 0
