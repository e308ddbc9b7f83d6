"""Write files and folders so that a reader sees all of them or nothing, and can tell.

All that is written is written here, or inside of `writing`, so that a full disk is told alike
everywhere, and nobody writes into a run that is another process's now (`spcl.store.lease`).
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from spcl.errors import StorageError

#: Asked before anything is written to a path; they raise where that must not be.
guards: list[Callable[[Path], None]] = []

#: Why the system refuses to write, and what to do.
REFUSALS = {
    errno.ENOSPC: ("no space left on device", "free some"),
    errno.EDQUOT: ("disk quota exceeded", "remove files of yours or have it raised"),
    errno.EFBIG: ("file-size limit exceeded", "raise it (ulimit -f)"),
    errno.EACCES: ("permission denied", "get the right to write there"),
    errno.EPERM: ("operation not permitted", "get the right to write there"),
    errno.EROFS: ("read-only file system", "make it writable"),
}
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)  # where more space would not help
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def refusal(error: BaseException | None, path: Path | None = None) -> StorageError | None:
    """The one line about a refused write, where an error is one; None where it is not.

    path  what was to be written, if the error does not say
    """
    while error is not None:
        if isinstance(error, StorageError):
            return error
        if isinstance(error, OSError) and error.errno in REFUSALS:
            named = Path(os.fsdecode(error.filename)) if _is_path(error.filename) else path
            if named is None and error.errno in FORBIDDEN:
                return None  # it may be a socket that is refused
            return _told(error.errno, named)
        # What torch.save raises hides the system's own error, which came before.
        error = error.__cause__ or error.__context__
    return None


def _is_path(name: object) -> bool:
    return isinstance(name, (str, bytes)) and bool(name)


def _told(number: int, path: Path | None) -> StorageError:
    reason, advice = REFUSALS[number]
    where = "" if path is None else f"{_lasting(path)}: "
    space = "" if path is None or number in FORBIDDEN else _space(path)
    told = StorageError(f"{where}{reason}{space}; {advice}, then the same command continues")
    told.strerror = reason  # for those who say it in a sentence of their own
    return told


def _lasting(path: Path) -> Path:
    """A path up to the first temporary name in it, which nobody will find."""
    parts = path.absolute().parts
    kept = next((n for n, part in enumerate(parts) if part.endswith(".tmp")), len(parts))
    return Path(*parts[:kept])


def _space(path: Path) -> str:
    """ ", 0 B free of 2.0 MiB", of the file system that a path is or would be on"""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        at = os.statvfs(there)
    except OSError:
        return ""
    text = f", {_size(at.f_bavail * at.f_frsize)} free of {_size(at.f_blocks * at.f_frsize)}"
    if at.f_files and not at.f_favail:
        text += f", none of {at.f_files} files (inodes) free"
    return text


def _size(count: float) -> str:
    """ "1.5 MiB" of a number of bytes"""
    power = 0
    while count >= 1024 and power < len(UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.1f} {UNITS[power]}" if power else f"{count:.0f} {UNITS[0]}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What writes `path`, or below it, stands in this block: a refused write is a StorageError."""
    _ask(path)
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save raises the latter
        refused = refusal(error, path)
        if refused is None or refused is error:
            raise
        raise refused from None


def _ask(path: Path) -> None:
    for guard in guards:
        guard(path)


@contextmanager
def opened(path: Path, mode: str = "wb") -> Iterator[IO]:
    """A file to write, as `open` gives it.  np.save needs a buffer instead: it hides the reason."""
    with writing(path), open(path, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


def mkdir(path: Path) -> None:
    """Make a folder and those above it, where they are missing."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def append(path: Path, line: str) -> None:
    """Add a line to a file of lines; half a line that a killed writer has left is ended first.

    Where there is no room for all of it, nothing of it stays.
    """
    # Unbuffered: what is left in a buffer would be written when the file is closed.
    with writing(path), open(path, "ab+", buffering=0) as file:
        length = file.seek(0, os.SEEK_END)
        if length:
            file.seek(length - 1)
            line = line if file.read(1) == b"\n" else "\n" + line
        rest = memoryview(line.encode() + b"\n")
        try:
            while rest:  # a nearly full disk takes a part first
                rest = rest[file.write(rest) :]
        except OSError:
            os.truncate(path, length)
            raise


def fsync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _ask(path)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync(path.parent)


def write_json(path: Path, value: object) -> None:
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def flush(folder: Path) -> None:
    """Flush everything in a folder to the disk."""
    with writing(folder):
        for entry in sorted(folder.rglob("*")):
            fsync(entry)
        fsync(folder)


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished temporary folder and rename it to `path`.

    When `path` has appeared meanwhile (another process made the same thing), ours is left to the
    caller to drop.
    """
    with writing(path):
        flush(temporary)
        _ask(path)
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
        fsync(path.parent)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well; else it is gone."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            publish(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
