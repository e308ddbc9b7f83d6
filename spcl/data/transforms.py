"""From encoded bytes to what the network reads: decode, resize, jitter, flip, scale, crop."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from spcl.data.batch import Images, Sample
from spcl.data.labels import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of images in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
BLUR_PIXELS = 3  # of the blur's kernel, SDCA's code
NOWHERE = 1e6  # pixels of flow: beyond any picture, for what has no place in the frame before
TRIES = 10  # crops of an image until one shows what it should: DAFormer's code
STRIP_PIXELS = 2**17  # per strip in jitter, so that temporaries fit a CPU's cache


Change = Callable[[Tensor], Tensor]  # of a picture, (3, H, W) uint8


@contextmanager
def drawing_from(entropy: list[int]) -> Iterator[None]:
    """Inside, torch's random numbers are those of `entropy`; the caller's stream is untouched."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def decode(data: bytes) -> Tensor:
    """An encoded picture as (3, H, W) uint8 RGB.

    By Pillow: torchvision's decoders are deprecated since 0.29, and crash on some damaged files.
    """
    with Image.open(io.BytesIO(data)) as picture:
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def decode_label(data: bytes) -> Tensor:
    """(H, W) uint8 trainIds."""
    with Image.open(io.BytesIO(data)) as picture:
        return torch.from_numpy(np.array(picture))


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.resize(image, list(size), InterpolationMode.BICUBIC, antialias=True)  # = Pillow's


def resize_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """NEAREST_EXACT takes the pixel that Pillow's NEAREST takes."""
    if tuple(label.shape[-2:]) == size:
        return label
    return F.resize(label[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """(2, h, w) to (2, *size), and its vectors, which are in pixels, by the factor of each axis."""
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    factors = torch.tensor([size[1] / width, size[0] / height])  # x, y
    return F.resize(flow, list(size), InterpolationMode.BILINEAR) * factors[:, None, None]


#: How each field of a sample is brought to a size, and what it is where a scene ends.
RESIZE = {
    "image": resize_image,
    "label": resize_label,
    "previous": resize_image,
    "flow": resize_flow,
}
FILL = {"image": 0.0, "label": IGNORE_INDEX, "previous": 0.0, "flow": NOWHERE}
FRAMES = ("image", "previous")


def normalize(image: Tensor) -> Tensor:
    """(3, H, W) uint8 -> float32 with ImageNet's mean and deviation."""
    return F.normalize(F.to_dtype(image, torch.float32, scale=True), IMAGENET_MEAN, IMAGENET_STD)


def shift_hue(image: Tensor, turn: float) -> Tensor:
    """(3, H, W) uint8 RGB with every hue moved by `turn` of the colour circle, -0.5 .. 0.5.

    The largest channel and the chroma (largest minus smallest) stay, as in HSV.  Torchvision's
    adjust_hue to +-1 (it truncates where this rounds), in about a fifth of its time.
    """
    red, green, blue = image.unbind(0)
    top = torch.maximum(torch.maximum(red, green), blue)
    chroma = (top - torch.minimum(torch.minimum(red, green), blue)).float()
    is_red, is_green = top == red, top == green
    red, green, blue = image.to(torch.int16).unbind(0)
    step = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    sector = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0))
    hue = sector.add_(step / chroma.clamp(min=1)).add_(6 * turn)  # 6 is a full circle
    hue -= 6 * (hue / 6).floor_()  # six times as fast as remainder
    # What a channel loses grows from none to the whole chroma, one to two sixths from its own hue.
    losses = 2 - (hue - 3).abs_(), (hue - 2).abs_() - 1, (hue - 4).abs_() - 1
    top = top.float()
    channels = [torch.sub(top, loss.clamp_(0, 1).mul_(chroma)).round_() for loss in losses]
    return torch.stack(channels).to(torch.uint8)


