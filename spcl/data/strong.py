"""The strong view of images that lie on the device: colours and a blur, other ones for each image.

Every function changes a batch at once, from draws that it is given: nothing waits for the device.
Letters: B batch, H W pixels.
Source: DAFormer's code (arXiv:2111.14887), which changes colours in a random order; here it is
brightness, contrast, saturation, hue.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from spcl.precision import without_autocast

LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue in a grey
DRAWS = 7  # of one image, see `strong_view`
# A kernel ends at so many deviations: the rest is below float32's precision, and the authors'
# kernel is three times as wide.
REACH = 7.0


@dataclass(frozen=True)
class Strong:
    """How an image is changed.

    jitter              strength of brightness, contrast, saturation, hue
    jitter_probability  of all four together
    blur                range of the deviation in pixels
    blur_probability    of a blur
    """

    jitter: tuple[float, float, float, float]
    jitter_probability: float
    blur: tuple[float, float]
    blur_probability: float


def strong_view(image: Tensor, draws: Tensor, how: Strong) -> Tensor:
    """Images (B, 3, H, W) as `spcl.data.transforms.normalize` gives them, changed and normalised.

    draws  (B, DRAWS) in [0, 1): whether to change colours, whether to blur, brightness, contrast,
           saturation, hue, deviation
    """
    jitters, blurs, *colours, deviation = draws.to(image.dtype).unbind(1)
    # Drawn as -strength .. strength; 0, which changes nothing, where an image keeps its colours.
    changes = [
        (2 * draw - 1) * strength * (jitters < how.jitter_probability)
        for draw, strength in zip(colours, how.jitter, strict=True)
    ]
    low, high = how.blur
    sigma = torch.where(blurs < how.blur_probability, low + (high - low) * deviation, 0.0)
    with without_autocast(image):
        picture = brightness(to_picture(image), 1 + changes[0])
        picture = contrast(picture, 1 + changes[1])
        picture = saturation(picture, 1 + changes[2])
        picture = shift_hue(picture, changes[3])
        return to_input(blur(picture, sigma, high))


# Constants are numbers and not tensors, which the device would have to wait for.


def to_picture(image: Tensor) -> Tensor:
    """(B, 3, H, W) normalised -> in [0, 1]."""
    channels = zip(image.unbind(1), IMAGENET_STD, IMAGENET_MEAN, strict=True)
    return torch.stack([c * deviation + mean for c, deviation, mean in channels], 1).clamp_(0, 1)


def to_input(picture: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> normalised."""
    channels = zip(picture.unbind(1), IMAGENET_STD, IMAGENET_MEAN, strict=True)
    return torch.stack([(c - mean) / deviation for c, deviation, mean in channels], 1)


def brightness(picture: Tensor, factor: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] times (B,)."""
    return (picture * _each(factor)).clamp(0, 1)


def contrast(picture: Tensor, factor: Tensor) -> Tensor:
    """Away from each picture's mean grey, for (B,) factors above 1."""
    return _blend(picture, grey(picture).mean((1, 2, 3), keepdim=True), factor)


def saturation(picture: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's grey, for (B,) factors above 1."""
    return _blend(picture, grey(picture), factor)


def grey(picture: Tensor) -> Tensor:
    """(B, 1, H, W)"""
    red, green, blue = picture.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def _blend(picture: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(picture), picture, _each(factor)).clamp(0, 1)


def shift_hue(picture: Tensor, turn: Tensor) -> Tensor:
    """Every hue moved by (B,) of the colour circle, as `spcl.data.transforms.shift_hue` does."""
    red, green, blue = picture.unbind(1)
    top = picture.amax(1)
    chroma = top - picture.amin(1)
    step = torch.where(top == red, green - blue, torch.where(top == green, blue - red, red - green))
    sector = torch.where(top == red, 0.0, torch.where(top == green, 2.0, 4.0))
    tiny = torch.finfo(chroma.dtype).tiny
    hue = (sector + step / chroma.clamp(min=tiny) + 6 * turn[:, None, None]) % 6
    losses = (2 - (hue - 3).abs(), (hue - 2).abs() - 1, (hue - 4).abs() - 1)
    return torch.stack([top - loss.clamp(0, 1) * chroma for loss in losses], 1)


def kernel_radius(size: int, high: float) -> int:
    """Pixels to each side of the centre of DAFormer's kernel for a side of `size` pixels.

    No wider than `high`, the largest deviation, needs.
    """
    tenth = math.ceil(0.1 * size)
    return min(math.floor(tenth - 0.5 + tenth % 2) // 2, math.ceil(REACH * high))


def blur(picture: Tensor, sigma: Tensor, high: float) -> Tensor:
    """(B, 3, H, W) under Gaussians of (B,) pixels, at most `high`; 0 leaves a picture as it is."""
    for axis in (2, 3):
        picture = _blur_along(picture, sigma, kernel_radius(picture.shape[axis], high), axis)
    return picture


def _blur_along(picture: Tensor, sigma: Tensor, radius: int, axis: int) -> Tensor:
    """Along one axis, with a mirror image beyond the border."""
    distance = torch.arange(-radius, radius + 1, device=picture.device, dtype=picture.dtype)
    tiny = torch.finfo(sigma.dtype).eps
    kernel = torch.exp(-0.5 * (distance / sigma.clamp(min=tiny)[:, None]).square())  # (B, 2r + 1)
    kernel = kernel / kernel.sum(1, keepdim=True)
    batch, channels = picture.shape[:2]
    shape = (-1, 1, len(distance), 1) if axis == 2 else (-1, 1, 1, len(distance))
    margin = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
    # Images as channels: each then has a kernel of its own.
    padded = F.pad(picture, margin, "reflect").flatten(0, 1)[None]
    weights = kernel.repeat_interleave(channels, 0).reshape(shape)
    return F.conv2d(padded, weights, groups=batch * channels)[0].unflatten(0, (batch, channels))


def _each(vector: Tensor) -> Tensor:
    return vector[:, None, None, None]  # (B, 1, 1, 1)
