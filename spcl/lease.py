"""One writer per run: a lease that names host and process and expires when its heart stops."""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from spcl import atomic
from spcl.errors import UserError

EXPIRES = 60.0  # seconds without a heartbeat
HEARTBEAT = 10.0  # seconds
LARGEST_PID = 2**22  # of Linux; kill() takes no number of any size


class Lease:
    """Context manager; raises UserError while another live process holds the folder."""

    def __init__(self, folder: Path):
        self.path = folder / "lease.json"
        self._stop = threading.Event()
        self._mine = {"host": socket.gethostname(), "pid": os.getpid()}

    def __enter__(self) -> "Lease":
        with atomic.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise UserError(f"{self.path} must be a file, but a folder is there; remove it")
            self._take()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._read() == self._mine:
            self.path.unlink(missing_ok=True)

    def _take(self) -> None:
        """Create the lease where there is none; of two processes at once, one succeeds."""
        fresh = self.path.with_name(f"lease-{uuid.uuid4().hex}.tmp")
        atomic.write_bytes(fresh, json.dumps(self._mine).encode())
        try:
            self._drop_expired(fresh)
            os.link(fresh, self.path)  # fails where the path exists, unlike a rename
        except FileExistsError:
            holder = self._read() or {"pid": "?", "host": "another host"}
            raise UserError(
                f"the run {self.path.parent.name!r} is being written by process {holder['pid']} on "
                f"{holder['host']}; wait for it, stop it, or choose another --name"
            ) from None
        finally:
            fresh.unlink(missing_ok=True)

    def _drop_expired(self, fresh: Path) -> None:
        if self.path.exists() and not self._holder():
            grave = fresh.with_suffix(".old")
            try:
                os.rename(self.path, grave)  # of two who try, one moves it
            except FileNotFoundError:
                return
            grave.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                os.utime(self.path)
            except OSError:
                atomic.write_json(self.path, self._mine)

    def _read(self) -> dict | None:
        """None where there is none, or a damaged one, which holds nothing."""
        try:
            holder = json.loads(self.path.read_bytes())
            whole = isinstance(holder["host"], str) and 0 < holder["pid"] <= LARGEST_PID
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return holder if whole else None

    def _holder(self) -> dict | None:
        """Who holds the lease now; None when nobody alive does."""
        holder = self._read()
        if holder is None:
            return None
        dead = holder["host"] == self._mine["host"] and not process_is_alive(holder["pid"])
        age = time.time() - self.path.stat().st_mtime
        return None if dead or age > EXPIRES else holder


def process_is_alive(pid: int) -> bool:
    """Does a process of this host have that id?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
