"""A light head over several levels, ours: for backbones whose features need little more."""

import math
from functools import reduce

import torch
from torch import Tensor, nn

from spcl.models.backbone import FusingHead, resized


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each cell of (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LightHead(FusingHead):
    """Levels -> features (B, width, h, w) and their logits, on a grid of cells of `stride` pixels.

    Each level is projected to one width and brought to the grid of the finest; their sum is made
    twice as fine `doublings` times, each cell giving four, and smoothed by a 3x3 convolution.
    There is no statistic of a batch in it, so that micro-batches are exact.
    widths  of the levels
    stride  pixels of the image, per side, in a cell of the result; may be no whole number
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        num_classes: int,
        width: int,
        stride: float,
        doublings: int = 0,
    ):
        super().__init__()
        self.feature_dimension, self.stride = width, stride
        self.project = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in widths)
        finer = [_block(nn.ConvTranspose2d(width, width, 2, 2)) for _ in range(doublings)]
        self.finer = nn.Sequential(*finer)
        self.smooth = _block(nn.Conv2d(width, width, 3, padding=1))
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, levels: tuple[Tensor, ...], size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """See `FusingHead`."""
        finest = levels[0].shape[-2:]
        projected = (layer(x) for layer, x in zip(self.project, levels, strict=True))
        fused = reduce(torch.add, (resized(x, finest) for x in projected))
        height, width = (math.ceil(side / self.stride) for side in size)
        features = self.smooth(self.finer(fused))[..., :height, :width]
        return features, self.classify(features)


def _block(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(layer, ChannelNorm(layer.out_channels), nn.GELU())
