"""Converted splits on disk: Arrow IPC shards, an index without pixels, and a manifest.

Writes shard files and reads them back, sample by sample, with a checksum before any byte leaves.
Not here: where raw files lie (`spcl.data.datasets`), what is checked in them
(`spcl.data.convert`), and index and manifest (`spcl.data.manifest`).

    <folder>/shard-00000.arrow ...    images as found, labels as 8-bit grey PNG of trainIds
    <folder>/index.parquet            every column but the encoded images, with shard, batch, row
    <folder>/manifest.json            written last: names, sizes and hashes of the others, and its
                                      own checksum
"""

import copy
import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from spcl.data.columns import METADATA_PREFIX, PAYLOAD, schema
from spcl.data.manifest import MANIFEST, ingest_command, read_manifest
from spcl.errors import DataError
from spcl.store import atomic

ROWS_PER_BATCH = 16  # what a writer holds in memory; reading one row costs the same at any size

Image.MAX_IMAGE_PIXELS = None  # shards hold what has passed the converter's own limit

MAPPED_BYTES = 16 * 2**20  # of shards in a process's memory, before all are let go
FAULT_BYTES = 2**16  # what the kernel maps around a byte that is read

# The columns of the index that reading needs.
_NEEDED = ["sample_id", "height", "width", "class_pixels", "shard", "batch", "row"]
_NEEDED += ["image_crc32", "label_crc32", "prev_image_crc32"]


