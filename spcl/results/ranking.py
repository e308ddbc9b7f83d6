"""Boards: which rows may be ranked together, and what their order is worth.

A row is a method's stage with one backbone, selection rule, label budget and settings, over all its
seeds.  Rows are ranked together only with the same protocol, evaluation size, class set and target
images, and never one that was selected with target labels against one that was not.  The rank of a
row is 1 + the number of rows of its group that are significantly better.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spcl.protocols import PROTOCOLS
from spcl.results.aggregate import Run, load_confusions
from spcl.results.published import PROTOCOL, Published
from spcl.results.statistics import (
    CONFIDENCE,
    Estimate,
    combined_estimate,
    detectable_difference,
    difference,
    headline_replicates,
    holm,
    image_covariance,
    image_interval,
    seed_estimate,
)

TARGET_LABELS = "target labels"  # the badge of rows that were selected with them
ORACLE = "target_oracle"
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Row:
    """A row of a board.  IoU, means and interval are in [0, 1], published ones too."""

    key: str
    method: str
    backbone: str
    selection: str
    label_budget: int
    iou: tuple[float | None, ...]  # mean over seeds, by the board's classes
    mean: float | None  # headline; None: published without it
    low: float | None  # 95 %, over seeds and images together; None: one seed, or published
    high: float | None
    means: dict[str, float]
    seeds: tuple[int, ...]
    device_hours: float | None  # of all its seeds
    date: str  # of the latest run
    code: tuple[str, ...]
    runs: tuple[str, ...]  # folders, by seed
    rank: int | None
    group: str  # rows of one group are ranked together; "": published
    badges: tuple[str, ...]
    published: bool
    note: str
    seed_interval: tuple[float, float] | None = None  # for these images
    image_interval: tuple[float, float] | None = None  # for these networks


@dataclass(frozen=True)
class Board:
    benchmark: str
    protocol: str
    classes: tuple[str, ...]
    rows: list[Row]  # the best first
    kept_apart: list[str]  # what is not ranked together, and why
    detectable: float | None  # smallest difference its seeds could show, in [0, 1]


def make_boards(runs: Iterable[Run], published: Iterable[Published] = ()) -> list[Board]:
    """One board per benchmark and protocol, with the published rows of that benchmark."""
    ours: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        ours.setdefault((run.benchmark, run.protocol), []).append(run)
    printed: dict[tuple[str, str], list[Published]] = {}
    for row in published:
        printed.setdefault((row.benchmark, PROTOCOL[row.benchmark]), []).append(row)
    keys = sorted(ours.keys() | printed.keys())
    return [_board(key, ours.get(key, []), printed.get(key, []), keys) for key in keys]


def _board(
    key: tuple[str, str], runs: list[Run], published: list[Published], keys: Sequence[tuple]
) -> Board:
    raise NotImplementedError
