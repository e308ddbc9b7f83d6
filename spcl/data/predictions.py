"""Stored predictions of one network over one split: what pseudo labels are cut from.

One Arrow file per rank with columns sample_id, label (8-bit grey PNG), confidence (16-bit grey PNG,
integers floor(p * 65535)), and one histogram (K, 65536) over all ranks, from which any threshold
follows without inference.
"""

import io
import zlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from spcl.store import atomic

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("label", pa.large_binary()),
        ("confidence", pa.large_binary()),
    ]
)
HISTOGRAM = "histogram.npy"
ENCODERS = 2  # threads; an image of 1024x2048 takes one 60 ms
PENDING = 4  # images that wait for them at most


def png(array: np.ndarray, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """A grey PNG of (H, W) uint8 or uint16; strategy: zlib's, see `add` below."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1, compress_type=strategy)
    return buffer.getvalue()


class PredictionWriter:
    """Writes one rank's file, a record batch per image; use as a context manager.

    Images are encoded in threads, and written by the caller's in the order they came.
    """

    def __init__(self, folder: Path, rank: int):
        self._path = folder / f"predictions-{rank:05d}.arrow"
        with atomic.writing(self._path):
            self._writer = pa.ipc.new_file(self._path, SCHEMA)
        self._encoders = ThreadPoolExecutor(ENCODERS)
        self._pending: deque[tuple[str, Future[bytes], Future[bytes]]] = deque()

    def add(self, sample_id: str, label: np.ndarray, confidence: np.ndarray) -> None:
        """label (H, W) uint8, confidence (H, W) uint16; neither may be changed afterwards.

        StorageError where this or an earlier one cannot be written.
        """
        encode = self._encoders.submit
        # In confidences little repeats but runs; sought alone, they take 0.6 of the time and 0.4 %
        # more room.
        levels = encode(png, confidence, zlib.Z_RLE)
        self._pending.append((sample_id, encode(png, label), levels))
        while len(self._pending) > PENDING:
            self._write_next()

    def _write_next(self) -> None:
        sample_id, label, confidence = self._pending.popleft()
        row = [[sample_id], [label.result()], [confidence.result()]]
        columns = [pa.array(v, f.type) for v, f in zip(row, SCHEMA, strict=True)]
        with atomic.writing(self._path):
            self._writer.write_batch(pa.record_batch(columns, SCHEMA))

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        while self._pending:
            self._write_next()
        self._encoders.shutdown()
        with atomic.writing(self._path):
            self._writer.close()


def rows_by_id(files: Iterable[Path]) -> dict[str, tuple[pa.Table, int]]:
    """Where each sample stands in Arrow files, which are mapped."""
    rows = {}
    for path in files:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        for row, name in enumerate(table["sample_id"].to_pylist()):
            rows[name] = (table, row)
    return rows


class PredictionSet:
    """Read-only view of a folder of predictions; opens its files lazily in each process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._rows: dict[str, tuple[pa.Table, int]] | None = None

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "_rows": None}

    def __getitem__(self, sample_id: str) -> tuple[np.ndarray, np.ndarray]:
        """label (H, W) uint8 and confidence (H, W) uint16 of a sample."""
        if self._rows is None:
            self._rows = rows_by_id(sorted(self.folder.glob("predictions-*.arrow")))
        table, row = self._rows[sample_id]
        label = Image.open(io.BytesIO(table["label"][row].as_py()))
        confidence = Image.open(io.BytesIO(table["confidence"][row].as_py()))
        return np.array(label), np.array(confidence, np.uint16)

    def histogram(self) -> np.ndarray:
        """(K, 65536) int64 pixel counts per predicted class and confidence."""
        return np.load(self.folder / HISTOGRAM)
