"""Which cell of a sweep works on what next.  Starts nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spcl.engine.artefacts import ArtefactStore
from spcl.engine.stages import Stage
from tune.sweeping.grid import Cell, Sweep


@dataclass(frozen=True, eq=False)
class Work:
    """Stages that a cell's run makes.  finish: the whole run, to its table."""

    cell: Cell
    stages: tuple[Stage, ...]
    finish: bool


class Schedule:
    """Which cell makes what, so that no two make the same stage at a time.

    A stage that several unfinished cells need is made first, by the first of them, alone; then the
    cells go on beside each other.
    """

    def __init__(self, cells: Sequence[Cell], stored: Callable[[Stage], bool]):
        self.waiting = [cell for cell in cells if not cell.run.done]
        self.failed: dict[str, str] = {}  # cell -> reason
        self.running: list[Work] = []
        self._stored = stored
        self._made: set[str] = set()

    @classmethod
    def of(cls, sweep: Sweep) -> "Schedule":
        return cls(sweep.distinct, ArtefactStore(sweep.storage).has)

    def next(self) -> Work | None:
        """What can be started now, if anything."""
        busy = {stage.key for work in self.running for stage in work.stages}
        at_work = [work.cell for work in self.running]
        for cell in self.waiting:
            missing = self._missing(cell)
            if cell in at_work or any(stage.key in busy for stage in missing):
                continue
            # What a shared stage is made from is shared by the same cells, and stands before it.
            shared = [stage for stage in missing if len(self._users(stage)) > 1][:1]
            work = Work(cell, tuple(shared or missing), finish=not shared)
            self.running.append(work)
            return work
        return None

    def finished(self, work: Work, error: str | None) -> list[Cell]:
        """Note the end of some work; returns the cells that ended with it."""
        self.running.remove(work)
        if error is None and not work.finish:
            self._made |= {stage.key for stage in work.stages}
            return []
        # Without a shared stage none of its cells can go on.
        ended = [work.cell] if work.finish else self._users(work.stages[0])
        for cell in ended:
            self.waiting.remove(cell)
            if error is not None:
                self.failed[cell.name] = error
        return ended

    def _missing(self, cell: Cell) -> list[Stage]:
        return [s for s in cell.stages if s.key not in self._made and not self._stored(s)]

    def _users(self, stage: Stage) -> list[Cell]:
        return [cell for cell in self.waiting if stage.key in cell.keys]