def write_shard(
    path: Path, metadata: dict[str, Any], rows: Iterable[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write one shard, holding one record batch in memory.

    rows  mappings of column to value; a missing column is null

    Returns the shard's manifest entry and its index rows, which carry `batch` and `row`.
    """
    described = {
        METADATA_PREFIX + key: json.dumps(value, sort_keys=True) for key, value in metadata.items()
    }
    columns = schema(len(metadata["class_names"])).with_metadata(described)
    index: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = []
    batches = 0
    with (
        atomic.writing(path),
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, columns) as writer,
    ):

        def flush() -> None:
            nonlocal batches
            if pending:
                writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=columns))
                batches += 1
                pending.clear()

        for row in rows:
            kept = {key: value for key, value in row.items() if key not in PAYLOAD}
            index.append({**kept, "batch": batches, "row": len(pending)})
            pending.append(row)
            if len(pending) == ROWS_PER_BATCH:
                flush()
        flush()
    entry = {
        "name": path.name,
        "rows": len(index),
        "bytes": path.stat().st_size,
        "sha256": atomic.sha256(path),
    }
    return entry, index


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The index rows of a shard, as `write_shard` returned them."""
    rows: list[dict[str, Any]] = []
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        names = [name for name in reader.schema.names if name not in PAYLOAD]
        for batch in range(reader.num_record_batches):
            found = reader.get_batch(batch).select(names).to_pylist()
            rows += [{**row, "batch": batch, "row": number} for number, row in enumerate(found)]
    return rows


class ShardSet:
    """Read-only view of one converted split.

    folder       where it lies
    name         "gta5/train"
    metadata     label space, id map, licence, ...: the manifest's `metadata`
    fingerprint  sha256 of the data, whatever the shard sizes
    labelled     whether the split holds labels
    sample_ids   N names, in the order of the indices
    image_sizes  (N, 2) int32 [height, width]
    class_names  K names, in the order of the trainIds
    palette      (K, 3) uint8 colours of the classes
    class_pixels (N, K) int32 pixels of each trainId, None when unlabelled

    Opening reads the manifest and the index only.  Shards are mapped when they are used, in each
    process anew: a pickled ShardSet carries no open file.  DataError if the split is missing,
    empty, incomplete, damaged or of another schema.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        manifest = read_manifest(self.folder)
        self._manifest = manifest
        try:
            self._open(manifest)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise DataError(  # only where no checksum has told of it
                f"{self.folder / MANIFEST} does not fit its shards ({error}); {self._mend()}"
            ) from error

    def _open(self, manifest: dict[str, Any]) -> None:
        self._shards: list[dict[str, Any]] = manifest["shards"]
        if not manifest["rows"]:
            raise DataError(f"{self.folder} holds no samples; {self._mend()}")
        for entry in (*self._shards, manifest["index"]):
            self._check_size(entry)
        index = self._read_index(manifest["index"])
        self.metadata: dict[str, Any] = manifest["metadata"]
        self.name: str = self.metadata["name"]
        self.labelled: bool = self.metadata["labelled"]
        self.class_names: list[str] = self.metadata["class_names"]
        self.palette = np.array(self.metadata["palette"], np.uint8)
        self.fingerprint: str = manifest["fingerprint"]
        self.sample_ids: list[str] = index["sample_id"].to_pylist()
        self.image_sizes = np.stack([_numbers(index, "height"), _numbers(index, "width")], 1)
        self.class_pixels: np.ndarray | None = None
        if self.labelled:
            flat = index["class_pixels"].combine_chunks().flatten()
            self.class_pixels = flat.to_numpy().reshape(-1, len(self.class_names))
        self._place = np.stack([_numbers(index, name) for name in ("shard", "batch", "row")], 1)
        self._crc32 = {"image": _numbers(index, "image_crc32")}
        if self.labelled:
            self._crc32["label"] = _numbers(index, "label_crc32")
        if "prev_image_crc32" in index.schema.names and index["prev_image_crc32"].null_count == 0:
            self._crc32["prev_image"] = _numbers(index, "prev_image_crc32")
        self._readers: dict[int, pa.RecordBatchFileReader] = {}
        self._mapped = 0  # bytes read since all shards were let go, an upper bound

    def subset(self, indices: np.ndarray) -> "ShardSet":
        """The same split with these samples only, under a fingerprint of its own."""
        part = copy.copy(self)
        part._readers = {}
        part.sample_ids = [self.sample_ids[index] for index in indices]
        part.image_sizes, part._place = self.image_sizes[indices], self._place[indices]
        part._crc32 = {column: crc32[indices] for column, crc32 in self._crc32.items()}
        if self.class_pixels is not None:
            part.class_pixels = self.class_pixels[indices]
        chosen = "\n".join([self.fingerprint, *part.sample_ids])
        part.fingerprint = hashlib.sha256(chosen.encode()).hexdigest()
        return part

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def image(self, index: int) -> bytes:
        """The image file's bytes as found; DataError if they do not match their checksum."""
        return self._read(index, "image")

    def label(self, index: int) -> bytes:
        """8-bit grey PNG of trainIds; DataError if damaged or if the split holds no labels."""
        if not self.labelled:
            raise DataError(f"{self.name} in {self.folder} holds no labels")
        return self._read(index, "label")

    @property
    def has_previous(self) -> bool:
        """Whether the split holds the frame before each."""
        return "prev_image" in self._crc32

    def previous(self, index: int) -> bytes:
        """The frame before, as `image`; DataError also where the split holds none."""
        if not self.has_previous:
            raise DataError(f"{self.name} in {self.folder} holds no previous frames")
        return self._read(index, "prev_image")

    def altered(self, shard: str) -> list[str]:
        """The samples of a shard file whose bytes do not match their checksums."""
        number = [entry["name"] for entry in self._shards].index(shard)
        found = []
        for index in np.flatnonzero(self._place[:, 0] == number):
            try:
                for column in self._crc32:
                    self._read(int(index), column)
            except DataError:
                found.append(self.sample_ids[index])
        return found

    def _read(self, index: int, column: str) -> bytes:
        shard, batch, row = self._place[index].tolist()
        path = self.folder / self._shards[shard]["name"]
        try:
            cells = self._reader(shard).get_batch(batch).column(column)
            cells.validate(full=True)  # damaged offsets would be followed out of the file
            data = cells[row].as_py() or b""
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            raise DataError(
                f"sample {self.sample_ids[index]}: {path} is damaged ({error}); {self._mend()}"
            ) from error
        expected, found = int(self._crc32[column][index]), zlib.crc32(data)
        if found != expected:
            raise DataError(
                f"sample {self.sample_ids[index]}: {column} checksum mismatch in {path} "
                f"(expected {expected:08x}, found {found:08x}); the file was altered after "
                f"conversion, {self._mend()}"
            )
        self._mapped += len(data) + FAULT_BYTES
        if self._mapped > MAPPED_BYTES:  # else a process grows by all that it reads
            self._readers.clear()
            self._mapped = 0
        return data

    def _reader(self, shard: int) -> pa.RecordBatchFileReader:
        if shard not in self._readers:
            entry = self._shards[shard]
            self._check_size(entry)  # reading past the end of a mapped file kills the process
            source = pa.memory_map(str(self.folder / entry["name"]))
            self._readers[shard] = pa.ipc.open_file(source)
        return self._readers[shard]

    def _check_size(self, entry: dict[str, Any]) -> None:
        path = self.folder / entry["name"]
        try:
            found = f"has {path.stat().st_size} bytes"
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            found = "is missing" if gone else f"cannot be read ({error.strerror})"
        if found != f"has {entry['bytes']} bytes":
            raise DataError(
                f"incomplete shards: {path} {found}, the manifest says {entry['bytes']} bytes; "
                f"{self._mend()}"
            )

    def _read_index(self, entry: dict[str, Any]) -> pa.Table:
        try:
            data = (self.folder / entry["name"]).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.folder / entry['name']} cannot be read ({error.strerror}); {self._mend()}"
            ) from None
        found = hashlib.sha256(data).hexdigest()
        if found != entry["sha256"]:
            raise DataError(
                f"{self.folder / entry['name']} was altered after conversion (sha256 {found}, the "
                f"manifest says {entry['sha256']}); {self._mend()}"
            )
        # ParquetFile, not read_table, which imports and starts much to read this little.
        file = pq.ParquetFile(pa.BufferReader(data))
        return file.read(columns=_NEEDED, use_threads=False)

    def _mend(self) -> str:
        return f"write it again with: {ingest_command(self.folder, self._manifest)}"


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return table[column].to_numpy()
