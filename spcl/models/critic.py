"""The fully convolutional critic of AdaptSegNet (Tsai et al. 2018, arXiv:1802.10349)."""

import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 32  # of the five convolutions together


class Critic(nn.Module):
    """Class probabilities (B, K, H, W) -> one logit per cell, (B, 1, H // 32, W // 32).

    Five 4x4 convolutions of stride 2 with `width` * (1, 2, 4, 8) channels, no normalisation.  An
    image of less than 32 pixels is padded with zeros to 32.
    """

    def __init__(self, num_classes: int, width: int = 64):
        super().__init__()
        channels = [num_classes, width, 2 * width, 4 * width, 8 * width, 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size=4, stride=2, padding=1)
            for a, b in zip(channels, channels[1:], strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < STRIDE:
            x = F.pad(x, (0, max(0, STRIDE - width), 0, max(0, STRIDE - height)))
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
        return self.layers[-1](x)