def draw_jitter(strength: tuple[float, float, float, float]) -> Change:
    """Torchvision's ColorJitter for (3, H, W) uint8: the same draws in the same order.

    strength  of brightness, contrast, saturation, hue
    """
    drawn = v2.ColorJitter(*strength).make_params([])

    def change(image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        strip = max(1, STRIP_PIXELS // width)
        changes = (  # each with the rows it must see at a time: contrast needs the mean of all
            (F.adjust_brightness, drawn["brightness_factor"], strip),
            (F.adjust_contrast, drawn["contrast_factor"], height),
            (F.adjust_saturation, drawn["saturation_factor"], strip),
            (shift_hue, drawn["hue_factor"], strip),
        )
        for change, amount, rows in (changes[number] for number in drawn["fn_idx"]):
            if amount is not None:
                image = torch.cat([change(part, amount) for part in image.split(rows, 1)], 1)
        return image

    return change


def blur(image: Tensor, sigma: float) -> Tensor:
    """A Gaussian of deviation `sigma` pixels, cut to 3x3, over (3, H, W) uint8."""
    return F.gaussian_blur(image, [BLUR_PIXELS, BLUR_PIXELS], [sigma, sigma])


@dataclass(frozen=True)
class Augment:
    """The training transform of one domain.  Sizes are (height, width).

    jitter     strength of brightness, contrast, saturation, hue
    flip       probability
    scale      range of the factor before a crop to `size`
    grayscale  probability of an image without colours
    blur       range of the deviation in pixels, of every image; (0, 0) is none
    crop       what is cut out of the scaled image; (0, 0) is `size`
    shows      of a class that the sample was drawn for: a crop should show more pixels than that
    most       a crop should show less of one class, as a share of its labelled pixels; 1 is any
    """

    size: tuple[int, int]
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    grayscale: float = 0.0
    blur: tuple[float, float] = (0.0, 0.0)
    crop: tuple[int, int] = (0, 0)
    shows: float = 0.0
    most: float = 1.0

    makes: ClassVar[type[Images]] = Images  # of its samples

    @property
    def shown(self) -> tuple[int, int]:
        """Size of what the network reads."""
        return self.crop if any(self.crop) else self.size

    def __call__(self, sample: Sample, entropy: list[int], kind: int | None = None) -> Sample:
        """The sample as the network reads it; every draw comes from `entropy`.

        kind  the class that it was drawn for, if any
        """
        with drawing_from(entropy):
            return self._apply(sample, kind)

    def _apply(self, sample: Sample, kind: int | None) -> Sample:
        # What is off draws nothing, and what is read besides the image draws nothing of its own,
        # so that the draws after it stay what they were.
        size = self.draw_size()
        # Decoded pixels lie interleaved, best for resizing; planes are best for all that follows.
        sample = sample.each(lambda name, part: RESIZE[name](part, size).contiguous())
        # The frame before gets the same colours: only then does what moves keep its own, which
        # flow and any comparison of the two frames build on.
        colours = self.draw_colours()
        sample = sample.each(
            lambda name, part: normalize(colours(part)) if name in FRAMES else part
        )
        if self.flip and float(torch.rand(())) < self.flip:
            sample = sample.each(mirror)
        return sample if size == self.shown else self._crop(sample, kind)

    def draw_size(self) -> tuple[int, int]:
        """Of the scene, from which `size` is cropped."""
        factor = float(torch.empty(()).uniform_(*self.scale)) if self.scale != (1.0, 1.0) else 1.0
        return round(self.size[0] * factor), round(self.size[1] * factor)

    def draw_colours(self) -> Change:
        """One change of colours, for every picture that it is given."""
        changes: list[Change] = []
        if any(self.jitter):
            changes.append(draw_jitter(self.jitter))
        if self.grayscale and float(torch.rand(())) < self.grayscale:
            changes.append(lambda image: F.rgb_to_grayscale(image, num_output_channels=3))
        if any(self.blur):
            sigma = float(torch.empty(()).uniform_(*self.blur))
            changes.append(lambda image: blur(image, sigma))

        def change(image: Tensor) -> Tensor:
            for one in changes:
                image = one(image)
            return image

        return change

    def _crop(self, sample: Sample, kind: int | None) -> Sample:
        """A random window that shows what it should, or the last of TRIES.

        Source: DAFormer's code, where the class is looked for among crops that pass the other test.
        """
        label = sample.label
        look_for = kind is not None and label is not None and self.shows > 0
        for _ in range(TRIES if look_for else 1):
            window = self._varied_window(sample)
            if look_for and _count(window.label, kind) > self.shows:
                break
        return window

    def _varied_window(self, sample: Sample) -> Sample:
        """A random window, the first of TRIES in which no class has a share of `most`."""
        tested = self.most < 1 and sample.label is not None
        for _ in range(TRIES if tested else 1):
            window = self._window(sample)
            if tested and _is_varied(window.label, self.most):
                break
        return window

    def _window(self, sample: Sample) -> Sample:
        """A random window of `shown`; FILL where the scene is smaller."""
        height, width = self.shown
        scene = sample.image.shape[-2:]
        missing = [0, 0, max(0, width - scene[1]), max(0, height - scene[0])]
        top = int(torch.randint(max(0, scene[0] - height) + 1, ()))
        left = int(torch.randint(max(0, scene[1] - width) + 1, ()))

        def window(name: str, part: Tensor) -> Tensor:
            channels = part.reshape(-1, *scene)  # a label has none
            padded = F.pad(channels, missing, fill=FILL[name])
            return F.crop(padded, top, left, height, width).reshape(*part.shape[:-2], height, width)

        return sample.each(window)


def _count(label: Tensor | None, kind: int | None) -> int:
    """Pixels of a class."""
    assert label is not None and kind is not None
    return int(torch.count_nonzero(label.eq(kind)))


def _is_varied(label: Tensor | None, most: float) -> bool:
    """Whether it shows several classes, none with a share of `most` or above."""
    assert label is not None
    pixels = torch.bincount(label[label != IGNORE_INDEX].flatten())
    return int((pixels > 0).sum()) > 1 and float(pixels.max()) < most * float(pixels.sum())


def mirror(name: str, part: Tensor) -> Tensor:
    """One field of a sample, left to right; what moved to the right then moves to the left."""
    part = F.horizontal_flip(part)
    return part * torch.tensor([-1.0, 1.0])[:, None, None] if name == "flow" else part
