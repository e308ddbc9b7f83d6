"""Converted splits on disk: Arrow IPC shards, an index without pixels, and a manifest.

Writes shard files and reads them back, sample by sample, with a checksum before any byte leaves.
Not here: where raw files lie (`spcl.data.datasets`) and what is checked in them
(`spcl.data.convert`).

    <folder>/shard-00000.arrow ...    images as found, labels as 8-bit grey PNG of trainIds
    <folder>/index.parquet            every column but the encoded images, with shard, batch, row
    <folder>/manifest.json            written last: names, sizes and hashes of the others, and its
                                      own checksum
"""

import copy
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from spcl import atomic, records
from spcl.data.datasets import DATASETS
from spcl.data.labels import IGNORE_INDEX
from spcl.errors import DataError

SCHEMA_VERSION = 1  # of a shard's columns; that of the manifest is every record's
ROWS_PER_BATCH = 16  # what a writer holds in memory; reading one row costs the same at any size
MANIFEST = "manifest.json"
INDEX = "index.parquet"
METADATA_PREFIX = "seg."

Image.MAX_IMAGE_PIXELS = None  # shards hold what has passed the converter's own limit

MAPPED_BYTES = 16 * 2**20  # of shards in a process's memory, before all are let go
FAULT_BYTES = 2**16  # what the kernel maps around a byte that is read

_PAYLOAD = ("image", "label", "prev_image")  # encoded images: in the shards, not in the index
#: What a manifest must hold: one without a checksum may have lost any of it.
_FIELDS = {
    "metadata": dict, "inputs": dict, "fingerprint": str, "shards": list, "index": dict,
    "rows": int, "bytes": int, "image_sizes": dict,
    "class_pixels": list | None, "class_images": list | None,
}  # fmt: skip
_METADATA = {
    "name": str, "dataset": str, "split": str, "domain_role": str, "labelled": bool, "format": str,
    "class_names": list, "palette": list, "absent_train_ids": list, "id_map": dict | None,
    "label_space": str | None, "raw_encoding": str | None, "licence": str | None,
    "redistribution": str | None, "view": dict | None,
}  # fmt: skip
_ENTRY = {"name": str, "bytes": int, "sha256": str}
# The columns of the index that reading needs.
_NEEDED = ["sample_id", "height", "width", "class_pixels", "shard", "batch", "row"]
_NEEDED += ["image_crc32", "label_crc32", "prev_image_crc32"]


def _column(name: str, kind: pa.DataType, required: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=not required)


def schema(num_classes: int) -> pa.Schema:
    """The columns of a shard."""
    # large_binary: plain binary splits a column where it passes 2 GiB.
    return pa.schema(
        [
            _column("sample_id", pa.string(), required=True),
            _column("dataset", pa.string(), required=True),
            _column("split", pa.string(), required=True),
            _column("domain_role", pa.string(), required=True),  # source, target or eval
            _column("image", pa.large_binary(), required=True),
            _column("image_format", pa.string(), required=True),
            _column("height", pa.int32(), required=True),
            _column("width", pa.int32(), required=True),
            _column("label", pa.large_binary()),
            _column("label_height", pa.int32()),
            _column("label_width", pa.int32()),
            _column("class_pixels", pa.list_(pa.int32(), num_classes)),
            _column("ignore_pixels", pa.int32()),
            _column("sequence_id", pa.string()),
            _column("frame_index", pa.int32()),
            _column("prev_sample_id", pa.string()),
            _column("prev_image", pa.large_binary()),
            _column("prev_image_crc32", pa.uint32()),
            _column("prev_frame_index", pa.int32()),
            _column("condition", pa.string()),
            _column("flags", pa.list_(pa.string()), required=True),
            _column("source_image_path", pa.string(), required=True),
            _column("source_label_path", pa.string()),
            _column("source_image_sha256", pa.binary(32), required=True),
            _column("source_label_sha256", pa.binary(32)),
            # Of the mapped pixels, whatever the PNG settings.
            _column("label_sha256", pa.binary(32)),
            _column("image_crc32", pa.uint32(), required=True),
            _column("label_crc32", pa.uint32()),
            _column("extra_json", pa.string()),
        ]
    )


def _index_schema(num_classes: int) -> pa.Schema:
    kept = [field for field in schema(num_classes) if field.name not in _PAYLOAD]
    place = [_column(name, pa.int32(), required=True) for name in ("shard", "batch", "row")]
    return pa.schema(kept + place)


def label_columns(train_ids: np.ndarray, num_classes: int) -> dict[str, Any]:
    """The columns that hold a label, (H, W) uint8, and what is counted of it."""
    counts = np.bincount(train_ids.ravel(), minlength=256)
    buffer = io.BytesIO()
    Image.fromarray(train_ids).save(buffer, "PNG")
    encoded = buffer.getvalue()
    return {
        "label": encoded,
        "label_height": train_ids.shape[0],
        "label_width": train_ids.shape[1],
        "class_pixels": counts[:num_classes].tolist(),
        "ignore_pixels": int(counts[IGNORE_INDEX]),
        "label_sha256": hashlib.sha256(train_ids.tobytes()).digest(),
        "label_crc32": zlib.crc32(encoded),
    }


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
            kept = {key: value for key, value in row.items() if key not in _PAYLOAD}
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
        names = [name for name in reader.schema.names if name not in _PAYLOAD]
        for batch in range(reader.num_record_batches):
            found = reader.get_batch(batch).select(names).to_pylist()
            rows += [{**row, "batch": batch, "row": number} for number, row in enumerate(found)]
    return rows


