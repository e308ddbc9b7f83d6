"""Images of a split as a trained network reads them: in groups, read ahead while it runs."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spcl import distributed
from spcl.data.ahead import ahead
from spcl.data.shards import ShardSet
from spcl.data.transforms import decode, decode_label, normalize, resize_image
from spcl.store import heartbeat

Size = tuple[int, int]

BATCH_PIXELS = 2**16  # of images predicted together: 8 of 64x128, 1 of 512x1024
BATCH_IMAGES = 16  # at most


@dataclass(frozen=True)
class Group:
    """Images that are predicted together.

    indices  their numbers in the split
    images   each as it is stored, (3, ?, ?) uint8
    views    at each size that was asked for, all of them: (B, 3, H, W) uint8
    labels   each as it is stored, (?, ?) uint8 trainIds; empty unless asked for
    """

    indices: Sequence[int]
    images: list[Tensor]
    views: list[Tensor]
    labels: list[Tensor]

    def inputs(self, device: torch.device) -> list[Tensor]:
        """The views as the network reads them: float32, normalised, on the device."""
        return [normalize(one.to(device)) for one in self.views]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(H, W) of the labels, or of the images where there are none."""
        return [tuple(one.shape[-2:]) for one in self.labels or self.images]


def group_length(size: Size) -> int:
    """How many images of a size are predicted together: a power of two, at most 16."""
    fitting = max(1, BATCH_PIXELS // (size[0] * size[1]))
    return min(BATCH_IMAGES, 1 << (fitting.bit_length() - 1))


def groups(count: int, size: Size) -> list[range]:
    """The images 0 .. count-1 in groups, which depend on nothing else: so no bit of a result does.

    Last bits of what a network says of an image may depend on those that it is predicted with.
    """
    step = group_length(size)
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def of_rank(whole: list[range]) -> list[range]:
    """The groups that this rank reads: every W-th."""
    return whole[distributed.rank() :: distributed.world_size()]


def read(
    where: str,
    shards: ShardSet,
    wanted: Sequence[Sequence[int]],
    sizes: Sequence[Size],
    *,
    labelled: bool = False,
    threads: int = 0,
) -> Iterator[Group]:
    """Groups of a split in the order wanted, decoded and resized in so many threads.

    where     what is going on, for the heartbeat
    labelled  read the labels, too

    DataError, in its turn, where a sample is damaged.
    """
    reading = threading.Lock()  # a ShardSet lets go of its files now and then

    def load(indices: Sequence[int]) -> Group:
        with reading:
            pictures = [shards.image(index) for index in indices]
            truth = [shards.label(index) for index in indices] if labelled else []
        images = [decode(data) for data in pictures]
        views = [view(images, size) for size in sizes]
        return Group(indices, images, views, [decode_label(data) for data in truth])

    done = 0
    for group in ahead(load, wanted, threads):
        heartbeat.moved(where, done, "image")
        yield group
        done += len(group.indices)


def view(images: Sequence[Tensor], size: Size) -> Tensor:
    """Images (3, ?, ?) uint8 at one size: (B, 3, H, W) uint8.

    Channels lie innermost, as in decoded pictures: convolutions on a CPU then take 0.6 of the time.
    """
    views = torch.empty(
        (len(images), 3, *size), dtype=torch.uint8, memory_format=torch.channels_last
    )
    for place, image in zip(views, images, strict=True):
        place.copy_(resize_image(image, size))
    return views
