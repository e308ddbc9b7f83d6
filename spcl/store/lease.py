"""One writer per run: a lease that names a process, and a check before every write.

The lease of a process that lives on this host holds until it ends, frozen or not.  Of a process
that cannot be looked up (another host or container) all that is seen is its heart, and its lease
expires when that stops.  So a holder that was frozen may find its lease taken: `check` is asked
before every write below the folder (`atomic.writing`), in the holder and in the processes that work
`under` its lease.
"""

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spcl.errors import UserError
from spcl.store import atomic
from spcl.store.process import Process, State, this_process

FILE = "lease.json"
EXPIRES = 60.0  # seconds without a heartbeat
HEARTBEAT = 10.0  # seconds

_held: dict[Path, str] = {}  # folders that this process works in, and under which lease


class LeaseLost(UserError):
    """The folder is, or may be, another process's now; nothing more may be written there."""


class Lease:
    """Context manager; raises UserError while another live process holds the folder.

    id  for processes that write on the holder's behalf, see `under`
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / FILE
        self.id = uuid.uuid4().hex
        self._stop = threading.Event()
        self._made = False

    def __enter__(self) -> "Lease":
        with atomic.writing(self.path):
            self._made = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._take()
            except BaseException:
                self._remove_if_empty()
                raise
        _held[self.folder] = self.id
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        _held.pop(self.folder, None)
        text = _read(self.path)
        if _id(text) == self.id:
            self._remove(text)
        self._remove_if_empty()

    def _take(self) -> None:
        """Create the lease where there is none; of two processes at once, one succeeds."""
        if self.path.is_dir():
            raise UserError(f"{self.path} must be a file, but a folder is there; remove it")
        fresh = self.path.with_name(f"lease-{self.id}.tmp")
        mine = asdict(this_process()) | {"id": self.id}
        atomic.write_bytes(fresh, json.dumps(mine).encode())
        try:
            found = _find(self.path, fresh)
            if found and found.is_free:
                self._remove(found.text)
            os.link(fresh, self.path)  # fails where the path exists, unlike a rename
        except FileExistsError:
            found = _find(self.path, fresh)
            by = found.description if found else "by another process; try again"
            raise UserError(f"the run {self.folder.name!r} is being written {by}") from None
        finally:
            fresh.unlink(missing_ok=True)

    def _remove(self, text: str | None) -> None:
        """Take the lease with this text away; one that came in its place is put back."""
        grave = self.path.with_name(f"lease-{uuid.uuid4().hex}.tmp")
        try:
            os.rename(self.path, grave)  # of two who try, one moves it
        except FileNotFoundError:
            return
        if _read(grave) != text:
            with contextlib.suppress(FileExistsError):
                os.link(grave, self.path)
        grave.unlink()

    def _remove_if_empty(self) -> None:
        """A folder that was made for the lease, and holds nothing else, goes with it."""
        if self._made:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                check(self.folder)
                os.utime(self.path)
            except LeaseLost:
                return  # whoever writes next says so
            except OSError:
                continue  # the storage is away for now


@contextlib.contextmanager
def under(folder: Path, id: str | None) -> Iterator[None]:
    """Work under the lease of another process of this run, where there is one."""
    before = _held.get(folder)
    if id is not None:
        _held[folder] = id
    try:
        yield
    finally:
        _held.pop(folder, None)
        if before is not None:
            _held[folder] = before


def check(path: Path) -> None:
    """LeaseLost if a folder around `path` that this process works in is no longer its own.

    Call it before every write; where nobody holds a lease it does nothing.
    """
    for folder, id in list(_held.items()):
        if folder != path and folder not in path.parents:
            continue
        lease = folder / FILE
        try:
            text = lease.read_text()
        except (FileNotFoundError, NotADirectoryError):
            text = None
        except (OSError, UnicodeDecodeError):
            continue  # the storage is away for now: no sign of another writer
        if _id(text) == id:
            continue
        process = _process(text)
        now = (
            f"process {process.pid} on {process.host} writes it now" if process
            else f"{lease} was {'removed' if text is None else 'changed'}"
        )  # fmt: skip
        raise LeaseLost(
            f"the run {folder.name!r} is no longer this process's: {now}. It stops here, and "
            "writes nothing more there; what is stored is whole, and the same command continues it"
        )


atomic.guards.append(check)


def is_lost(path: Path) -> bool:
    """Whether `check` would raise."""
    try:
        check(path)
    except LeaseLost:
        return True
    return False


@dataclass(frozen=True)
class _Found:
    """A lease that is there already.  silence: seconds since its last heartbeat."""

    text: str | None
    process: Process | None  # None: the file does not say
    silence: float

    @property
    def state(self) -> State:
        return self.process.state if self.process else State.UNKNOWN

    @property
    def is_free(self) -> bool:
        """Whether whoever held it is gone."""
        if self.state is State.UNKNOWN:
            return self.silence > EXPIRES
        return self.state is State.DEAD

    @property
    def description(self) -> str:
        """By whom the run is being written, and how it gets free."""
        if self.process is None:
            return (
                f"by a process that its {FILE}, which is damaged, does not name; that expires "
                f"{EXPIRES:g} s after its last heartbeat, {self.silence:.0f} s ago"
            )
        pid = self.process.pid
        by = f"by process {pid} on {self.process.host}"
        if self.state is State.STOPPED:
            return (
                f"{by}, which is stopped (state T): let it go on with `kill -CONT {pid}`, or end "
                f"it with `kill -KILL {pid}`, or choose another --name"
            )
        if self.state is State.UNKNOWN:
            by += (
                f", last heard of {self.silence:.0f} s ago (seen from here, its lease expires "
                f"{EXPIRES:g} s after its last heartbeat)"
            )
        elif self.silence > EXPIRES:
            by += f", which lives but was last heard of {self.silence:.0f} s ago"
        return f"{by}; wait for it, stop it, or choose another --name"


def _find(path: Path, fresh: Path) -> _Found | None:
    """The lease at `path`.  fresh: a file just written beside it, by the same clock."""
    try:
        silence = fresh.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return None
    text = _read(path)
    return _Found(text, _process(text), silence)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _record(text: str | None) -> dict:
    try:
        record = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _id(text: str | None) -> str | None:
    return _record(text).get("id")


def _process(text: str | None) -> Process | None:
    """Whom a lease names; older ones name host and number alone."""
    record = _record(text)
    host, pid = record.get("host"), record.get("pid")
    if not isinstance(host, str) or type(pid) is not int or pid <= 0:
        return None
    known: dict[str, Any] = {field.name: record.get(field.name) for field in fields(Process)}
    return Process(**known)
