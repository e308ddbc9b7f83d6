"""Evaluation protocols: which classes of the global confusion matrix are averaged.

Source of the class lists: Cityscapes (19 classes) and arXiv:2111.12358 (tail, 11 classes).
"""

from dataclasses import dataclass

from spcl.data.labels import NUM_CLASSES, TAIL_CLASSES


@dataclass(frozen=True)
class Protocol:
    """Named class subsets; the first one's mean is the headline number."""

    name: str
    means: dict[str, tuple[int, ...]]


PROTOCOLS: dict[str, Protocol] = {
    "cityscapes19": Protocol(
        "cityscapes19", {"mIoU": tuple(range(NUM_CLASSES)), "mIoU-tail": TAIL_CLASSES}
    ),
}
