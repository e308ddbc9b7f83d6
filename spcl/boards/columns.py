"""What a row of a board shows: the same in every format.  Texts are plain, not yet escaped."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard
from urllib.parse import quote

from spcl.boards.ranking import Board
from spcl.boards.rows import Row

CODE_LETTERS = 8  # of a code version
NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """value: what to sort by, None where there is nothing; text: how it is shown."""

    title: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | str | None]
    descending: bool = True  # is the most the best?


def columns(board: Board) -> list[Column]:
    """Every column of a board but the links to its runs."""
    headline, *others = mean_names(board)
    return [
        Column("Rank", lambda r: NOTHING if r.rank is None else str(r.rank), _rank, False),
        _words("Method", lambda r: r.method),
        _words("Backbone", lambda r: r.backbone),
        _words("Selection", selection),
        _percent(headline, lambda r: r.mean),
        Column("95 % interval", interval, _half_width, False),
        _span("over seeds", lambda r: r.seed_interval),
        _span("over images", lambda r: r.image_interval),
        *(_percent(name, _mean(name)) for name in others),
        Column("Seeds", lambda r: str(len(r.seeds) or NOTHING), lambda r: len(r.seeds) or None),
        *(_percent(name, _iou(k)) for k, name in enumerate(board.classes)),
        Column("Device-hours", _hours, lambda r: r.device_hours, False),
        _words("Date", lambda r: r.date),
        _words("Code", lambda r: ", ".join(code[:CODE_LETTERS] for code in r.code)),
        _words("Ranked among", lambda r: r.group),
        _words("Note", lambda r: r.note),
    ]


def selection(row: Row) -> str:
    """How the reported checkpoint was chosen, and by how many labelled target images."""
    if not row.label_budget:
        return row.selection
    return f"{row.selection}, {row.label_budget} target labels"


def interval(row: Row) -> str:
    if row.published:
        return NOTHING
    if row.low is None or row.high is None:
        few = {1: "none: one seed", 2: "none: two seeds"}
        return few.get(len(row.seeds), "none: equal seeds")
    return f"{percent(row.low)} to {percent(row.high)}"


def percent(value: float | None) -> str:
    return f"{100 * value:.1f}" if is_known(value) else NOTHING


def is_known(value: float | None) -> TypeGuard[float]:
    """Is there a number?"""
    return value is not None and not math.isnan(value)


def detectable(board: Board) -> str:
    if all(row.published for row in board.rows):
        return "No run of ours yet."
    if board.detectable is None:
        return "No two rows of several seeds to compare: no difference could be detected."
    groups = {row.group for row in board.rows if not row.published}
    where = " in the group with the most comparisons" if len(groups) > 1 else ""
    return (
        f"The smallest difference that the given seeds could detect{where} is "
        f"{100 * board.detectable:.1f} points."
    )


def title(board: Board) -> str:
    return f"{board.benchmark}, protocol {board.protocol}"


def plain(text: str) -> str:
    """Without what could steer a terminal or is no text at all."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def mean_names(board: Board) -> list[str]:
    """Names of the means, headline first."""
    ours_first = sorted(board.rows, key=lambda row: row.published)
    names = dict.fromkeys(name for row in ours_first for name in row.means)
    return list(names) or ["mIoU"]


def _words(name: str, text: Callable[[Row], str]) -> Column:
    return Column(name, lambda r: text(r) or NOTHING, lambda r: text(r) or None, False)


def _mean(name: str) -> Callable[[Row], float | None]:
    return lambda row: row.means.get(name)


def _iou(k: int) -> Callable[[Row], float | None]:
    return lambda row: row.iou[k] if k < len(row.iou) else None


def _percent(name: str, value: Callable[[Row], float | None]) -> Column:
    def known(row: Row) -> float | None:
        return value(row) if is_known(value(row)) else None

    return Column(name, lambda r: percent(value(r)), known)


def _span(name: str, ends: Callable[[Row], tuple[float, float] | None]) -> Column:
    def text(row: Row) -> str:
        found = ends(row)
        return " to ".join(map(percent, found)) if found else NOTHING

    def width(row: Row) -> float | None:
        found = ends(row)
        return found[1] - found[0] if found else None

    return Column(name, text, width, False)


def _rank(row: Row) -> float | None:
    return row.rank


def _half_width(row: Row) -> float | None:
    return None if row.low is None or row.high is None else (row.high - row.low) / 2


def _hours(row: Row) -> str:
    return NOTHING if row.device_hours is None else f"{row.device_hours:.2f}"


def links(row: Row, out: Path) -> list[tuple[str, str | None]]:
    """Name and relative address of each of a row's runs; not yet escaped."""
    return [(folder.rstrip("/").rsplit("/", 1)[-1], link(folder, out)) for folder in row.runs]


def link(folder: str, out: Path) -> str | None:
    """A relative address of a run's folder; None where it is in no local filesystem."""
    if "://" in folder:
        return None
    return quote(os.fsencode(os.path.relpath(folder, out))) + "/"
