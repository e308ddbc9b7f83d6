"""The head of DAFormer (Hoyer et al. 2022, arXiv:2111.14887): context from all levels at once."""

import torch
from torch import Tensor, nn

from spcl.models.backbone import FusingHead, resized

WIDTH = 256
DILATIONS = (6, 12, 18)
DROPOUT = 0.1


class DAFormerHead(FusingHead):
    """Four levels -> features (B, 256, h, w) on the grid of the finest, and their logits.

    Each level is projected, all are stacked at the finest grid, dilated branches look around, and
    one convolution fuses them.  What is projected is neither normalised nor activated.
    widths  of the levels
    norm    of NORMS; it is trained, as in the authors' code, which has one set of statistics where
            `DomainNorm` has one per domain
    Source: the authors' daformer_head.py and sep_aspp_head.py.
    """

    feature_dimension = WIDTH

    def __init__(self, widths: tuple[int, ...], num_classes: int, norm: type[nn.Module]):
        super().__init__()
        stacked = WIDTH * len(widths)
        self.embed = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in widths)
        branches = [_convolution(norm, stacked, WIDTH, 1)]
        for dilation in DILATIONS:
            around = _convolution(norm, stacked, stacked, 3, dilation=dilation, groups=stacked)
            branches.append(nn.Sequential(around, _convolution(norm, stacked, WIDTH, 1)))
        self.branches = nn.ModuleList(branches)
        self.fuse = _convolution(norm, WIDTH * len(branches), WIDTH, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classify = nn.Conv2d(WIDTH, num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, levels: tuple[Tensor, ...], size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """See `FusingHead`."""
        finest = levels[0].shape[-2:]
        embedded = (layer(x) for layer, x in zip(self.embed, levels, strict=True))
        stacked = torch.cat([resized(x, finest) for x in embedded], 1)
        features = self.fuse(torch.cat([branch(stacked) for branch in self.branches], 1))
        return features, self.classify(self.dropout(features))


def _convolution(
    norm: type[nn.Module],
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    layer = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        padding=kernel // 2 * dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # mmcv's start
    return nn.Sequential(layer, norm(outputs), nn.ReLU(inplace=True))
