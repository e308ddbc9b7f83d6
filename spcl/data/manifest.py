"""What a converted split says of itself: its manifest, written last, and its index.

Not here: the shard files (`shards`).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spcl.data.columns import METADATA_PREFIX, PAYLOAD, column, schema
from spcl.data.datasets import DATASETS
from spcl.errors import DataError
from spcl.store import atomic, records

MANIFEST = "manifest.json"
INDEX = "index.parquet"
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


def _index_schema(num_classes: int) -> pa.Schema:
    kept = [field for field in schema(num_classes) if field.name not in PAYLOAD]
    place = [column(name, pa.int32(), required=True) for name in ("shard", "batch", "row")]
    return pa.schema(kept + place)


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
