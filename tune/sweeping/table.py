"""A sweep's table in the paper's rows and columns: text, Markdown, CSV and HTML.

Made of finished runs' DONE.json and of the sweep file alone, so that it is the same whenever and
in how many pieces the runs were made.
"""

import csv
import html
import io
from dataclasses import dataclass

from spcl.boards.tables import interval, with_spread
from spcl.configuration.chosen_by import ChosenBy, stored
from spcl.store import atomic
from tune.sweeping.file import TINY_FRACTION, Row
from tune.sweeping.grid import Sweep

MARK = "✓"
NOTHING = "–"


@dataclass(frozen=True)
class Line:
    """A row's numbers, percent.  scores: mean -> one value per finished seed."""

    row: Row
    seeds: tuple[int, ...]
    scores: dict[str, list[float]]
    gain: list[float] | None  # over the reference, one value per seed that both have
    published: dict[str, float]
    difference: dict[str, float]  # ours minus published, where the two may be compared
    chosen_by: ChosenBy  # who has chosen the settings of any of its runs


@dataclass(frozen=True)
class Table:
    sweep: Sweep
    means: tuple[str, ...]  # the headline first
    against: str | None  # the benchmark of the published values
    lines: tuple[Line, ...]
    failed: tuple[tuple[str, int, str], ...]  # row, seed, reason


def make_table(sweep: Sweep, failed: dict[str, str]) -> Table:
    """failed: cell -> reason.  Cells that neither failed nor are done are left out."""
    finished = {
        row.name: [seed for seed in sweep.seeds if sweep.cells[row.name, seed].run.done]
        for row in sweep.rows
    }
    means: tuple[str, ...] = ()
    for row in sweep.rows:
        for seed in finished[row.name][:1]:
            means = tuple(sweep.cells[row.name, seed].run.result["table"][-1]["means"])
    reported = [name for row in sweep.rows for name in row.published]
    against = sweep.benchmark if sweep.benchmark in reported else next(iter(reported), None)
    scores = {
        row.name: {
            mean: [sweep.cells[row.name, seed].score(mean) for seed in finished[row.name]]
            for mean in means
        }
        for row in sweep.rows
    }
    lines = []
    for row in sweep.rows:
        published = dict(row.published.get(against or "", {}))
        ours = {mean: interval(values)[0] for mean, values in scores[row.name].items() if values}
        difference = {m: ours[m] - value for m, value in published.items() if m in ours}
        lines.append(
            Line(
                row=row,
                seeds=tuple(finished[row.name]),
                scores=scores[row.name],
                gain=_gain(sweep, row.name, finished, means),
                published=published,
                difference=difference if _comparable(sweep, row, against) else {},
                chosen_by=_chosen_by(sweep, row, finished[row.name]),
            )
        )
    reasons = tuple(
        (row, seed, failed[cell.name])
        for (row, seed), cell in sweep.cells.items()
        if cell.name in failed
    )
    return Table(sweep, means, against, tuple(lines), reasons)


def _comparable(sweep: Sweep, row: Row, against: str | None) -> bool:
    """Are a row's published values of our benchmark, network and budget?"""
    network = sweep.cells[row.name, sweep.seeds[0]].config.model.name
    return (against, network, sweep.scale) == (sweep.benchmark, sweep.file.backbone, "full")


def _chosen_by(sweep: Sweep, row: Row, seeds: list[int]) -> ChosenBy:
    """As the manifests say: a run may be another launch's, too."""
    united = ChosenBy()
    for seed in seeds:
        cell = sweep.cells[row.name, seed]
        united |= cell.config.chosen_by | stored(cell.run)
    return united


def _gain(
    sweep: Sweep, row: str, finished: dict[str, list[int]], means: tuple[str, ...]
) -> list[float] | None:
    """Headline mean minus the reference's, over the seeds that both have."""
    reference = sweep.file.reference
    common = [seed for seed in finished[row] if seed in finished[reference]]
    if row == reference or not common:
        return None
    pairs = [(sweep.cells[row, seed], sweep.cells[reference, seed]) for seed in common]
    return [one.score(means[0]) - other.score(means[0]) for one, other in pairs]


# As cells of text.


def header(table: Table) -> list[str]:
    sweep = table.sweep
    first = table.means[0] if table.means else "mIoU"
    names = ["", *sweep.file.columns, "seeds", *(table.means or (first,))]
    names += [f"{first} − {sweep.file.reference}"]
    for mean in _published_means(table):
        names += [f"{mean}, published ({table.against})", f"{mean}, difference"]
    return names


