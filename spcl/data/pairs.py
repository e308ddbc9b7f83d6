"""Two overlapping crops of one image, for terms that compare a place in two surroundings.

A method asks for them by a `PairCrops` in its `reads`; they are a stream of their own, with draws
of its own, so that asking changes nothing that other streams read.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from spcl.data.batch import Pair, PairSample, Sample
from spcl.data.transforms import Augment, drawing_from, normalize, resize_image
from spcl.errors import ConfigError

SLACK = 0.01  # of an overlap that is drawn: leaves several places to choose from


@dataclass(frozen=True)
class PairCrops:
    """How the crops of a pair are made.  Sizes are (height, width); defaults: PiPa's code.

    size      of both crops
    overlap   least and greatest area of what both show over that of what either shows
    multiple  of the pixels between their corners; where it divides `size` too, as it should, the
              overlap covers whole cells of a feature grid of that stride
    flip      probability, of each crop by itself
    scale     range of the factor on the domain's size before the crops are cut
    jitter, grayscale  of each crop by itself, as in `Augment`; None are the domain's
    """

    size: tuple[int, int]
    overlap: tuple[float, float] = (0.1, 1.0)
    multiple: int = 8
    flip: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    jitter: tuple[float, float, float, float] | None = None
    grayscale: float | None = None

    def check(self, stream: str, scene: tuple[int, int]) -> None:
        """ConfigError unless such crops can be cut out of a domain's images of size `scene`."""
        low, high = self.overlap
        if not 0 < low <= high <= 1:
            raise ConfigError(
                f"the overlap of {stream} must be [low, high] with 0 < low <= high <= 1, got "
                f"{list(self.overlap)}"
            )
        least = round(scene[0] * self.scale[0]), round(scene[1] * self.scale[0])
        if least[0] < self.size[0] or least[1] < self.size[1]:
            raise ConfigError(
                f"the crops of {stream} must fit into its images, but are {_by(self.size)} and the "
                f"images {_by(least)} at the least; make the crops smaller or the images larger"
            )
        if not len(self._offsets(least)[0]):
            raise ConfigError(
                f"two crops of {_by(self.size)} in an image of {_by(least)}, their corners a "
                f"multiple of {self.multiple} pixels apart, must be able to overlap by "
                f"{low} to {high} ({stream}); make the crops smaller, or the range wider"
            )

    def draw(self, scene: tuple[int, int]) -> Tensor:
        """(2, 2) int64: top and left of both crops in a scene of this size."""
        offsets, overlaps = self._offsets(scene)
        # By overlap, not by offset: of all offsets few are small, so few crops would share much.
        wanted = float(torch.empty(()).uniform_(float(overlaps.min()), float(overlaps.max())))
        distance = np.abs(overlaps - wanted)
        near = offsets[distance <= distance.min() + SLACK]
        corners = []
        for axis, offset in enumerate(near[int(torch.randint(len(near), ()))].tolist()):
            start = int(torch.randint(scene[axis] - self.size[axis] - offset + 1, ()))
            corners.append((start, start + offset)[:: 1 if torch.rand(()) < 0.5 else -1])
        return torch.tensor(corners).T

    def _offsets(self, scene: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) pixels down and across between two crops, and (N,) overlaps: all that may be."""
        sides = [
            np.arange(0, min(whole - side, side - 1) + 1, self.multiple)
            for whole, side in zip(scene, self.size, strict=True)
        ]
        offsets = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)
        shared = (np.array(self.size) - offsets).prod(1)
        overlaps = shared / (2 * np.prod(self.size) - shared)
        allowed = (self.overlap[0] <= overlaps) & (overlaps <= self.overlap[1])
        return offsets[allowed], overlaps[allowed]


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


@dataclass(frozen=True)
class AugmentPair:
    """The transform of a stream of pairs.

    augment  the domain's: its size, and its colours unless the crops have their own, drawn for each
    """

    makes: ClassVar[type[Pair]] = Pair  # of its samples

    augment: Augment
    crops: PairCrops

    def __call__(self, sample: Sample, entropy: list[int], kind: int | None = None) -> PairSample:
        """The sample's image, (3, H, W) uint8, as two crops; every draw comes from `entropy`.

        kind  the class that it was drawn for: of no use here
        """
        with drawing_from(entropy):
            return self._apply(sample.image)

    def _apply(self, image: Tensor) -> PairSample:
        size = replace(self.augment, scale=self.crops.scale).draw_size()
        image = resize_image(image, size).contiguous()
        corners = self.crops.draw(size)
        boxes = overlap_boxes(corners, self.crops.size)
        flips = torch.rand(2) < self.crops.flip
        colours = self._colours()
        crops = []
        for number, (top, left) in enumerate(corners.tolist()):
            crop = F.crop(image, top, left, *self.crops.size)
            crop = normalize(colours.draw_colours()(crop))
            if flips[number]:
                crop = F.horizontal_flip(crop)
                boxes[number, 1] = self.crops.size[1] - boxes[number, 1] - boxes[number, 3]
            crops.append(crop)
        first, second = crops
        return PairSample(first, second, boxes, flips)

    def _colours(self) -> Augment:
        usual, own = self.augment, self.crops
        return replace(
            usual,
            jitter=usual.jitter if own.jitter is None else own.jitter,
            grayscale=usual.grayscale if own.grayscale is None else own.grayscale,
        )


def overlap_boxes(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """(2, 4): top, left, height, width of what crops at (2, 2) corners share, within each."""
    start = corners.max(0).values
    shared = torch.tensor(size) - (corners[0] - corners[1]).abs()
    return torch.cat([start - corners, shared.expand(2, 2)], 1)
