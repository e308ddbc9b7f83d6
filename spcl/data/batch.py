"""What one training step reads."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W) float32, normalised; labels (B, H, W) uint8 trainIds, 255 ignored.

    `target_label` is always a pseudo label; ground truth of the target never gets here.
    A method that does not use a domain finds None there.
    """

    source_image: Tensor | None = None
    source_label: Tensor | None = None
    target_image: Tensor | None = None
    target_label: Tensor | None = None

    def to(self, device: torch.device, channels_last: bool = False) -> Self:
        def move(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            layout = torch.channels_last if channels_last and value.dim() == 4 else None
            if layout is None:
                return value.to(device, non_blocking=True)
            return value.to(device, non_blocking=True, memory_format=layout)

        return type(self)(**{f.name: move(getattr(self, f.name)) for f in fields(self)})
