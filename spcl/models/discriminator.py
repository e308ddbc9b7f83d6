"""The fully convolutional discriminator of AdaptSegNet (Tsai et al. 2018, arXiv:1802.10349)."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

STRIDE = 32  # of the five convolutions together

#: (input, first convolution, rows of zeros below and columns to the right) -> its result
First = Callable[[Tensor, nn.Conv2d, tuple[int, int]], Tensor]
#: The same -> its result twice: gradients go through one to the input, through the other to the
#: convolution
FirstApart = Callable[[Tensor, nn.Conv2d, tuple[int, int]], tuple[Tensor, Tensor]]


def convolve(x: Tensor, layer: nn.Conv2d, margin: tuple[int, int]) -> Tensor:
    """The plain way: x (B, K, H, W) with `margin` rows and columns of zeros, through `layer`."""
    return layer(_enlarged(x, margin))


def convolve_apart(x: Tensor, layer: nn.Conv2d, margin: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`convolve` twice: of K channels it is a small part of a step."""
    larger = _enlarged(x, margin)
    return frozen(layer, larger), layer(larger.detach())


def frozen(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer makes of x; its parameters get no gradient."""
    return functional_call(layer, {name: p.detach() for name, p in layer.named_parameters()}, x)


def _enlarged(x: Tensor, margin: tuple[int, int]) -> Tensor:
    return F.pad(x, (0, margin[1], 0, margin[0])) if any(margin) else x


class Discriminator(nn.Module):
    """Class probabilities (B, K, H, W) -> one logit per cell, (B, 1, H // 32, W // 32).

    Five 4x4 convolutions of stride 2 with `width` * (1, 2, 4, 8) channels, no normalisation.  An
    image of less than 32 pixels is padded with zeros to 32.

    inputs  channels that the first convolution sees: K, unless `first` makes others of them
    first   how the first convolution is applied to what the discriminator is given
    first_apart  the same, for `apart`
    """

    def __init__(
        self,
        inputs: int,
        width: int = 64,
        first: First = convolve,
        first_apart: FirstApart = convolve_apart,
    ):
        super().__init__()
        channels = [inputs, width, 2 * width, 4 * width, 8 * width, 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size=4, stride=2, padding=1)
            for a, b in zip(channels, channels[1:], strict=False)
        )
        self.first, self.first_apart = first, first_apart

    def forward(self, x: Tensor) -> Tensor:
        """Class probabilities (B, K, H, W) -> logits of "target", (B, 1, H // 32, W // 32)."""
        return self._later(self.first(x, cast(nn.Conv2d, self.layers[0]), _margin(x)))

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of x twice: gradients go to x alone, and to the parameters alone."""
        for_x, for_layer = self.first_apart(x, cast(nn.Conv2d, self.layers[0]), _margin(x))
        return self._later(for_x, frozen), self._later(for_layer)

    def _later(
        self, x: Tensor, call: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__
    ) -> Tensor:
        for layer in self.layers[1:]:
            x = call(layer, F.leaky_relu(x, 0.2))
        return x

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """Adam as in AdaptSegNet."""
        return torch.optim.Adam(self.parameters(), lr=learning_rate, betas=(0.9, 0.99))


def _margin(x: Tensor) -> tuple[int, int]:
    """Rows below and columns to the right that an image lacks of a cell."""
    height, width = x.shape[-2:]
    return max(0, STRIDE - height), max(0, STRIDE - width)
