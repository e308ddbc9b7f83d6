"""Fourier domain adaptation: an image's shapes in the colours and the light of another one.

Source: FDA, Yang and Soatto 2020, arXiv:2004.05498.  Its authors have two versions; `symmetric` is
that of their paper and demo, `corners` that of their training.
"""

from typing import NamedTuple

import torch
from torch import Tensor

WINDOWS = ("symmetric", "corners")


class Window(NamedTuple):
    """The low frequencies (rows, columns), cycles per image, whose amplitude is exchanged."""

    first: int
    last: int  # inclusive

    @classmethod
    def of(cls, size: tuple[int, int], beta: float, kind: str = "symmetric") -> "Window":
        """Of an image (H, W): up to floor(min(H, W) * beta), a side of 2b+1 bins; corners: of 2b.

        The corners lack the last row and column, so that a frequency's mirror image may stay.
        """
        reach = int(min(size) * beta)
        return cls(-reach, reach if kind == "symmetric" else reach - 1)

    @property
    def bins(self) -> int:
        return (self.last - self.first + 1) ** 2

    def within(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """Row (N, 1) and column (N,) indices of the window in (..., H, W) frequencies."""
        reach = torch.arange(self.first, self.last + 1, device=spectrum.device)
        return reach[:, None] % spectrum.shape[-2], reach % spectrum.shape[-1]


def fda(source: Tensor, style: Tensor, beta: float, window: str = "symmetric") -> Tensor:
    """Source images (B, C, H, W) with the style's amplitudes of low frequency and their own phases.

    style   (B, C, h, w), of any size that has these frequencies
    beta    share of the shorter side, 0 .. 0.5; at 0 the symmetric window holds the mean alone
    window  of WINDOWS; of "corners" the inverse is complex, and as in the authors' code its real
            part is kept: some of the swap is lost

    Channels may have been shifted and scaled: as the mean is taken over with its sign, it makes no
    difference whether images are normalised before or after.
    """
    size = source.shape[-2], source.shape[-1]
    return exchanged(source, style, Window.of(size, beta, window)).real.to(source.dtype)


def exchanged(source: Tensor, style: Tensor, window: Window) -> Tensor:
    """As `fda`, complex: without an imaginary part where the window is symmetric."""
    # Amplitudes are means over pixels, so that images of two sizes can be compared.
    own = torch.fft.fft2(source, norm="forward")
    other = torch.fft.fft2(style, norm="forward")
    rows, columns = window.within(own)
    theirs = other[..., *window.within(other)]
    own[..., rows, columns] = torch.polar(theirs.abs(), own[..., rows, columns].angle())
    if window.bins:
        own[..., 0, 0] = other[..., 0, 0]
    return torch.fft.ifft2(own, norm="forward")
