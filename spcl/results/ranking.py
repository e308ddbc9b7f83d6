"""Boards: which rows may be ranked together, and what their order is worth.

A row is a method's stage with one backbone, selection rule, label budget and settings, over all its
seeds.  Rows are ranked together only with the same protocol, evaluation size, class set and target
images, and never one that was selected with target labels against one that was not.  The rank of a
row is 1 + the number of rows of its group that are significantly better.
"""

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from spcl.chosen_by import ChosenBy
from spcl.data.labels import CLASS_NAMES
from spcl.errors import DataError
from spcl.protocols import headline
from spcl.results.aggregate import settings_of
from spcl.results.published import PROTOCOL, Published
from spcl.results.runs import Run, digest_of_ids, load_confusions
from spcl.results.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    combined_estimate,
    detectable_difference,
    difference,
    headline_replicates,
    holm,
    image_covariance,
    image_interval,
    seed_estimate,
    why_seeds_are_silent,
)

TARGET_LABELS = "target labels"  # the badge of rows that were selected with them
KEY_LETTERS = 8
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


@dataclass(frozen=True)
class Board:
    benchmark: str
    protocol: str
    classes: tuple[str, ...]
    rows: list[Row]  # the best first
    kept_apart: list[str]  # what is not ranked together, and why
    #: smallest difference that the seeds of the group with most comparisons could detect, in [0, 1]
    detectable: float | None


def make_boards(runs: Iterable[Run], published: Iterable[Published] = ()) -> list[Board]:
    """One board per benchmark and protocol, with the published rows of that benchmark."""
    ours: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        ours.setdefault((run.benchmark, run.protocol), []).append(_with_images(run))
    printed: dict[tuple[str, str], list[Published]] = {}
    for row in published:
        printed.setdefault((row.benchmark, PROTOCOL[row.benchmark]), []).append(row)
    boards = [_board(key, ours.get(key, []), printed.get(key, [])) for key in ours | printed]
    return sorted(map(partial(_name_other_boards, boards), boards), key=_title)


def _title(board: Board) -> tuple[str, str]:
    return board.benchmark, board.protocol


def _name_other_boards(boards: Sequence[Board], board: Board) -> Board:
    """The board, saying which others of its benchmark were scored differently."""
    others = sorted(
        other.protocol
        for other in boards
        if other.benchmark == board.benchmark and other.protocol != board.protocol
    )
    lines = [f"rows of protocol {name} are on a board of their own" for name in others]
    return replace(board, kept_apart=[*board.kept_apart, *lines])


def _with_images(run: Run) -> Run:
    """The run with its replicates, computed where it came without; without matrices, as it is."""
    if run.replicates is not None:
        return run
    try:
        ids, matrices = load_confusions(run)
    except (DataError, OSError):
        return run
    return replace(
        run,
        images=len(ids),
        sample_ids=digest_of_ids(ids),
        replicates=headline_replicates(matrices, run.protocol),
    )


# The protocol linter: what may be ranked together.


def uses_target_labels(run: Run) -> bool:
    """Did labels of the target choose this row's network?"""
    chosen = ChosenBy(objective=run.selection, label_budget=run.label_budget)
    return chosen.reads_target_labels


@dataclass(frozen=True)
class Group:
    """What rows must share to be ranked together, besides benchmark and protocol."""

    eval_size: tuple[int, int]
    classes: tuple[str, ...]
    target: str
    target_fingerprint: str
    sample_ids: str
    target_labels: bool

    @classmethod
    def of(cls, run: Run) -> "Group":
        return cls(
            run.eval_size,
            run.classes,
            run.target,
            run.target_fingerprint,
            run.sample_ids,
            uses_target_labels(run),
        )

    def aspects(self) -> dict[str, str]:
        """For people: what is shared, by name."""
        height, width = self.eval_size
        images = hashlib.sha256(f"{self.target_fingerprint}{self.sample_ids}".encode()).hexdigest()
        return {
            "evaluation size": f"{height}x{width}",
            "classes": f"{len(self.classes)} classes ({_digest_of_names(self.classes)})",
            "target images": f"{self.target} ({images[:KEY_LETTERS]})",
            "selected": "with target labels" if self.target_labels else "without target labels",
        }

    def __str__(self) -> str:
        return ", ".join(self.aspects().values())


def _digest_of_names(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:KEY_LETTERS]


def _kept_apart(groups: Sequence[tuple[Group, int]]) -> list[str]:
    """A line for each group but the first: why it is not ranked with the ones before it."""
    lines = []
    for index, (group, count) in enumerate(groups):
        for other, others in groups[:index]:
            mine, theirs = group.aspects(), other.aspects()
            why = [
                f"{name} {mine[name]}, not {theirs[name]}"
                for name in mine
                if mine[name] != theirs[name]
            ]
            lines.append(f"{_rows(count)} not ranked with {others} others: {'; '.join(why)}")
    return lines


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


# Rows.