def data_fingerprint(rows: Iterable[dict[str, Any]]) -> str:
    """sha256 over the sorted (sample_id, image hash, label hash): the data, however it is cut.

    The frame before counts, where there is one.
    """

    def line(row: dict[str, Any]) -> str:
        label = row["label_sha256"].hex() if row.get("label_sha256") else "-"
        previous = row.get("prev_image_crc32")
        more = "" if previous is None else f" {previous:08x}"
        return f"{row['sample_id']} {row['source_image_sha256'].hex()} {label}{more}\n"

    return hashlib.sha256("".join(sorted(map(line, rows))).encode()).hexdigest()


def write_manifest(
    folder: Path,
    metadata: dict[str, Any],
    inputs: dict[str, Any],
    shards: list[tuple[dict[str, Any], list[dict[str, Any]]]],
) -> dict[str, Any]:
    """Write the index and then the manifest; returns the manifest.

    inputs  what was converted, to recognise the same request later
    shards  what `write_shard` returned, in order
    """
    rows = [{**row, "shard": n} for n, (_, index) in enumerate(shards) for row in index]
    num_classes = len(metadata["class_names"])
    with atomic.opened(folder / INDEX) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=_index_schema(num_classes)), file)
    manifest = {
        "metadata": metadata,
        "inputs": inputs,
        "shards": [entry for entry, _ in shards],
        "index": {
            "name": INDEX,
            "bytes": (folder / INDEX).stat().st_size,
            "sha256": atomic.sha256(folder / INDEX),
        },
        "bytes": sum(entry["bytes"] for entry, _ in shards),
        **counted(rows, num_classes),
    }
    records.write(folder / MANIFEST, manifest)
    return read_manifest(folder)


def counted(rows: Sequence[dict[str, Any]], num_classes: int) -> dict[str, Any]:
    """What a manifest says of its index rows: fingerprint, counts and sizes."""
    sizes: dict[str, int] = {}
    for row in rows:
        size = f"{row['width']}x{row['height']}"
        sizes[size] = sizes.get(size, 0) + 1
    labelled = [row["class_pixels"] for row in rows if row.get("class_pixels") is not None]
    counts = np.array(labelled, np.int64).reshape(-1, num_classes)
    return {
        "fingerprint": data_fingerprint(rows),
        "rows": len(rows),
        "image_sizes": sizes,  # "width x height": number of images
        "class_pixels": counts.sum(0).tolist() if labelled else None,
        "class_images": (counts > 0).sum(0).tolist() if labelled else None,
    }


def contradictions(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What a manifest says otherwise than its index and its shards do, which must be whole."""
    index = pq.ParquetFile(folder / manifest["index"]["name"]).read()
    found = counted(index.to_pylist(), index.schema.field("class_pixels").type.list_size)
    found["bytes"] = sum(entry["bytes"] for entry in manifest["shards"])
    wrong = [key for key, value in found.items() if manifest[key] != value]
    for entry in manifest["shards"]:
        with pa.memory_map(str(folder / entry["name"])) as source:
            described = pa.ipc.open_file(source).schema.metadata or {}
        says = {
            key.decode().removeprefix(METADATA_PREFIX): json.loads(value)
            for key, value in described.items()
        }
        metadata = manifest["metadata"]
        keys = sorted(says.keys() | metadata.keys())
        wrong += [key for key in keys if says.get(key) != metadata.get(key) and key not in wrong]
    return wrong


def ingest_command(folder: Path, manifest: dict[str, Any] | None = None) -> str:
    """The line that writes the split kept at <data>/<dataset>/<split>, or writes it again."""
    dataset, data, source, more = folder.parent.name, folder.parent.parent, "--root DIR", ""
    if view := re.fullmatch(r"(.+)-(\d+x\d+)-(png|webp|jpeg\d+)", dataset):
        dataset, source = view[1], f"--view {view[2]} --codec {view[3]}"
    if manifest:
        known = manifest["metadata"]
        dataset, name, view = known["format"], known["dataset"], known["view"]
        data = folder.parents[1 + name.count("/")]
        if view:
            name = view["parent"].rpartition("/")[0]
            source = f"--view {view['size']} --codec {view['codec']}"
        more = " --overwrite" if name == dataset else f" --name {name} --overwrite"
    if dataset not in DATASETS:
        dataset += ".yaml"  # the user's own, described by a file
    return (
        f"python ray_jobs/ingest.py --dataset {dataset} --split {folder.name} {source} "
        f"--out {data}{more}"
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished split; DataError if there is none, or not as it was written."""
    path = folder / MANIFEST
    command = ingest_command(folder)
    way_out = f"write the split again with: {command} --overwrite"
    if folder.parent.parent.name == "streets":  # which is rendered, and has no raw files to name
        way_out = f"remove the folder {folder} and run the same command again"
    try:
        manifest = records.read(path, way_out)
    except records.MissingRecord:
        raise DataError(f"no shards in {folder}; write them with: {command}") from None
    missing = _missing(manifest, _FIELDS) or _missing(manifest["metadata"], _METADATA)
    for entry in () if missing else (*manifest["shards"], manifest["index"]):
        missing = missing or _missing(entry, _ENTRY)
    if missing:
        raise DataError(f"{path} is not a manifest of shards: {missing}; {way_out}")
    return manifest


def _missing(values: Any, kinds: Mapping[str, Any]) -> str:
    """What a part of a manifest lacks, in words; "" where nothing."""
    if not isinstance(values, dict):
        return f"{values!r} stands where {', '.join(kinds)} are expected"
    for name, kind in kinds.items():
        if name not in values or not isinstance(values[name], kind):
            found = repr(values[name]) if name in values else "nothing"
            return f"{name} cannot be {found}"
    return ""


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
