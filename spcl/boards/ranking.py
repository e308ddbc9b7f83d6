"""Boards: which rows may be ranked together, and what their order is worth.

A row is a method's stage with one backbone, selection rule, label budget and settings, over all its
seeds.  Rows are ranked together only with the same protocol, evaluation size, class set and target
images, and never one that was selected with target labels against one that was not.  The rank of a
row is 1 + the number of rows of its group that are significantly better.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from spcl.boards.groups import Group, count_rows, kept_apart
from spcl.boards.published import PROTOCOL, Published
from spcl.boards.rows import Draft, Row, draft_row, published_row, tell_apart
from spcl.boards.runs import Run, digest_of_ids, load_confusions
from spcl.data.labels import CLASS_NAMES
from spcl.errors import DataError
from spcl.scoring.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    detectable_difference,
    difference,
    headline_replicates,
    holm,
    image_covariance,
)


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
        rows += [draft_row(d, group, rank, classes) for d, rank in zip(drafts, ranks, strict=True)]
        most = max(most, list(differences.values()), key=len)
    rows = tell_apart(rows) + [published_row(row, classes) for row in published]
    apart = kept_apart([(group, len(drafts)) for group, drafts in ordered])
    silent = Counter(draft.silent for drafts in groups.values() for draft in drafts)
    for why, count in sorted((why, count) for why, count in silent.items() if why):
        apart.append(f"{count_rows(count)} of {why}: not ranked, how seeds differ is unknown")
    if published and runs:
        apart.append(f"{count_rows(len(published))} published: not ranked, no seeds and no images")
    rows.sort(key=_by_value)
    return Board(benchmark, protocol, classes, rows, apart, detectable_difference(most))


def _by_row(runs: Sequence[Run]) -> dict[tuple, list[Run]]:
    """Runs by what makes a row, and by the group it is ranked in."""
    rows: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.method, run.stage, run.backbone, run.selection, run.label_budget, run.settings)
        rows.setdefault((*key, Group.of(run)), []).append(run)
    return rows


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
    tested = [p for estimate in differences.values() if (p := estimate.p_value) is not None]
    adjusted = holm(tested)  # every difference was tested
    for (one, other), p in zip(differences, adjusted, strict=True):
        if p < 1 - CONFIDENCE:
            better[other if differences[one, other].value > 0 else one] += 1
    return [None if d.silent else 1 + n for n, d in zip(better, drafts, strict=True)]