def _board(key: tuple[str, str], runs: Sequence[Run], published: Sequence[Published]) -> Board:
    benchmark, protocol = key
    classes = _all_classes([run.classes for run in runs] + [CLASS_NAMES] * bool(published))
    groups: dict[Group, list[Draft]] = {}
    for members in _by_row(runs).values():
        draft = Draft(members)
        groups.setdefault(Group.of(draft.runs[0]), []).append(draft)
    rows: list[Row] = []
    most: list[Estimate] = []
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), str(item[0])))
    for group, drafts in ordered:
        differences = _differences(drafts)
        ranks = _ranks(drafts, differences)
        rows += [_row(d, group, rank, classes) for d, rank in zip(drafts, ranks, strict=True)]
        most = max(most, list(differences.values()), key=len)
    rows = _tell_apart(rows) + [_published_row(row, classes) for row in published]
    kept_apart = _kept_apart([(group, len(drafts)) for group, drafts in ordered])
    silent = Counter(draft.silent for drafts in groups.values() for draft in drafts)
    for why, count in sorted((why, count) for why, count in silent.items() if why):
        kept_apart.append(f"{_rows(count)} of {why}: not ranked, how seeds differ is unknown")
    if published and runs:
        kept_apart.append(f"{_rows(len(published))} published: not ranked, no seeds and no images")
    rows.sort(key=_by_value)
    return Board(benchmark, protocol, classes, rows, kept_apart, detectable_difference(most))


def _by_row(runs: Sequence[Run]) -> dict[tuple, list[Run]]:
    """Runs by what makes a row, and by the group it is ranked in."""
    rows: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.method, run.stage, run.backbone, run.selection, run.label_budget, run.settings)
        rows.setdefault((*key, Group.of(run)), []).append(run)
    return rows


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
        if all(run.replicates is not None for run in self.runs):
            self.replicates = np.stack([run.replicates for run in self.runs]).astype(np.float64)

    @property
    def name(self) -> str:
        """The method, the stage where it is not the last, and whose switches if not ours."""
        last, official = self.runs[-1], all(run.compat == "official" for run in self.runs)
        method = f"{last.method} (official)" if official else last.method
        return method if self.final else f"{method}: {last.stage}"

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


def _row(draft: Draft, group: Group, rank: int | None, classes: Sequence[str]) -> Row:
    runs, last = draft.runs, draft.runs[-1]
    low, high = draft.estimate.interval
    over_images = None
    if draft.replicates is not None:
        over_images = image_interval(draft.replicates.mean(0))
    over_seeds = seed_estimate(list(draft.scores.values())).interval
    seconds = [run.device_seconds for run in runs]
    notes = []
    if draft.silent:
        notes.append(f"{draft.silent}: no interval over seeds, not ranked")
    elif draft.replicates is None:
        notes.append("no per-image matrices: interval over seeds alone")
    if draft.repeated:
        seeds = ", ".join(map(str, draft.repeated))
        notes.append(f"runs of seed {seeds} differ; the latest counts")
    return Row(
        key=_key(last, group),
        method=draft.name,
        backbone=last.backbone,
        selection=last.selection,
        label_budget=last.label_budget,
        iou=tuple(_mean([_iou_of(run, name) for run in runs]) for name in classes),
        mean=draft.estimate.value,
        low=low,
        high=high,
        means={name: _mean([run.means[name] for run in runs]) for name in last.means},
        seeds=tuple(draft.scores),
        device_hours=None if None in seconds else math.fsum(seconds) / SECONDS_PER_HOUR,
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


def _iou_of(run: Run, name: str) -> float | None:
    return run.iou[run.classes.index(name)] if name in run.classes else None


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def _tell_apart(rows: Sequence[Row]) -> list[Row]:
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


def _published_row(row: Published, classes: Sequence[str]) -> Row:
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


def _all_classes(class_sets: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Every class, in the order of the largest set; names that only others have come last."""
    ordered = sorted(class_sets, key=len, reverse=True)
    return tuple(dict.fromkeys(name for names in ordered for name in names))


def _by_value(row: Row) -> tuple:
    """The best first; a row without the headline mean comes last, by its next mean."""
    other = next(iter(row.means.values()), -math.inf)
    return (row.mean is None, -(other if row.mean is None else row.mean), row.method, row.key)


# Ranks.


def _differences(drafts: Sequence[Draft]) -> dict[tuple[int, int], Estimate]:
    """Every pair of a group's rows that can be tested: the first row's mean minus the second's."""
    several = [index for index, draft in enumerate(drafts) if not draft.silent]
    if not several:
        return {}
    stacked, rows_of, start = [], {}, 0
    for index in several:
        count = len(drafts[index].runs)
        replicates = drafts[index].replicates
        stacked.append(np.zeros((count, RESAMPLES)) if replicates is None else replicates)
        rows_of[index] = np.arange(start, start + count)
        start += count
    images = drafts[several[0]].images
    covariance = image_covariance(np.concatenate(stacked), images)
    scores = {index: drafts[index].scores for index in several}
    differences = {}
    for one, other in itertools.combinations(several, 2):
        both = np.concatenate([rows_of[one], rows_of[other]])
        found = difference(scores[one], scores[other], covariance[np.ix_(both, both)], images)
        if any(drafts[index].replicates is None for index in (one, other)):
            # What images do to one row alone is no doubt about two: seeds must tell by themselves.
            nothing = np.zeros((len(both), len(both)))
            if difference(scores[one], scores[other], nothing, images).error is None:
                continue
        if found.p_value is not None:
            differences[one, other] = found
    return differences


def _ranks(
    drafts: Sequence[Draft], differences: dict[tuple[int, int], Estimate]
) -> list[int | None]:
    """1 + how many rows are significantly better; None for a row without an interval."""
    better = [0] * len(drafts)
    adjusted = holm([estimate.p_value for estimate in differences.values()])
    for (one, other), p in zip(differences, adjusted, strict=True):
        if p < 1 - CONFIDENCE:
            better[other if differences[one, other].value > 0 else one] += 1
    return [None if d.silent else 1 + n for n, d in zip(better, drafts, strict=True)]
