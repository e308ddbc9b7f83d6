"""Unix sockets lie in temporary folders, and the system limits how long their paths may be.

A batch system's TMPDIR is often too long: Ray then refuses to start, and a DataLoader's workers,
which hand their batches over by sockets, hang.
"""

import multiprocessing.util
import os
import stat
import sys
import tempfile
from pathlib import Path

from spcl.errors import UserError

#: Bytes of a socket's path, without its closing zero byte.
SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
SHORT_FOLDERS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
LOADER_SOCKET = "pymp-12345678/listener-12345678"  # of Python's multiprocessing


def fits(folder: Path, socket: str) -> bool:
    """Whether the path of a socket in a folder is short enough."""
    return length(folder, socket) <= SOCKET_BYTES


def length(folder: Path, socket: str) -> int:
    """Of a socket's path, in bytes."""
    return len(os.fsencode(folder / socket))


def short_folder(socket: str) -> Path | None:
    """A folder of this user's own in which the socket's path fits, made; None if there is none."""
    for parent in SHORT_FOLDERS:
        folder = parent / f"spcl-{os.getuid()}"
        if fits(folder, socket) and _is_own(folder):
            return folder
    return None


def _is_own(folder: Path) -> bool:
    """Make a folder of this user alone; False where that is not possible."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
        own = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return own and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def shorten_for_loaders() -> None:
    """Before DataLoader workers start: their sockets go to a folder that is short enough.

    UserError where there is none.
    """
    usual = Path(tempfile.gettempdir())
    if fits(usual, LOADER_SOCKET):
        return
    folder = short_folder(LOADER_SOCKET)
    if folder is None:
        raise UserError(
            f"the path of a socket must not pass {SOCKET_BYTES} bytes, but a loader's in {usual} "
            f"has {length(usual, LOADER_SOCKET)}; set TMPDIR to a shorter folder that can be "
            "written to, or train.loader_workers=0"
        )
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        multiprocessing.util.get_temp_dir()  # made once, inherited by every child
    finally:
        tempfile.tempdir = before
