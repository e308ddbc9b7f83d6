"""What a sweep shows while it runs: a table of its cells, or a line whenever one changes."""

import json
import os
import shutil
import sys
from typing import TextIO

from tune.sweep_grid import Cell, Schedule, Sweep, Work

TAIL_BYTES = 4096  # of metrics.jsonl: more than one line
CELL_WIDTH = 26


class Live:
    """States of the cells: a table that is redrawn on a terminal, plain lines elsewhere."""

    def __init__(self, sweep: Sweep, schedule: Schedule, stream: TextIO | None = None):
        self.sweep, self.schedule = sweep, schedule
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self._drawn = 0  # lines
        self._places: dict[str, str] = {}  # of each distinct cell, its first row and seed
        for (row, seed), cell in sweep.cells.items():
            self._places.setdefault(cell.name, f"{row}, seed {seed}")

    def started(self, work: Work) -> None:
        if not self.terminal:
            what = "the run" if work.finish else f"shared: {', '.join(_titles(work))}"
            self._line(f"{self._places[work.cell.name]}: started ({what})")
        self.show()

    def ended(self, work: Work, cells: list[Cell]) -> None:
        if not self.terminal:
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
        """Redraw the table; does nothing where stderr is no terminal."""
        if not self.terminal:
            return
        lines = self.table()
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        # A line that wraps could not be rewritten.
        width = shutil.get_terminal_size().columns - 1
        text = "".join(f"\x1b[2K{line[:width]}\n" for line in lines)
        self.stream.write(up + text)
        self.stream.flush()
        self._drawn = len(lines)

    def table(self) -> list[str]:
        """Rows by seeds."""
        rows = self.sweep.rows
        width = max(len(row.name) for row in rows) + 2
        seeds = self.sweep.seeds
        lines = [" " * width + "".join(f"{f'seed {seed}':<{CELL_WIDTH}}" for seed in seeds)]
        for row in rows:
            states = [self.state(self.sweep.cells[row.name, seed]) for seed in seeds]
            cells = "".join(f"{state[: CELL_WIDTH - 2]:<{CELL_WIDTH}}" for state in states)
            lines.append(f"{row.name:<{width}}{cells}")
        return lines

    def _line(self, text: str) -> None:
        left = len(self.schedule.waiting)
        total = len(self._places)
        print(f"[{total - left}/{total}] {text}", file=self.stream, flush=True)


def headline(cell: Cell) -> str:
    """The name of the protocol's first mean."""
    return next(iter(cell.run.done["table"][-1]["means"]))


def last_step(cell: Cell) -> str | None:
    """The stage and step that the cell's run has logged last."""
    try:
        with open(cell.run.folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # half a line
        if "step" in record:
            return f"{record['stage']} {record['step']}/{record['steps']}"
    return None


def _titles(work: Work) -> list[str]:
    return [stage.title for stage in work.stages]
