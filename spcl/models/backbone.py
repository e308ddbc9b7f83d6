"""What a `Segmentor` asks of the first half of a network."""

from torch import nn


class Backbone(nn.Module):
    """Image (B, 3, H, W) -> features (B, D, h, w), or levels of them from fine to coarse.

    feature_dimension  D, of the last level
    """

    feature_dimension: int
