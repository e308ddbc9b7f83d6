"""What a `Segmentor` asks of the two halves of a network."""

import torch.nn.functional as F
from torch import Tensor, nn


class Backbone(nn.Module):
    """Image (B, 3, H, W) -> features (B, D, h, w), or levels of them from fine to coarse.

    feature_dimension  D, of the last level
    widths             of all levels, where there are several
    """

    feature_dimension: int
    widths: tuple[int, ...] = ()


class FusingHead(nn.Module):
    """A head that makes the network's features itself, out of the backbone's levels.

    Any other head takes what the backbone gives and returns logits.
    feature_dimension  D of its features
    """

    feature_dimension: int

    def forward(self, levels: tuple[Tensor, ...], size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Levels of an image of `size` (H, W) -> features (B, D, h, w), logits (B, K, h, w).

        The grid covers the image; what a backbone has padded is cut off.
        """
        raise NotImplementedError


def resized(level: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, C, h', w') -> (B, C, h, w), cells being areas: what heads bring levels together by."""
    return level if level.shape[-2:] == size else F.interpolate(level, size, mode="bilinear")
