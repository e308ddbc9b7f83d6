"""Which sample a position of a stream reads: pure functions of (seed, stream, position).

A *stream* is an endless sequence of samples of one domain in one stage.  Step s of a run reads
positions s*B .. s*B + B-1; rank r of W takes every W-th of them.  Nothing here knows a clock, a
worker or a rank's history, so resuming is exact and the number of workers is a choice.
"""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from spcl.errors import DataError

SUB_EPOCH = 3000  # draws after which the class-balanced counts start afresh (authors' code)
RARITY_OFFSET = 1.01  # in 1 / ln(1.01 + share), authors' code


def stream_seed(seed: int, stream: str, *position: int) -> list[int]:
    """Entropy for numpy's default_rng: equal arguments give equal draws, on every machine."""
    return [seed, zlib.crc32(stream.encode()), *position]


def positions(step: int, batch: int, rank: int, world_size: int) -> range:
    """The positions that `rank` reads at `step`; `batch` counts all ranks and is divisible."""
    return range(step * batch + rank, (step + 1) * batch, world_size)


def hash_chosen(sample_ids: Sequence[str], count: int, purpose: str) -> np.ndarray:
    """Sorted indices of `count` samples (all, if fewer), the same on every machine for a purpose.

    Those with the smallest hashes: a sample that is added or removed changes at most one of them.
    """
    hashes = [hashlib.sha256(f"{purpose} {name}".encode()).digest() for name in sample_ids]
    return np.sort(np.array(sorted(range(len(hashes)), key=hashes.__getitem__)[:count], np.int64))


class Order(Protocol):
    """Position of a stream -> sample number.  Pure: equal arguments give equal numbers."""

    def __call__(self, position: int) -> int: ...


class Samples(Protocol):
    """What an order may know of a split."""

    class_pixels: np.ndarray | None  # (N, K) pixels of each class, None without labels

    def __len__(self) -> int: ...


class Uniform:
    """Every sample once per epoch, each epoch in its own order."""

    def __init__(self, size: int, seed: int, stream: str):
        self.size = size
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng(stream_seed(seed, stream, epoch)).permutation(size)
        )

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        return int(self._epoch(epoch)[offset])


class InOrder:
    """The list from its first sample to its last, again and again (ASANet's loaders)."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, position: int) -> int:
        return position % self.size


class ClassBalanced:
    """Prefer images of the classes seen least so far in the sub-epoch (SPCL's source sampler)."""

    def __init__(self, contains: np.ndarray, seed: int, stream: str):
        """contains (N, K) bool: does image n show class k?  At least one must be True."""
        self._sub_epoch = lru_cache(maxsize=2)(
            lambda number: draw_sub_epoch(
                contains, np.random.default_rng(stream_seed(seed, stream, number))
            )
        )

    def __call__(self, position: int) -> int:
        number, offset = divmod(position, SUB_EPOCH)
        return int(self._sub_epoch(number)[offset])


def class_pixels(samples: Samples) -> np.ndarray:
    """(N, K) pixels of each class.  Raises ValueError without labels."""
    if samples.class_pixels is None:
        raise ValueError("an order that looks at classes needs a split with labels")
    return samples.class_pixels


def class_weights(share: np.ndarray) -> np.ndarray:
    """1 / ln(1.01 + r): 100.5 for a class not drawn yet, 1.43 for the only one drawn."""
    return 1.0 / np.log(RARITY_OFFSET + share)


def draw_sub_epoch(contains: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(SUB_EPOCH,) image indices.

    Each draw picks a class by `class_weights` of its share of the class occurrences drawn so far,
    then the next image of that class's shuffled list.
    """
    classes = np.flatnonzero(contains.any(axis=0))
    if not len(classes):
        raise ValueError("class-balanced sampling needs at least one labelled pixel, found none")
    lists = [rng.permutation(np.flatnonzero(contains[:, k])) for k in classes]
    present = contains[:, classes].astype(np.float64)
    cursor = np.zeros(len(classes), np.int64)
    drawn = np.zeros(len(classes))
    chosen = np.empty(SUB_EPOCH, np.int64)
    for i, u in enumerate(rng.random(SUB_EPOCH)):
        weights = np.cumsum(class_weights(drawn / max(drawn.sum(), 1.0)))
        k = min(int(np.searchsorted(weights, u * weights[-1], side="right")), len(classes) - 1)
        chosen[i] = lists[k][cursor[k] % len(lists[k])]
        cursor[k] += 1
        drawn += present[chosen[i]]
    return chosen


@dataclass(frozen=True)
class Rarity:
    """What rare-class sampling is told: see `RareClass`."""

    temperature: float = 0.01  # DAFormer's code; 0.1 in PiPa's
    pixels: int = 3000  # DAFormer's code, of images of 1914x1052


class RareClass:
    """A rare class first, then any image that shows enough of it: DAFormer's sampling.

    Source: Hoyer et al. 2022, arXiv:2111.14887, whose code draws from one global generator.
    """

    def __init__(self, pixels: np.ndarray, seed: int, stream: str, rarity: Rarity):
        """pixels (N, K) of each class in each image.  DataError where none shows enough of any."""
        shows = pixels > rarity.pixels
        classes = np.flatnonzero(shows.any(axis=0))
        if not len(classes):
            raise DataError(
                f"rare-class sampling needs images with more than {rarity.pixels} pixels of a "
                f"class, but the most is {pixels.max(initial=0)}; lower source.rare_class_pixels"
            )
        share = pixels.sum(0) / pixels.sum()
        self.until = np.cumsum(rare_class_chances(share[classes], rarity.temperature))
        self.images = [np.flatnonzero(shows[:, k]) for k in classes]
        self.classes = classes
        self.seed, self.stream = seed, stream

    def __call__(self, position: int) -> int:
        found, image = self._draw(position)
        images = self.images[found]
        return int(images[int(image * len(images))])

    def kind(self, position: int) -> int:
        """The class that the image at a position is drawn for."""
        return int(self.classes[self._draw(position)[0]])

    def _draw(self, position: int) -> tuple[int, float]:
        """Number of the class among those that are drawn, and a draw for its image."""
        kind, image = np.random.default_rng(stream_seed(self.seed, self.stream, position)).random(2)
        found = int(np.searchsorted(self.until, kind * self.until[-1], side="right"))
        return min(found, len(self.images) - 1), float(image)


def rare_class_chances(share: np.ndarray, temperature: float) -> np.ndarray:
    """(K,) chance of each class by its share of all pixels: softmax((1 - share) / temperature)."""
    logits = (1 - share) / temperature
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


#: Name -> how an order is made of a split, the run's seed, the stream's name and what rare-class
#: sampling is told.  A new one is one more entry here; if it reads no labels it is LABEL_FREE, too.
ORDERS: dict[str, Callable[[Samples, int, str, Rarity], Order]] = {
    "uniform": lambda samples, seed, stream, rarity: Uniform(len(samples), seed, stream),
    "in_order": lambda samples, seed, stream, rarity: InOrder(len(samples)),
    "class_balanced": lambda samples, seed, stream, rarity: ClassBalanced(
        class_pixels(samples) > 0, seed, stream
    ),
    "rare_class": lambda samples, seed, stream, rarity: RareClass(
        class_pixels(samples), seed, stream, rarity
    ),
}
LABEL_FREE = ("uniform", "in_order")  # the orders a target may have
