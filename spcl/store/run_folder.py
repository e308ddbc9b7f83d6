"""The run folder: what a run leaves behind, one writer, every file whole or absent.

    config.yaml       the resolved settings            manifest.json   code, keys, data, hardware
    metrics.jsonl     one line per log step            tensorboard/    the same, and panels
    checkpoints/      of stages in progress            evaluations/    per-image confusion matrices
    panel.png         image, truth, each stage         DONE.json or FAILED.json

Needs no torch and no ray: aggregators read thousands of these.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spcl.errors import DataError, StorageError
from spcl.store import atomic, records

SCHEMA = 1  # of confusion matrices and reports; that of the JSON is every record's
DONE = "DONE.json"
FAILED = "FAILED.json"


class RunFolder:
    def __init__(self, folder: Path):
        self.folder = folder
        self.name = folder.name

    @property
    def done(self) -> dict[str, Any] | None:
        """What DONE.json says, or None.  DataError names a damaged one."""
        done = self._read(DONE)
        if done is not None and not isinstance(done.get("table"), list):
            raise DataError(f"{self.folder / DONE} holds no table; {_way_out(DONE)}")
        return done

    @property
    def result(self) -> dict[str, Any]:
        """`done` of a run that has finished."""
        done = self.done
        if done is None:
            raise DataError(f"run {self.name} is not finished: {self.folder} has no {DONE}")
        return done

    @property
    def failed(self) -> dict[str, Any] | None:
        """What FAILED.json says, or None.  A damaged one is a failure of unknown reason."""
        try:
            failed = self._read(FAILED)
        except DataError as error:
            return {"error": f"why is unknown: {error}", "kind": "DataError"}
        return None if failed is None else {"error": "no reason given"} | failed

    @property
    def manifest(self) -> dict[str, Any] | None:
        return self._read("manifest.json")

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return records.read(self.folder / name, _way_out(name))
        except records.MissingRecord:
            return None

    def write(self, name: str, value: dict[str, Any]) -> None:
        records.write(self.folder / name, value)

    def finish(self, value: dict[str, Any]) -> None:
        self.write(DONE, value)
        self.forget_failure()

    def fail(self, error: str, kind: str) -> None:
        """Note why the run ended; on a full disk only the caller's message tells it."""
        with contextlib.suppress(StorageError):
            self.write(FAILED, {"error": error, "kind": kind})

    def forget_failure(self) -> None:
        """A run that is tried again has not failed."""
        path = self.folder / FAILED
        if path.is_dir():
            raise DataError(f"{path} must be a file, but a folder is there; remove it")
        with atomic.writing(self.folder):
            path.unlink(missing_ok=True)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The log lines; a step that stands twice (after a resume) counts by its last line."""
        path = self.folder / "metrics.jsonl"
        latest: dict[tuple, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the line being written when a process died
                if isinstance(record, dict) and {"stage", "step"} <= record.keys():
                    latest[record["stage"], record["step"]] = record
        yield from latest.values()

    @property
    def bytes(self) -> int:
        """Size on disk; files that vanish meanwhile count as nothing."""
        total = 0
        for path in self.folder.rglob("*"):
            with contextlib.suppress(OSError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def remove(self) -> None:
        with atomic.writing(self.folder):
            shutil.rmtree(self.folder)


def _way_out(name: str) -> str:
    """What to do about a damaged record; what made the run makes it again from what is stored."""
    files = "it" if name == DONE else f"it and {DONE}"  # a finished run writes nothing anew
    return f"remove {files} and run the command of the run again"


def runs(storage: Path) -> list[RunFolder]:
    """Every run in a storage folder, by name."""
    if not storage.is_dir():
        return []
    folders = (p for p in sorted(storage.iterdir()) if (p / "config.yaml").exists())
    return [RunFolder(p) for p in folders]


def write_confusions(path: Path, sample_ids: Sequence[str], matrices: np.ndarray) -> None:
    """Per-image confusion matrices (N, K, K) int64, rows truth, as Parquet."""
    classes = matrices.shape[1]
    flat = pa.array(matrices.reshape(-1), pa.int64())
    table = pa.table(
        {
            "sample_id": pa.array(list(sample_ids), pa.string()),
            "confusion": pa.FixedSizeListArray.from_arrays(flat, classes * classes),
        },
        metadata={"schema": str(SCHEMA), "classes": str(classes)},
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    atomic.write_bytes(path, buffer.getvalue().to_pybytes())


def read_confusions(path: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(path)
    classes = int(table.schema.metadata[b"classes"])
    flat = table["confusion"].combine_chunks().flatten().to_numpy()
    return table["sample_id"].to_pylist(), flat.reshape(-1, classes, classes)
