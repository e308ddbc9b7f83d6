"""Where each rank is, so that a wait can be told: who was last heard of, when, and where.

The work says where it is by `moved` and `counted`, which set a variable and nothing else.  A thread
of each rank writes that into <run>/ranks/ every few seconds; who listens (rank 0, and where rank 0
itself is silent rank 1 and the driver) goes by its own clock, so hosts' clocks need not agree.
"""

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from spcl.errors import StorageError
from spcl.store import atomic, lease
from spcl.store.process import Process, State, this_process
from spcl.store.telemetry import Telemetry

FOLDER = "ranks"  # in the run's folder, while it works
BEAT = 5.0  # seconds between two files of a rank
SILENT = 3  # beats that were missed
QUIET = 60.0  # seconds without a step until that is told, and told again

T = TypeVar("T")


@dataclass
class _Place:
    """Where this process is."""

    where: str = "the start"
    number: int = 0
    unit: str = "step"
    moves: int = 0  # so far


_here = _Place()


def moved(where: str, number: int, unit: str = "step") -> None:
    """The work has come so far.  Cheap enough for every step."""
    _here.where, _here.number, _here.unit = where, number, unit
    _here.moves += 1


def counted(where: str, images: Iterable[T]) -> Iterator[T]:
    """The same images; each one is a move."""
    for number, image in enumerate(images):
        moved(where, number, "image")
        yield image


@contextlib.contextmanager
def beating(run: Path, telemetry: Telemetry, rank: int, ranks: int) -> Iterator[None]:
    """While the block runs, write where this rank is; ranks 0 and 1 tell of waits, too."""
    folder = run / FOLDER

    def tell(text: str) -> None:
        telemetry.message(text)
        if telemetry.live is None:
            to_stderr(text)

    threads: list[_Regular] = [_Pulse(folder, rank)]
    if rank == 0:
        threads.append(Watch(run, ranks, tell))
    elif rank == 1:
        threads.append(Watch(run, ranks, to_stderr, deputy=True))
    with contextlib.suppress(OSError, StorageError):  # full or away: the work itself meets that
        atomic.mkdir(folder)
    moved("the start", 0)
    try:
        with contextlib.ExitStack() as running:
            for thread in threads:
                running.enter_context(thread)
            yield
    finally:
        if rank == 0 and not lease.is_lost(folder):
            shutil.rmtree(folder, ignore_errors=True)


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Regular(threading.Thread):
    """Context manager: does `tick` every beat, from its start to its end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()

    def __enter__(self) -> "_Regular":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while True:
            try:
                self.tick()
            except lease.LeaseLost:
                return  # whoever writes next says so
            except (OSError, StorageError):
                pass  # as above
            if self._over.wait(BEAT):
                return

    def tick(self) -> None:
        raise NotImplementedError


class _Pulse(_Regular):
    """Writes where this rank is."""

    def __init__(self, folder: Path, rank: int):
        super().__init__()
        self.path = folder / f"{rank}.json"
        self.beats = 0

    def tick(self) -> None:
        self.beats += 1
        record = asdict(this_process()) | asdict(_here) | {"beats": self.beats}
        # Replaced as a whole, but not flushed: it is worth nothing after a crash.
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        with atomic.writing(self.path):
            temporary.write_text(json.dumps(record))
            os.replace(temporary, self.path)


@dataclass
class _Heard:
    """What was last heard of a rank, and when by this process's clock."""

    at: float
    moved: float
    record: dict[str, Any] = field(default_factory=dict)  # empty: nothing yet


class Watch(_Regular):
    """Tells when no rank has moved for a while, and of whom nothing was heard for longest.

    deputy  tell only while rank 0, whose task it is, was heard of and is silent
    """

    def __init__(self, run: Path, ranks: int, tell: Callable[[str], None], *, deputy: bool = False):
        super().__init__()
        self.folder, self.say, self.deputy = run / FOLDER, tell, deputy
        now = time.monotonic()
        self.heard = {rank: _Heard(now, now) for rank in range(ranks)}
        # What an earlier launch left is not heard, it was there.
        self.left = {rank: self._read(rank) for rank in self.heard}
        self.quiet_from = self.told = now

    def tick(self) -> None:
        now = time.monotonic()
        for rank, heard in self.heard.items():
            record = self._read(rank)
            if record is None or record in (heard.record, self.left[rank]):
                continue
            known = heard.record.get("pid"), heard.record.get("moves")
            if (record["pid"], record["moves"]) != known:
                heard.moved = self.quiet_from = now
            heard.at, heard.record = now, record
        if now - max(self.quiet_from, self.told) >= QUIET and self._is_mine(now):
            self.told = now
            self.say(self._text(now))

    def _is_mine(self, now: float) -> bool:
        first = self.heard[0]
        if not self.deputy:
            return True
        return bool(first.record) and self._is_silent(first, now) and self._read(0) is not None

    def _is_silent(self, heard: _Heard, now: float) -> bool:
        return now - heard.at > SILENT * BEAT

    def _text(self, now: float) -> str:
        """ "no step for 60 s: rank 1 (process 7 on a) was last heard of 63 s ago, in ..." """
        silent = {r: heard for r, heard in self.heard.items() if self._is_silent(heard, now)}
        start = f"no step for {now - self.quiet_from:.0f} s"
        if not silent:
            rank, heard = min(self.heard.items(), key=lambda item: item[1].moved)
            return (
                f"{start}, though every rank is alive: {_who(rank, heard)} has stood longest, for "
                f"{now - heard.moved:.0f} s, in {_where(heard)}"
            )
        rank, heard = min(silent.items(), key=lambda item: item[1].at)
        others = f"; {len(silent)} of {len(self.heard)} ranks are silent" if len(silent) > 1 else ""
        if not heard.record:
            return f"{start}: rank {rank} has not been heard of since this one's start{others}"
        return (
            f"{start}: {_who(rank, heard)} was last heard of {now - heard.at:.0f} s ago, in "
            f"{_where(heard)}{_fate(heard)}{others}"
        )

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / f"{rank}.json").read_text())
        except (OSError, ValueError):
            return None


def _who(rank: int, heard: _Heard) -> str:
    return f"rank {rank} (process {heard.record['pid']} on {heard.record['host']})"


def _where(heard: _Heard) -> str:
    return "{where}, {unit} {number}".format(**heard.record)


def _fate(heard: _Heard) -> str:
    """What can be seen from here of a silent process."""
    process = Process(**{one.name: heard.record[one.name] for one in fields(Process)})
    state = process.state
    if state is State.STOPPED:
        return f"; it is stopped (state T), and goes on with `kill -CONT {process.pid}`"
    return "; it is dead" if state is State.DEAD else ""
