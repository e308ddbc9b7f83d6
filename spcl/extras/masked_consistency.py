"""Masked consistency: what the student says of an image with holes is what its teacher says of all.

Source: Hoyer et al. 2023 (MIC), arXiv:2212.01322.
Letters: B batch, H W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spcl.data.batch import Batch
from spcl.extras.base import Extra, ExtraConfig
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, Seen, Term
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class MaskedConsistencyConfig(ExtraConfig):
    weight: float = setting(1.0, "paper", low=0.0)
    block: int = setting(64, "paper: pixels per side of what is masked at once", low=1)
    ratio: float = setting(0.7, "paper: share of blocks that are masked", low=0.0, high=1.0)


class MaskedConsistency(Extra):
    """Labels and their weights are those that the method's teacher has given already."""

    Config = MaskedConsistencyConfig
    config: MaskedConsistencyConfig
    reads = {"target": frozenset({"image"})}
    needs_teacher = True

    def forward(
        self, method: Method, batch: Batch, seen: Mapping[str, Seen], step: Step
    ) -> dict[str, Term]:
        c, taught = self.config, seen["taught"]
        images = taught.images
        size = images.image.shape[-2:]
        grid = tuple(-(-side // c.block) for side in size)  # rounded up
        draws = step.uniform("masked_consistency", images.position, grid)
        image = images.image * kept_pixels(draws, c.block, c.ratio, size)
        masked = replace(images, image=image)
        output = method.segment(masked, "target", step, draws="masked")
        assert taught.label is not None, "what is taught has labels"
        loss = cross_entropy(output.logits, taught.label, taught.weights)
        return {"masked": Term(*loss, c.weight)}


def kept_pixels(draws: Tensor, block: int, ratio: float, size: tuple[int, ...]) -> Tensor:
    """(B, 1, H, W) bool, False in blocks whose draw, (B, rows, columns), is below `ratio`."""
    rows, columns = (
        torch.arange(side, device=draws.device).div(block, rounding_mode="floor") for side in size
    )
    return (draws >= ratio)[:, None, rows[:, None], columns]
