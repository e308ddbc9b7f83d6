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

from spcl import atomic
from spcl.errors import DataError, StorageError

SCHEMA = 1


class RunFolder:
    def __init__(self, folder: Path):
        self.folder = folder
        self.name = folder.name

    @property
    def done(self) -> dict[str, Any] | None:
        """What DONE.json says, or None."""
        return self._read("DONE.json")

    @property
    def failed(self) -> dict[str, Any] | None:
        return self._read("FAILED.json")

    @property
    def manifest(self) -> dict[str, Any] | None:
        return self._read("manifest.json")

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            return upgrade(json.loads(path.read_text(encoding="utf-8")), path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(
                f"{path} is not valid JSON ({error}); remove it and run again"
            ) from None

    def write(self, name: str, value: dict[str, Any]) -> None:
        atomic.write_json(self.folder / name, {"schema": SCHEMA} | value)

    def finish(self, value: dict[str, Any]) -> None:
        self.write("DONE.json", value)
        self.forget_failure()

    def fail(self, error: str, kind: str) -> None:
        """Note why the run ended; on a full disk only the caller's message tells it."""
        with contextlib.suppress(StorageError):
            self.write("FAILED.json", {"error": error, "kind": kind})

    def forget_failure(self) -> None:
        """A run that is tried again has not failed."""
        with atomic.writing(self.folder):
            (self.folder / "FAILED.json").unlink(missing_ok=True)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The log lines; a step that stands twice (after a resume) counts by its last line."""
        path = self.folder / "metrics.jsonl"
        latest: dict[tuple, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the line being written when a process died
                if "step" in record:
                    latest[record["stage"], record["step"]] = record
        yield from latest.values()

    @property
    def bytes(self) -> int:
        """Size on disk; files that vanish meanwhile count as nothing."""
        total = 0
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def remove(self) -> None:
        with atomic.writing(self.folder):
            shutil.rmtree(self.folder)


def upgrade(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """A record of any schema version we know, as the present one."""
    version = record.get("schema")
    if version != SCHEMA:
        raise DataError(
            f"{path} has schema {version}, this version of spcl reads {SCHEMA}; "
            "use the version that wrote it"
        )
    return record


def runs(storage: Path) -> list[RunFolder]:
    """Every run in a storage folder, by name."""
    if not storage.is_dir():
        return []
    folders = (p for p in sorted(storage.iterdir()) if (p / "config.yaml").is_file())
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
