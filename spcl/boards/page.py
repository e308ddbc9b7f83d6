"""leaderboard.html: one static file that asks nothing of the network.

Its policy allows no address at all; styles, script and panels are in it.  What the script does
(sort, filter) works on the tables as they stand, so without it the page still says everything.
"""

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from spcl.boards.columns import (
    Column,
    columns,
    detectable,
    is_known,
    link,
    links,
    percent,
    selection,
    title,
)
from spcl.boards.ranking import Board
from spcl.boards.rows import TARGET_LABELS, Row

NOTHING_APART = "Nothing was kept apart."
PANELS = 4  # embedded per board: of its best rows
PANEL_BYTES = 4 << 20  # a larger panel is linked
HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")


def page(boards: Sequence[Board], unread: Sequence[str], out: Path) -> str:
    """The whole page, to be written into the folder `out`."""
    sections = [_board(board, f"board{number}", out) for number, board in enumerate(boards)]
    if unread:
        sections.append(f"<section><h2>Not read</h2>{_list(unread)}</section>")
    contents = "".join(
        f'<li><a href="#board{number}">{escape(title(board))}</a></li>'
        for number, board in enumerate(boards)
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f'<title>Leaderboard</title>\n<link rel="icon" href="data:,">\n<style>\n{STYLE}</style>\n'
        f"</head>\n<body>\n<h1>Leaderboard</h1>\n{INTRODUCTION}\n<nav><ul>{contents}</ul></nav>\n"
        + "\n".join(sections)
        + f"\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _board(board: Board, name: str, out: Path) -> str:
    apart = _list(board.kept_apart) if board.kept_apart else f"<p>{NOTHING_APART}</p>"
    return (
        f'<section id="{name}" class="board"><h2>{escape(title(board))}</h2>\n'
        f"<p>{escape(detectable(board))}</p>\n"
        f"{_filters(board)}\n{_table(board, out)}\n"
        f"<h3>Means and 95 % intervals</h3>\n{_intervals(board)}\n"
        f"<h3>IoU per class</h3>\n{_heat_map(board)}\n"
        f"{_panels(board, out)}<h3>Kept apart</h3>\n{apart}</section>"
    )


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _scrolled(board: Board, what: str) -> str:
    """Opens a part that scrolls by itself, which the keyboard must then be able to reach."""
    label = escape(f"{title(board)}: {what}")
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'


# The table.


def _filters(board: Board) -> str:
    rules = sorted({selection(row) for row in board.rows if not row.published})
    options = "".join(f'<option value="{escape(rule)}">{escape(rule)}</option>' for rule in rules)
    return (
        '<form role="search">'
        '<label>Filter rows <input type="search" name="words" autocomplete="off"></label> '
        f'<label>Selection rule <select name="rule"><option value="">any</option>{options}'
        "</select></label> "
        '<label>Rows <select name="kind"><option value="">all</option>'
        '<option value="ours">ours</option><option value="published">published</option>'
        f'</select></label> <span role="status">{len(board.rows)} rows</span></form>'
    )


def _table(board: Board, out: Path) -> str:
    shown = columns(board)
    head = "".join(_head(column) for column in shown)
    rows = "\n".join(_row(row, number, shown, out) for number, row in enumerate(board.rows))
    return (
        f"{_scrolled(board, 'table')}"
        f'<table class="rows"><thead><tr>{head}<th scope="col">Runs</th></tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _head(column: Column) -> str:
    first = "descending" if column.descending else "ascending"
    return (
        f'<th scope="col" aria-sort="none"><button type="button" data-first="{first}">'
        f"{escape(column.title)}</button></th>"
    )


def _row(row: Row, number: int, shown: Sequence[Column], out: Path) -> str:
    cells = "".join(_cell(column, row) for column in shown)
    kind = "published" if row.published else "ours"
    rule = "" if row.published else selection(row)
    return (
        f'<tr class="{kind}" data-row="{number}" data-kind="{kind}" data-rule="{escape(rule)}">'
        f"{cells}<td>{_links(row, out)}</td></tr>"
    )


def _cell(column: Column, row: Row) -> str:
    value = column.value(row)
    text = escape(column.text(row))
    kind = ' class="number"' if isinstance(value, (int, float)) else ""
    sort = "" if value is None else f' data-value="{escape(str(value))}"'
    if column.title == "Method":
        return f'<th scope="row"{sort}>{text}{_badges(row) if row.published else ""}</th>'
    if column.title == "Selection" and not row.published:
        text = _badges(row).strip()
    return f"<td{kind}{sort}>{text}</td>"


def _badges(row: Row) -> str:
    """A published row's marks, or how ours was selected; orange where target labels were read."""
    kind = "badge labels" if TARGET_LABELS in row.badges else "badge"
    texts = [selection(row) if badge == row.selection else badge for badge in row.badges]
    return "".join(f' <span class="{kind}">{escape(text)}</span>' for text in texts)


def _links(row: Row, out: Path) -> str:
    return " ".join(
        f'<a class="run" href="{escape(address)}">{escape(name)}</a>' if address else escape(name)
        for name, address in links(row, out)
    )


def _label(row: Row) -> str:
    """A row's name in a picture; not yet escaped."""
    kind = "published" if row.published else selection(row)
    return f"{row.method}, {row.backbone} ({kind})"


# Means and intervals.

ROW, TEXT, WIDTH, AXIS, MARGIN = 20, 330, 560, 24, 16  # pixels: of a line, names, plot, scale
TICKS = 8  # at most
LETTERS = 48  # of a name in the plot


def _intervals(board: Board) -> str:
    """Every row's mean, and its interval where it has one; published means are hollow."""
    rows = [(n, row, row.mean) for n, row in enumerate(board.rows) if is_known(row.mean)]
    if not rows:
        return "<p>No row has a mean.</p>"
    ends = [e for _, row, mean in rows for e in (mean, row.low, row.high) if is_known(e)]
    low, high, step = scale(100 * min(ends), 100 * max(ends))

    def x(value: float) -> float:
        return round(TEXT + WIDTH * (100 * value - low) / (high - low), 1)

    bottom = ROW * len(rows)
    marks = []
    for tick in range(round((high - low) / step) + 1):
        value = low + tick * step
        marks.append(
            f'<line class="grid" x1="{x(value / 100)}" x2="{x(value / 100)}" y1="0" y2="{bottom}"/>'
            f'<text class="tick" x="{x(value / 100)}" y="{bottom + 16}">{value:g}</text>'
        )
    for line, (number, row, mean) in enumerate(rows):
        y = ROW * line + ROW // 2
        span = ""
        if is_known(row.low) and is_known(row.high):
            span = f'<line class="span" x1="{x(row.low)}" x2="{x(row.high)}" y1="{y}" y2="{y}"/>'
        kind = "published" if row.published else "ours"
        name = _label(row)
        short = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
        marks.append(
            f'<g class="{kind}" data-row="{number}"><title>{escape(name)}: {percent(mean)}'
            f'</title><text class="name" x="{TEXT - 10}" y="{y + 4}">{escape(short)}</text>{span}'
            f'<circle cx="{x(mean)}" cy="{y}" r="4"/></g>'
        )
    width, height = TEXT + WIDTH + MARGIN, bottom + AXIS
    return (
        f"{_scrolled(board, 'means')}"
        f'<svg role="img" aria-label="Means and intervals; the numbers are in the table" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        + "".join(marks)
        + "</svg></div>"
    )


def scale(low: float, high: float) -> tuple[float, float, float]:
    """First and last tick and the step between: round numbers that enclose [low, high]."""
    rough = max(high - low, 1.0) / (TICKS - 2)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.floor(low / step) * step
    return first, max(math.ceil(high / step) * step, first + step), step


# The heat map.


def _heat_map(board: Board) -> str:
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in board.classes)
    rows = "".join(
        f'<tr data-row="{number}"><th scope="row">{escape(_label(row))}</th>'
        + "".join(
            f'<td title="{escape(name)}: {percent(value)}"{_shade(value)}>'
            f"{f'{100 * value:.0f}' if is_known(value) else ''}</td>"
            for name, value in zip(board.classes, row.iou, strict=True)
        )
        + "</tr>\n"
        for number, row in enumerate(board.rows)
    )
    return (
        f"{_scrolled(board, 'heat map')}"
        f'<table class="heat"><thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _shade(value: float | None) -> str:
    return f' style="--heat:{100 * value:.0f}%"' if is_known(value) else ""


# Panels.


def _panels(board: Board, out: Path) -> str:
    figures: list[str] = []
    for row in board.rows:
        name = escape(_label(row))
        for folder in row.runs:
            shown = _panel(folder, name, out, embedded=len(figures) < PANELS)
            if shown is not None:
                figures.append(f"<figure>{shown}<figcaption>{name}</figcaption></figure>")
                break
    if not figures:
        return ""
    return f"<h3>Panels</h3>\n<div>{''.join(figures)}</div>\n"


def _panel(folder: str, name: str, out: Path, embedded: bool) -> str | None:
    """A run's panel, or a link to a large one; None where there is none that can be read."""
    path, address = Path(folder) / "panel.png", link(folder, out)
    if address is None:
        return None
    try:
        if path.stat().st_size > PANEL_BYTES or not embedded:
            return f'<a href="{escape(address)}panel.png">panel.png</a>'
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return None
    text = f"Panel of {name}: image, ground truth, each stage"
    return f'<img alt="{text}" src="data:image/png;base64,{data}">'


POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)

INTRODUCTION = """<p>IoU in %. A rank is one more than the number of rows of the same group that are
significantly better. <span class="badge">published</span> rows are copied from the named source;
they stand by value, without a rank. <span class="badge labels">orange</span> selection rules have
read target labels and are never ranked against those that have not.</p>"""
