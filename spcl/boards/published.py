"""Published results, as printed, with every mean recomputed from its columns.

Source: the tables of arXiv:2111.12358 (SPCL), which repeat those of the methods they compare with.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from spcl.data.labels import CLASS_NAMES, TAIL_CLASSES
from spcl.scoring.protocols import SYN13, SYN16

TABLES = Path(__file__).parent / "published"
TOLERANCE = 0.06  # points: both the columns and the mean are rounded to 0.1
#: How the published numbers of a benchmark were scored.
PROTOCOL = {"gta5": "cityscapes19", "synscapes": "cityscapes19", "synthia": "syn16_masked"}
_COLUMNS = {"traffic light": "light", "traffic sign": "sign"}


@dataclass(frozen=True)
class Published:
    """One published row, in percent as printed; None where a cell is empty."""

    benchmark: str
    backbone: str
    method: str
    source: str
    iou: dict[str, float | None]  # by class name
    miou: float | None
    miou_13: float | None
    miou_tail: float | None
    flags: tuple[str, ...]  # a line for each mean that its columns do not give


@dataclass(frozen=True)
class Ablation:
    """One published row of an ablation, in percent."""

    source: str
    benchmark: str
    backbone: str
    factor: str
    value: str
    source_contrast: bool
    target_contrast: bool
    self_training: bool
    miou: float
    miou_13: float | None
    note: str

    @property
    def inferred(self) -> bool:
        """Was the row's label inferred, not read?"""
        return "inferred" in self.note


def published_results(path: Path = TABLES / "results.csv") -> list[Published]:
    with open(path, encoding="utf-8", newline="") as file:
        return [_result(row) for row in csv.DictReader(file)]


def published_ablations(path: Path = TABLES / "ablations.csv") -> list[Ablation]:
    with open(path, encoding="utf-8", newline="") as file:
        return [_ablation(row) for row in csv.DictReader(file)]


def _result(row: dict[str, str]) -> Published:
    iou = {name: _number(row[f"iou_{_COLUMNS.get(name, name)}"]) for name in CLASS_NAMES}
    stated = {name: _number(row[name]) for name in ("miou", "miou_13", "miou_tail")}
    return Published(
        benchmark=row["benchmark"],
        backbone=row["backbone"],
        method=row["method"],
        source=row["source"],
        iou=iou,
        miou=stated["miou"],
        miou_13=stated["miou_13"],
        miou_tail=stated["miou_tail"],
        flags=_disagreements(row["benchmark"], list(iou.values()), stated),
    )


def _disagreements(
    benchmark: str, iou: list[float | None], stated: dict[str, float | None]
) -> tuple[str, ...]:
    everything = SYN16 if PROTOCOL[benchmark].startswith("syn16") else range(len(CLASS_NAMES))
    subsets = {"miou": everything, "miou_13": SYN13, "miou_tail": TAIL_CLASSES}
    titles = {"miou": "mIoU", "miou_13": "mIoU-13", "miou_tail": "mIoU-tail"}
    flags = []
    for name, value in stated.items():
        columns = [cell for k in subsets[name] if (cell := iou[k]) is not None]
        if value is None or len(columns) < len(subsets[name]):
            continue
        mean = math.fsum(columns) / len(columns)
        if abs(mean - value) > TOLERANCE:
            flags.append(f"{titles[name]} is stated as {value:.1f}, its columns give {mean:.2f}")
    return tuple(flags)


def _ablation(row: dict[str, str]) -> Ablation:
    return Ablation(
        source=row["source"],
        benchmark=row["benchmark"],
        backbone=row["backbone"],
        factor=row["factor"],
        value=row["value"],
        source_contrast=row["source_contrast"] == "1",
        target_contrast=row["target_contrast"] == "1",
        self_training=row["self_training"] == "1",
        miou=float(row["miou"]),
        miou_13=_number(row["miou_13"]),
        note=row["note"],
    )


def _number(cell: str) -> float | None:
    return float(cell) if cell else None
