"""Rows of a board: a method's stage with one backbone, selection rule, label budget and settings,
over all its seeds; or a published result.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from spcl.boards.aggregate import settings_of
from spcl.boards.groups import KEY_LETTERS, Group
from spcl.boards.published import Published
from spcl.boards.runs import Run
from spcl.scoring.protocols import headline
from spcl.scoring.statistics import (
    Estimate,
    combined_estimate,
    image_covariance,
    image_interval,
    seed_estimate,
    why_seeds_are_silent,
)

TARGET_LABELS = "target labels"  # the badge of rows that were selected with them
DATE_LETTERS = len("2026-11-21")
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
    settings: str = ""  # in which this row differs from others of the same name


class Draft:
    """A row's runs, one per seed: of several with the same seed the latest."""

    def __init__(self, members: Sequence[Run]):
        by_seed: dict[int, Run] = {}
        repeated = set()
        for run in sorted(members, key=lambda run: (run.date, run.folder)):
            if run.seed in by_seed and headline(by_seed[run.seed].means) != headline(run.means):
                repeated.add(run.seed)
            by_seed[run.seed] = run
        self.runs = [by_seed[seed] for seed in sorted(by_seed)]
        self.repeated = sorted(repeated)  # seeds whose runs do not agree
        # The last stage of one recipe may be an earlier one of another: then its name tells more.
        self.final = all(run.final for run in members)
        self.images = self.runs[0].images
        self.replicates: np.ndarray | None = None  # (S, B)
        known = [run.replicates for run in self.runs if run.replicates is not None]
        if len(known) == len(self.runs):
            self.replicates = np.stack(known).astype(np.float64)

    @property
    def name(self) -> str:
        """The method, the stage where it is not the last, and whose switches if not ours.

        A method that is built from a specification, since its source could not be read, says so,
        and a network that is scored on data that it never saw, on which.
        """
        last, official = self.runs[-1], all(run.compat == "official" for run in self.runs)
        method = f"{last.method} (spec)" if last.spec else last.method
        method = f"{method} (official)" if official else method
        method = method if self.final else f"{method}: {last.stage}"
        return f"{method} on {last.target}" if last.unseen else method

    @property
    def scores(self) -> dict[int, float]:
        return {run.seed: headline(run.means) for run in self.runs}

    @cached_property
    def estimate(self) -> Estimate:
        values = list(self.scores.values())
        if self.replicates is None:
            return seed_estimate(values)
        covariance = image_covariance(self.replicates, self.images)
        return combined_estimate(values, covariance, self.images)

    @property
    def silent(self) -> str | None:
        """Why the row has no interval and can be compared with none; None where it has one."""
        if self.estimate.error is not None:
            return None
        why = why_seeds_are_silent(list(self.scores.values()))
        return why if self.replicates is not None else f"{why} without matrices"


def draft_row(draft: Draft, group: Group, rank: int | None, classes: Sequence[str]) -> Row:
    """The row of a draft; classes: of the board, of which its runs may lack some."""
    runs, last = draft.runs, draft.runs[-1]
    low, high = draft.estimate.interval
    over_images = None
    if draft.replicates is not None:
        over_images = image_interval(draft.replicates.mean(0))
    over_seeds = seed_estimate(list(draft.scores.values())).interval
    seconds = [run.device_seconds for run in runs if run.device_seconds is not None]
    notes = []
    if draft.silent:
        notes.append(f"{draft.silent}: no interval over seeds, not ranked")
    elif draft.replicates is None:
        notes.append("no per-image matrices: interval over seeds alone")
    if draft.repeated:
        seeds = ", ".join(map(str, draft.repeated))
        notes.append(f"runs of seed {seeds} differ; the latest counts")
    if last.recalled:
        notes.append(f"defaults recalled, not read: {', '.join(last.recalled)}")
    return Row(
        key=_key(last, group),
        method=draft.name,
        backbone=last.backbone,
        selection=last.selection,
        label_budget=last.label_budget,
        iou=tuple(_mean_iou(runs, name) for name in classes),
        mean=draft.estimate.value,
        low=low,
        high=high,
        means={name: _mean([run.means[name] for run in runs]) for name in last.means},
        seeds=tuple(draft.scores),
        device_hours=math.fsum(seconds) / SECONDS_PER_HOUR if len(seconds) == len(runs) else None,
        date=max(run.date for run in runs)[:DATE_LETTERS],
        code=tuple(sorted({run.code for run in runs})),
        runs=tuple(run.folder for run in runs),
        rank=rank,
        group=str(group),
        badges=(last.selection, *([TARGET_LABELS] if group.target_labels else [])),
        published=False,
        note="; ".join(notes),
        seed_interval=None if over_seeds[0] is None else over_seeds,
        image_interval=over_images,
    )


def _key(run: Run, group: Group) -> str:
    parts = (run.method, run.stage, run.backbone, run.selection, run.label_budget, run.settings)
    return hashlib.sha256(repr((parts, group)).encode()).hexdigest()[:KEY_LETTERS]


def _mean_iou(runs: Sequence[Run], name: str) -> float | None:
    """Of a class, over the runs that have one; None where none has."""
    found = [value for run in runs if (value := _iou_of(run, name)) is not None]
    return _mean(found) if found else None


def _iou_of(run: Run, name: str) -> float | None:
    return run.iou[run.classes.index(name)] if name in run.classes else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def tell_apart(rows: Sequence[Row]) -> list[Row]:
    """Rows that would read the same name their settings."""
    alike: dict[tuple, list[Row]] = {}
    for row in rows:
        name = (row.method, row.backbone, row.selection, row.label_budget, row.group)
        alike.setdefault(name, []).append(row)
    told = []
    for same in alike.values():
        if len(same) == 1:
            told += same
            continue
        for row, settings in zip(same, _differing(same), strict=True):
            key = f"settings {row.key}: {settings}" if settings else f"settings {row.key}"
            note = "; ".join(filter(None, [key, row.note]))
            told.append(replace(row, settings=settings, note=note))
    return told


def _differing(rows: Sequence[Row]) -> list[str]:
    """For each row, those of its settings that not all have alike; "" where none is known."""
    # As written on a command line, and comparable whatever they are.
    texts = [
        {name: json.dumps(value, default=str) for name, value in settings_of(row.runs[-1]).items()}
        for row in rows
    ]
    known = [text for text in texts if text]
    # A setting that only newer versions of the code have was none when the others ran.
    shared = sorted(set.intersection(*map(set, known))) if known else []
    differ = [name for name in shared if len({text[name] for text in known}) > 1]
    return [" ".join(f"{name}={text[name]}" for name in differ if text) for text in texts]


def published_row(row: Published, classes: Sequence[str]) -> Row:
    """A result as printed, whose IoU are in %; it has no seeds and no rank."""
    printed = {"mIoU": row.miou, "mIoU-13": row.miou_13, "mIoU-tail": row.miou_tail}
    means = {name: value / 100 for name, value in printed.items() if value is not None}
    iou = [row.iou.get(name) for name in classes]
    return Row(
        key=f"published/{row.benchmark}/{row.backbone}/{row.method}",
        method=row.method,
        backbone=row.backbone,
        selection="",
        label_budget=0,
        iou=tuple(None if value is None else value / 100 for value in iou),
        mean=means.get("mIoU"),
        low=None,
        high=None,
        means=means,
        seeds=(),
        device_hours=None,
        date="",
        code=(),
        runs=(),
        rank=None,
        group="",
        badges=("published", *(["mean disagrees"] if row.flags else [])),
        published=True,
        note="; ".join([row.source, *row.flags]),
    )
