"""The columns of a shard, and of the index, which holds all but the encoded images."""

import hashlib
import io
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from spcl.data.labels import IGNORE_INDEX

SCHEMA_VERSION = 1  # of a shard's columns; that of the manifest is every record's
METADATA_PREFIX = "seg."
PAYLOAD = ("image", "label", "prev_image")  # encoded images: in the shards, not in the index


def column(name: str, kind: pa.DataType, required: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=not required)


def schema(num_classes: int) -> pa.Schema:
    """The columns of a shard."""
    # large_binary: plain binary splits a column where it passes 2 GiB.
    return pa.schema(
        [
            column("sample_id", pa.string(), required=True),
            column("dataset", pa.string(), required=True),
            column("split", pa.string(), required=True),
            column("domain_role", pa.string(), required=True),  # source, target or eval
            column("image", pa.large_binary(), required=True),
            column("image_format", pa.string(), required=True),
            column("height", pa.int32(), required=True),
            column("width", pa.int32(), required=True),
            column("label", pa.large_binary()),
            column("label_height", pa.int32()),
            column("label_width", pa.int32()),
            column("class_pixels", pa.list_(pa.int32(), num_classes)),
            column("ignore_pixels", pa.int32()),
            column("sequence_id", pa.string()),
            column("frame_index", pa.int32()),
            column("prev_sample_id", pa.string()),
            column("prev_image", pa.large_binary()),
            column("prev_image_crc32", pa.uint32()),
            column("prev_frame_index", pa.int32()),
            column("condition", pa.string()),
            column("flags", pa.list_(pa.string()), required=True),
            column("source_image_path", pa.string(), required=True),
            column("source_label_path", pa.string()),
            column("source_image_sha256", pa.binary(32), required=True),
            column("source_label_sha256", pa.binary(32)),
            # Of the mapped pixels, whatever the PNG settings.
            column("label_sha256", pa.binary(32)),
            column("image_crc32", pa.uint32(), required=True),
            column("label_crc32", pa.uint32()),
            column("extra_json", pa.string()),
        ]
    )


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
