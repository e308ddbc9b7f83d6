"""Stored predictions of one network over one split: what pseudo labels are cut from at load.

One Arrow file per rank with columns sample_id, label (8-bit grey PNG), confidence (16-bit grey PNG,
integers floor(p * 65535)), and one histogram (K, 65536) over all ranks, from which any threshold
follows without inference.
"""

import io
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


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class PredictionWriter:
    """Writes one rank's file, a record batch per image; use as a context manager."""

    def __init__(self, folder: Path, rank: int):
        self._path = folder / f"predictions-{rank:05d}.arrow"
        with atomic.writing(self._path):
            self._writer = pa.ipc.new_file(self._path, SCHEMA)

    def add(self, sample_id: str, label: np.ndarray, confidence: np.ndarray) -> None:
        """label (H, W) uint8, confidence (H, W) uint16."""
        row = [[sample_id], [_png(label)], [_png(confidence)]]
        columns = [pa.array(v, f.type) for v, f in zip(row, SCHEMA, strict=True)]
        with atomic.writing(self._path):
            self._writer.write_batch(pa.record_batch(columns, SCHEMA))

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with atomic.writing(self._path):
            self._writer.close()


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
            self._rows = {}
            for path in sorted(self.folder.glob("predictions-*.arrow")):
                table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
                for row, name in enumerate(table["sample_id"].to_pylist()):
                    self._rows[name] = (table, row)
        table, row = self._rows[sample_id]
        label = Image.open(io.BytesIO(table["label"][row].as_py()))
        confidence = Image.open(io.BytesIO(table["confidence"][row].as_py()))
        return np.array(label), np.array(confidence, np.uint16)

    def histogram(self) -> np.ndarray:
        """(K, 65536) int64 pixel counts per predicted class and confidence."""
        return np.load(self.folder / HISTOGRAM)
