"""The folder that a conversion or a view is written to: one writer, replaced as a whole."""

import contextlib
import datetime
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spcl.data import shards
from spcl.data.manifest import MANIFEST, read_manifest
from spcl.errors import DataError
from spcl.store import atomic
from spcl.store.process import State, who_locks

REPORT = "conversion_report.json"
REPORT_SCHEMA = 1


def is_done(out: Path, inputs: dict[str, Any]) -> bool:
    """Whether `out` already holds this conversion; DataError if it holds something else."""
    if not out.is_dir() or not any(out.iterdir()):
        return False
    if not (out / MANIFEST).exists():
        raise DataError(f"{out} holds files but no shards; empty it or write elsewhere with --out")
    shards.ShardSet(out)
    found = read_manifest(out)["inputs"]
    other = [key for key in inputs if found.get(key) != inputs[key]]
    if other:
        differing = ", ".join(
            f"{key} {found.get(key)} there, {inputs[key]} here"
            for key in other
            if key != "names_and_sizes"  # two hashes tell nobody anything
        )
        differing = differing or "the same number of files, of other names or sizes"
        raise DataError(
            f"{out} holds shards made from other inputs ({differing}); write elsewhere with --out "
            f"or replace them with --overwrite"
        )
    return True


def check_replaceable(out: Path) -> None:
    if out.exists() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise DataError(f"{out} holds files that are not shards; --overwrite will not remove them")


@contextlib.contextmanager
def replacing(out: Path, part: Path | None = None) -> Iterator[Path]:
    """A folder that takes the place of `out`, old contents included, if the block ends well.

    part  the folder, if it is there already
    """
    old = out.with_name(f".{out.name}.old.tmp")
    try:
        with contextlib.nullcontext(part) if part else atomic.folder(out) as folder:
            yield folder
            if out.exists():
                os.rename(out, old)
            if part:
                atomic.publish(part, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the folder around `out`, and clear what a killed conversion left there.

    Two processes that want the same split on first use: the second waits and finds it done.
    """
    atomic.mkdir(out.parent)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        if _lock(handle, out.parent):
            for left in out.parent.glob(f".{out.name}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)  # also unlocks


def _lock(handle: int, folder: Path) -> bool:
    """Wait for the lock; False on a file system that knows none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = who_locks(handle)
        by = f", by process {holder.pid}" if holder else ""
        if holder and holder.state is State.STOPPED:
            by += (
                f", which is stopped (state T): let it go on with `kill -CONT {holder.pid}`, or "
                f"end it with `kill -KILL {holder.pid}`"
            )
        print(f"waiting for another conversion in {folder}{by}", file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def clock(started: datetime.datetime) -> dict[str, Any]:
    finished = datetime.datetime.now(datetime.UTC)
    return {
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - started).total_seconds(), 1),
    }


def summary(manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        "converted": manifest["rows"],
        "shards": len(manifest["shards"]),
        "bytes": manifest["bytes"],
        "fingerprint": manifest["fingerprint"],
        "class_images": manifest["class_images"],
        "image_sizes": manifest["image_sizes"],
    }
