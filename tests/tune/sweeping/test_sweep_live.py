"""What a terminal shows while a sweep runs."""

import io
import json

import pytest
from sweeps import Store, handmade_sweep

from tune.sweeping.grid import Sweep
from tune.sweeping.live import Live
from tune.sweeping.schedule import Schedule


@pytest.fixture
def handmade(mini_data, tmp_path) -> Sweep:
    return handmade_sweep(mini_data, tmp_path)


def test_a_terminal_sees_rows_by_seeds(handmade):
    schedule = Schedule(handmade.distinct, Store().has)
    schedule.failed[handmade.cells["self-training", 0].name] = "no luck"
    live = Live(handmade, schedule)
    head, *rows = live.table()
    assert head.split() == ["seed", "0", "seed", "1", "seed", "2"]
    states = {row[:17].strip(): row[17:] for row in rows}
    assert states["baseline"].split() == "done, mIoU 40.0 done, mIoU 42.0 done, mIoU 44.0".split()
    assert "failed: no luck" in states["self-training"]
    assert states["all"].split() == ["waiting", "done,", "mIoU", "52.1", "waiting"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def live_on(terminal: io.StringIO, made: Sweep, monkeypatch, columns: int, lines: int) -> Live:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    return Live(made, Schedule(made.distinct, Store().has), terminal)


def test_a_table_is_redrawn_in_its_place_and_a_narrow_terminal_shows_every_seed(
    handmade, monkeypatch
):
    terminal = Terminal()
    live = live_on(terminal, handmade, monkeypatch, 80, 24)
    live.show()
    once = terminal.getvalue()
    lines = once.splitlines()
    assert len(lines) == 6 and not once.startswith("\x1b[6A")
    assert max(len(line.removeprefix("\x1b[2K")) for line in lines) < 80
    assert lines[1].count("done, mIoU") == 3
    live.started(live.schedule.next())
    again = terminal.getvalue().removeprefix(once)
    assert again.startswith("\x1b[6A") and "starting" in again  # and no plain line


@pytest.mark.parametrize(("columns", "lines"), [(80, 6), (60, 24)])
def test_a_table_larger_than_the_terminal_is_plain_lines(handmade, monkeypatch, columns, lines):
    terminal = Terminal()
    live = live_on(terminal, handmade, monkeypatch, columns, lines)
    work = live.schedule.next()
    live.started(work)
    live.ended(work, live.schedule.finished(work, "no luck"))
    told = terminal.getvalue().splitlines()
    assert told == [
        "[10/15] self-training, seed 0: started (shared: adversarial)",
        "[12/15] self-training, seed 0: failed: no luck",
        "[12/15] all, seed 0: failed: no luck",
    ]


def test_a_running_cell_shows_the_last_whole_line_of_its_log(handmade):
    live = Live(handmade, Schedule(handmade.distinct, Store().has))
    cell = live.schedule.next().cell
    assert live.state(cell) == "starting"
    log = cell.run.folder / "metrics.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    step = {"stage": "adversarial", "step": 50, "steps": 60}
    log.write_text("x" * 5000 + "\n" + json.dumps(step) + '\n{"message": "a"}\n{"stage": "adv')
    assert live.state(cell) == "adversarial 50/60"