def cells(table: Table) -> list[list[str]]:
    rows = []
    for line in table.lines:
        marks = [MARK if name in line.row.marks else "" for name in table.sweep.file.columns]
        row = [line.row.name, *marks, str(len(line.seeds))]
        row += [shown(line.scores.get(mean, [])) for mean in table.means or ("",)]
        row += [NOTHING if line.gain is None else with_spread(line.gain, "+")]
        for mean in _published_means(table):
            value, difference = line.published.get(mean), line.difference.get(mean)
            note = " (inferred)" if line.row.inferred else ""
            row += [NOTHING if value is None else f"{value:.1f}{note}"]
            row += [NOTHING if difference is None else f"{difference:+.1f}"]
        rows.append(row)
    return rows


def _published_means(table: Table) -> list[str]:
    return list(dict.fromkeys(mean for line in table.lines for mean in line.published))


def shown(values: list[float]) -> str:
    return with_spread(values) if values else NOTHING


def notes(table: Table) -> list[str]:
    """What stands below the table."""
    sweep, seeds = table.sweep, " ".join(map(str, table.sweep.seeds))
    lines = [
        f"IoU in % on {sweep.benchmark}, seeds {seeds}: mean ± half of the 95 % t interval; "
        f"differences between rows are paired over seeds. Selection: last checkpoint."
    ]
    if sweep.settings:
        lines.append(f"With {' '.join(sweep.settings)}.")
    if sweep.scale != "full":
        lines.append(
            f"TINY: every stage ran 1/{TINY_FRACTION} of its steps; a quick look, no result."
        )
    if table.against:
        inferred = any(line.row.inferred for line in table.lines)
        lines.append(
            f"Published: {sweep.file.source}; its backbone is {sweep.file.backbone}"
            + (
                ", and which row an inferred value is of follows from the text."
                if inferred
                else "."
            )
        )
        if not any(line.difference for line in table.lines):
            lines.append("No difference to it: another benchmark, network or budget, or no run.")
    chosen: dict[str, list[str]] = {}
    for line in table.lines:
        if line.chosen_by:
            chosen.setdefault(str(line.chosen_by), []).append(line.row.name)
    lines += [f"{said}: {', '.join(rows)}." for said, rows in chosen.items()]
    lines += [f"failed: {row}, seed {seed}: {reason}" for row, seed, reason in table.failed]
    return lines


# As files.


def write_table(table: Table) -> None:
    """table.md, table.csv and table.html in the sweep's folder, each whole or not at all."""
    folder = table.sweep.folder
    atomic.write_bytes(folder / "table.md", as_markdown(table).encode())
    atomic.write_bytes(folder / "table.csv", as_csv(table).encode())
    atomic.write_bytes(folder / "table.html", as_html(table).encode())


def as_text(table: Table) -> str:
    """For a terminal."""
    rows = [header(table), *cells(table)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    rule = "-" * len(lines[0])
    lines = [line.rstrip() for line in lines]
    return "\n".join([table.sweep.file.title, lines[0], rule, *lines[1:], rule, *notes(table)])


def as_markdown(table: Table) -> str:
    def line(row: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    head = header(table)
    parts = [f"# {table.sweep.file.title}", "", line(head), "|" + "---|" * len(head)]
    parts += [line(row) for row in cells(table)]
    for note in notes(table):
        parts += ["", note]
    return "\n".join(parts) + "\n"


def as_csv(table: Table) -> str:
    """A record per row and mean, numbers in full precision, nothing where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        "row mean seeds value half_width each_seed gain gain_half_width "
        "published published_benchmark inferred difference chosen_by".split()
    )
    for line in table.lines:
        for index, mean in enumerate(dict.fromkeys([*table.means, *line.published])):
            values = line.scores.get(mean, [])
            value, half = interval(values) if values else ("", None)
            gain = interval(line.gain) if index == 0 and line.gain else ("", None)
            published = line.published.get(mean)
            known = published is not None
            writer.writerow(
                [
                    line.row.name,
                    mean,
                    " ".join(map(str, line.seeds)),
                    value,
                    half,
                    " ".join(map(str, values)),
                    *gain,
                    published,
                    table.against if known else "",
                    line.row.inferred if known else "",
                    line.difference.get(mean),
                    str(line.chosen_by),
                ]
            )
    return text.getvalue()


def as_html(table: Table) -> str:
    """One static page that asks nothing of the network."""

    def row(tag: str, texts: list[str]) -> str:
        first, *rest = (html.escape(text) for text in texts)
        scope = "col" if tag == "th" else "row"
        values = "".join(f"<{tag}>{text}</{tag}>" for text in rest)
        return f'<tr><th scope="{scope}">{first}</th>{values}</tr>'

    return PAGE.format(
        title=html.escape(table.sweep.file.title),
        head=row("th", header(table)),
        body="\n".join(row("td", texts) for texts in cells(table)),
        notes="\n".join(f"<p>{html.escape(note)}</p>" for note in notes(table)),
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
  padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #8884; }}
th:first-child {{ text-align: left; }}
p {{ margin: .4rem 0; max-width: 50rem; }}
</style></head><body>
<h1>{title}</h1>
<table><thead>
{head}
</thead><tbody>
{body}
</tbody></table>
{notes}
</body></html>
"""
