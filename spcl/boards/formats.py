"""Boards for people and programs: leaderboard.html, leaderboard.md, leaderboard.json, plain text.

Reads nothing but the boards and, for the page, the panels in the run folders.  Names come from
configurations and folders of other people: all of them are escaped where they are written.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spcl.boards.columns import (
    NOTHING,
    columns,
    detectable,
    interval,
    links,
    mean_names,
    percent,
    plain,
    selection,
    title,
)
from spcl.boards.page import NOTHING_APART, page
from spcl.boards.ranking import Board
from spcl.boards.rows import Row
from spcl.store import atomic

SCHEMA = 1
FILES = ("leaderboard.html", "leaderboard.md", "leaderboard.json")
TEXT_PUBLISHED = 5  # published rows of a board in a terminal; the files hold all
NAME_WIDTH = 62  # letters of a row's name in a terminal
KEY_LETTERS = 8  # of a row's key, where rows would read the same


def write_boards(boards: Sequence[Board], unread: Sequence[str], out: Path) -> list[Path]:
    """Write all three files into `out`, each whole or not at all.

    unread  what could not be read, and why
    """
    texts = (page(boards, unread, out), markdown(boards, unread, out), as_json(boards, unread))
    paths = [out / name for name in FILES]
    for path, text in zip(paths, texts, strict=True):
        # A folder's name need not be text; where it is not, the link alone is exact.
        atomic.write_bytes(path, text.encode(errors="replace"))
    return paths


# A terminal.


def board_text(board: Board) -> str:
    """The board in short: all of ours, the best published rows, what was kept apart."""
    headline, *others = mean_names(board)
    names = "".join(f"{name:>12}" for name in others)
    head = (
        f"{'rank':>5}  {'row':<{NAME_WIDTH}}{headline:>8}  {'95 % interval':<16}{names}{'seeds':>7}"
    )
    lines = [title(board), head, "-" * len(head)]
    alike = Counter(map(_name, board.rows))
    published = 0
    for row in board.rows:
        published += row.published
        if row.published and published > TEXT_PUBLISHED:
            continue
        means = "".join(f"{percent(row.means.get(name)):>12}" for name in others)
        rank = NOTHING if row.rank is None else str(row.rank)
        name = _name(row) if alike[_name(row)] == 1 else f"{_name(row)} {row.key[:KEY_LETTERS]}"
        lines.append(
            f"{rank:>5}  {name:<{NAME_WIDTH}}{percent(row.mean):>8}  "
            f"{interval(row):<16}{means}{len(row.seeds) or NOTHING:>7}"
        )
    if published > TEXT_PUBLISHED:
        lines.append(f"       and {published - TEXT_PUBLISHED} more published rows in the files")
    lines += [
        f"{row.key[:KEY_LETTERS]}: {plain(row.settings)}" for row in board.rows if row.settings
    ]
    lines.append(detectable(board))
    lines += [f"kept apart: {plain(reason)}" for reason in board.kept_apart]
    return "\n".join(lines)


def _name(row: Row) -> str:
    kind = "published" if row.published else selection(row)
    text, width = plain(f"{row.method}, {row.backbone} ({kind})"), NAME_WIDTH - KEY_LETTERS - 2
    return text if len(text) <= width else text[: width - 1] + "…"


# leaderboard.json


def as_json(boards: Sequence[Board], unread: Sequence[str]) -> str:
    value = {
        "schema": SCHEMA,
        "boards": [dataclasses.asdict(board) for board in boards],
        "not_read": list(unread),
    }
    return json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n"


def _without_nan(value: object) -> object:
    """JSON knows no NaN; what is not known is null there."""
    if isinstance(value, dict):
        return {str(name): _without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# leaderboard.md


def markdown(boards: Sequence[Board], unread: Sequence[str], out: Path) -> str:
    """All boards, to be written into the folder `out`."""
    lines = ["# Leaderboard", "", "IoU in %. Published rows stand by value and have no rank."]
    for board in boards:
        lines += ["", f"## {_escaped(title(board))}", "", *_markdown_table(board, out), ""]
        lines += [_escaped(detectable(board)), ""]
        apart = [f"- {_escaped(reason)}" for reason in board.kept_apart]
        lines += ["Kept apart:", "", *apart] if apart else [NOTHING_APART]
    if unread:
        lines += ["", "## Not read", "", *(f"- {_escaped(reason)}" for reason in unread)]
    return "\n".join(lines) + "\n"


def _markdown_table(board: Board, out: Path) -> list[str]:
    shown = columns(board)
    lines = [
        "| " + " | ".join([*(_escaped(column.title) for column in shown), "Runs"]) + " |",
        "|" + "---|" * (len(shown) + 1),
    ]
    for row in board.rows:
        cells = [_escaped(column.text(row)) for column in shown]
        if row.published:
            cells[1] += " (published)"
        runs = [(_escaped(name), address) for name, address in links(row, out)]
        cells.append(" ".join(f"[{n}]({address})" if address else n for n, address in runs))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _escaped(text: str) -> str:
    """Text that is no markup, in Markdown or in the HTML that Markdown may hold."""
    one_line = plain(" ".join(text.split())).replace("&", "&amp;")
    return re.sub(r"([\\`*_\[\]()#|~!<>])", _entity, one_line)


def _entity(match: re.Match) -> str:
    return f"&#{ord(match[1])};"
