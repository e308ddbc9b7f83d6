"""Which process is meant, and does it live?  A number alone is no name: numbers are used again.

A process is named by the boot of its kernel, its namespace of process numbers, its number and when
it started.  Only a process of the same boot and namespace can be looked up; of any other this
machine knows nothing.
"""

import dataclasses
import os
import re
import socket
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

PROC = Path("/proc")
ABANDONED = 24 * 3600.0  # seconds without a change, of what nobody can be asked about


class State(Enum):
    """What is known of a process."""

    RUNNING = "running"
    STOPPED = "stopped"  # by a signal or a debugger; it goes on after SIGCONT
    DEAD = "dead"
    UNKNOWN = "unknown"  # of another host, boot or namespace, or named by number alone


@dataclass(frozen=True)
class Process:
    """A process of some host; None is what the system, or an older record, does not tell."""

    host: str
    pid: int
    boot: str | None = None
    namespace: str | None = None
    started: int | None = None  # clock ticks after the boot

    @property
    def state(self) -> State:
        """Whether it lives, as far as this process can tell."""
        own = this_process()
        if self.boot is None or own.boot is None:  # then the name is all there is to go by
            return State.DEAD if self.host == own.host and not _exists(self.pid) else State.UNKNOWN
        if (self.boot, self.namespace) != (own.boot, own.namespace):
            return State.UNKNOWN
        found = _read_stat(self.pid)
        if found is None:  # none, or another user's where /proc hides those
            return State.UNKNOWN if _exists(self.pid) else State.DEAD
        letter, started = found
        if started != self.started or letter in "ZX":  # another with its number; or ended
            return State.DEAD
        return State.STOPPED if letter in "Tt" else State.RUNNING

    @property
    def label(self) -> str:
        """For a file's name; `is_left_behind` reads it."""
        known = self.boot and f"~{self.boot[:8]}.{self.namespace}.{self.started}"
        return f"{self.host}{known or ''}-{self.pid}"


def this_process() -> Process:
    found = _read_stat(os.getpid())
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = re.sub(r"\D", "", os.readlink(PROC / "self/ns/pid"))  # pid:[4026531836]
    except OSError:
        found = None
    if found is None:
        return Process(socket.gethostname(), os.getpid())
    return Process(socket.gethostname(), os.getpid(), boot, namespace, found[1])


def who_locks(handle: int) -> Process | None:
    """The process that holds the `flock` of an open file; None where the system does not tell."""
    file = os.fstat(handle)
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    try:
        lines = (PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:  # 1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5] == place:
            pid = int(fields[4])
            found = _read_stat(pid)
            return found and dataclasses.replace(this_process(), pid=pid, started=found[1])
    return None


def is_left_behind(path: Path) -> bool:
    """Whether a temporary folder `.what.<label>.tmp` is of a process of this host that is no more.

    One of another boot of a host of this name (restarted, or another container) counts once nobody
    has written there for a day.
    """
    own = this_process()
    label = r"(?:~(?P<boot>\w+)\.(?P<namespace>\d+)\.(?P<started>\d+))?-(?P<pid>\d+)"
    match = re.fullmatch(rf"\..*\.{re.escape(own.host)}{label}\.tmp", path.name)
    if not match:
        return False
    holder = Process(own.host, int(match["pid"]))  # of an older version
    if match["boot"]:
        boot = own.boot if own.boot and own.boot.startswith(match["boot"]) else match["boot"]
        started = int(match["started"])
        holder = Process(own.host, holder.pid, boot, match["namespace"], started)
    if match["boot"] and holder.state is State.UNKNOWN:
        return _newest(path) < time.time() - ABANDONED
    return holder.state is State.DEAD


def _newest(folder: Path) -> float:
    """When anything in it was last written; files that vanish meanwhile count as just written."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        return time.time()


def _read_stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process; None where /proc does not show it."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], int(fields[19])  # fields 3 and 22 of proc(5)


def _exists(pid: int) -> bool:
    """Does a process of this namespace have that number?"""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # kill() takes no number of any size
        return False
    except PermissionError:
        return True
    return True
