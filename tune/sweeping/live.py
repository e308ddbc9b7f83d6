"""What a sweep shows while it runs: a table of its cells, or a line whenever one changes."""

import json
import os
import shutil
import sys
from typing import TextIO

from tune.sweeping.grid import Cell, Sweep
from tune.sweeping.schedule import Schedule, Work

TAIL_BYTES = 4096  # of metrics.jsonl: more than one line
CELL_WIDTH = 26  # of a state and a gap
NARROWEST = 17  # "done, mIoU 52.1" and a gap


class Live:
    """States of the cells: a table that is redrawn on a terminal, plain lines elsewhere.

    A table that is too large for the terminal could not be redrawn, so it is plain lines, too.
    """

    def __init__(self, sweep: Sweep, schedule: Schedule, stream: TextIO | None = None):
        self.sweep, self.schedule = sweep, schedule
        self.stream = stream or sys.stderr
        size = shutil.get_terminal_size()
        self._names = max(len(row.name) for row in sweep.rows) + 2  # columns for them
        room = size.columns - 1 - self._names
        self._cell = max(NARROWEST, min(CELL_WIDTH, room // len(sweep.seeds)))
        fits = self._cell * len(sweep.seeds) <= room and len(sweep.rows) + 1 < size.lines
        self.redraws = fits and self.stream.isatty()
        self._drawn = 0  # lines
        self._places: dict[str, str] = {}  # of each distinct cell, its first row and seed
        for (row, seed), cell in sweep.cells.items():
            self._places.setdefault(cell.name, f"{row}, seed {seed}")

    def started(self, work: Work) -> None:
        if not self.redraws:
            what = "the run" if work.finish else f"shared: {', '.join(_titles(work))}"
            self._line(f"{self._places[work.cell.name]}: started ({what})")
        self.show()

    def ended(self, work: Work, cells: list[Cell]) -> None:
        if not self.redraws:
            for cell in cells:
                self._line(f"{self._places[cell.name]}: {self.state(cell)}")
        self.show()

    def state(self, cell: Cell) -> str:
        """One cell's state in a few words."""
        if cell.name in self.schedule.failed:
            return f"failed: {self.schedule.failed[cell.name]}"
        if cell not in self.schedule.waiting:
            return f"done, {headline(cell)} {cell.score(headline(cell)):.1f}"
        if any(work.cell is cell for work in self.schedule.running):
            return last_step(cell) or "starting"
        return "waiting"

    def show(self) -> None:
        """Redraw the table, if that is how it is shown."""
        if not self.redraws:
            return
        lines = self.table()
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        # A line that wraps could not be rewritten, and the terminal may have become narrower.
        width = shutil.get_terminal_size().columns - 1
        text = "".join(f"\x1b[2K{line[:width]}\n" for line in lines)
        self.stream.write(up + text)
        self.stream.flush()
        self._drawn = len(lines)

    def table(self) -> list[str]:
        """Rows by seeds."""
        seeds = self.sweep.seeds
        lines = [self._spread("", [f"seed {seed}" for seed in seeds])]
        for row in self.sweep.rows:
            states = [self.state(self.sweep.cells[row.name, seed]) for seed in seeds]
            lines.append(self._spread(row.name, states))
        return lines

    def _spread(self, name: str, texts: list[str]) -> str:
        width = self._cell
        return f"{name:<{self._names}}" + "".join(f"{t[: width - 2]:<{width}}" for t in texts)

    def _line(self, text: str) -> None:
        left = len(self.schedule.waiting)
        total = len(self._places)
        print(f"[{total - left}/{total}] {text}", file=self.stream, flush=True)


def headline(cell: Cell) -> str:
    """The name of the protocol's first mean."""
    return next(iter(cell.run.result["table"][-1]["means"]))


def last_step(cell: Cell) -> str | None:
    """The stage and step that the cell's run has logged last."""
    try:
        with open(cell.run.folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # half a line
        if isinstance(record, dict) and {"stage", "step", "steps"} <= record.keys():
            return f"{record['stage']} {record['step']}/{record['steps']}"
    return None


def _titles(work: Work) -> list[str]:
    return [stage.title for stage in work.stages]
