"""Evaluation protocols: which rows and classes of the global confusion matrix count.

Every protocol is a reduction of one K x K matrix, rows ground truth; no number needs another pass.
Sources of the class lists: Cityscapes (19 classes), arXiv:2111.12358 (tail, 11 classes), and the
SYNTHIA literature (16 classes both label spaces share; 13 without wall, fence and pole).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from spcl.data.labels import CLASS_NAMES, NUM_CLASSES, TAIL_CLASSES
from spcl.errors import ConfigError
from spcl.scoring.metrics import iou, mean_iou

T = TypeVar("T")

_SYN_ABSENT = (9, 14, 16)  # terrain, truck, train: SYNTHIA has none
_SYN_THIN = (3, 4, 5)  # wall, fence, pole: mIoU* leaves them out
SYN16 = tuple(k for k in range(NUM_CLASSES) if k not in _SYN_ABSENT)
SYN13 = tuple(k for k in SYN16 if k not in _SYN_THIN)


@dataclass(frozen=True)
class Protocol:
    """Means over class subsets; the first one is the headline number.

    means   name -> trainIds averaged, None for all classes
    masked  trainIds whose ground-truth pixels are not scored; a prediction of such a class on any
            other pixel still is a miss
    classes the class names it is made for, None for any
    """

    means: dict[str, tuple[int, ...] | None]
    masked: tuple[int, ...] = ()
    classes: tuple[str, ...] | None = CLASS_NAMES

    def reduce(self, confusion: np.ndarray) -> np.ndarray:
        """(K, K) without the ground truth that is not scored."""
        reduced = confusion.copy()
        reduced[list(self.masked)] = 0
        return reduced


PROTOCOLS: dict[str, Protocol] = {
    "cityscapes19": Protocol({"mIoU": tuple(range(NUM_CLASSES)), "mIoU-tail": TAIL_CLASSES}),
    # Networks of 16 outputs are scored so (SPCL, CBST): pixels of the absent classes are void.
    "syn16_masked": Protocol({"mIoU": SYN16, "mIoU-13": SYN13}, masked=_SYN_ABSENT),
    # Networks of 19 outputs are scored so (DAFormer, HRDA, MIC): stricter, not comparable.
    "syn16_full": Protocol({"mIoU": SYN16, "mIoU-13": SYN13}),
    # The reduction of syn16_full (no row is dropped) with the 13 classes as headline.
    "syn13": Protocol({"mIoU": SYN13, "mIoU-16": SYN16}),
    # A user's own class list, whatever its length.
    "all": Protocol({"mIoU": None}, classes=None),
}


def check_classes(protocol: str, class_names: Sequence[str], where: str) -> None:
    """ConfigError where a protocol is made for other classes than those of the set `where`."""
    classes = PROTOCOLS[protocol].classes
    if classes is not None and tuple(class_names) != classes:
        raise ConfigError(
            f"protocol {protocol} is made for the {len(classes)} Cityscapes classes, but {where} "
            f"has other classes ({len(class_names)}: {', '.join(class_names[:3])}, ...); "
            f"use the protocol `all`"
        )


def score(confusion: np.ndarray, protocol: str) -> dict[str, Any]:
    """Per-class IoU (None: no pixels, or not scored) and the means, each with how many it averages.

    confusion  (K, K) over all images, rows ground truth
    """
    rules = PROTOCOLS[protocol]
    reduced = rules.reduce(confusion)
    values = iou(reduced)
    values[list(rules.masked)] = np.nan
    means = {}
    for name, classes in rules.means.items():
        value, count = mean_iou(reduced, classes)
        means[name] = {"value": value, "classes": count}
    return {"iou": [None if np.isnan(v) else float(v) for v in values], "means": means}


def headline(means: Mapping[str, T]) -> T:
    """Of a protocol's means, in its order, the first."""
    return next(iter(means.values()))


def absence_notes(
    confusion: np.ndarray, dataset: str, absent: Sequence[int], class_names: Sequence[str]
) -> list[str]:
    """What to report where the source set, `dataset`, has no pixel of some classes; else nothing.

    A mean over classes of which nothing could be learnt is low by construction.
    """
    if not absent:
        return []
    total, number = mean_iou(confusion)
    text = (
        f"{dataset} has no {', '.join(class_names[k] for k in absent)}. "
        f"mIoU over {number} = {100 * total:.1f}; "
    )
    if tuple(class_names) == CLASS_NAMES and tuple(sorted(absent)) == _SYN_ABSENT:
        names = ("syn16_full", "syn13")
        headlines = [headline(score(confusion, name)["means"]) for name in names]
        each = [f"{n} = {100 * m['value']:.1f}" for n, m in zip(names, headlines, strict=True)]
        return [text + f"report {', '.join(each)}."]
    present = [k for k in range(len(class_names)) if k not in absent]
    value, number = mean_iou(confusion, present)
    return [text + f"over the {number} that it has = {100 * value:.1f}."]
