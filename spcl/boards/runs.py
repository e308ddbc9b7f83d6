"""A finished run as boards know it, scored from its per-image matrices."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from spcl.boards.folders import Folder, open_folder, reason_of
from spcl.errors import DataError
from spcl.scoring.protocols import PROTOCOLS, check_classes, headline, score
from spcl.scoring.statistics import headline_replicates

TOLERANCE = 1e-6  # between the IoU a run states and the one its matrices give
#: Types of the fields that are not texts.
KINDS = {
    "seed": int,
    "label_budget": int,
    "eval_size": tuple,
    "device_seconds": int | float | None,
    "final": bool,
    "unseen": bool,
    "spec": bool,
    "recalled": tuple,
}


@dataclass(frozen=True)
class Run:
    """One finished run at full budget, of one stage's network.  IoU and means are in [0, 1]."""

    benchmark: str
    protocol: str
    method: str
    stage: str
    backbone: str
    selection: str
    label_budget: int
    seed: int
    eval_size: tuple[int, int]
    classes: tuple[str, ...]
    target: str  # "cityscapes/val"
    target_fingerprint: str
    settings: str  # digest of what determines the result but the seed: same settings, same row
    iou: tuple[float | None, ...]
    means: dict[str, float]  # headline first
    confusions: Path | str  # per-image matrices (Parquet), read lazily
    device_seconds: float | None
    date: str  # and time, in ISO 8601
    code: str
    folder: str
    source: str  # "run" or "search"
    compat: str = "ours"  # or "official": of whom the method's switches are
    unseen: bool = False  # scored on a data set of which it has seen no image in training
    spec: bool = False  # the method's source could not be read
    recalled: tuple[str, ...] = ()  # settings whose default, in force, was recalled and not read
    final: bool = True  # the last stage of its recipe
    images: int = 0  # how many were scored
    sample_ids: str = ""  # digest of their names; "": unknown
    #: (RESAMPLES,) headline mean over resampled images, in the order of the sorted sample ids
    replicates: np.ndarray | None = field(default=None, compare=False, repr=False)


def score_run(
    matrices: Folder, classes: Sequence[str], stated: float | None, common: dict[str, Any]
) -> Run:
    """A run scored from its matrices.  DataError where they give another headline than stated."""
    protocol = common["protocol"]
    _check_kinds(common, classes)
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol {protocol!r} is unknown; known: {', '.join(PROTOCOLS)}")
    check_classes(protocol, classes, "this record")
    ids, per_image = _read_matrices(matrices)
    if per_image.shape[1] != len(classes):
        raise DataError(f"{matrices.name} has {per_image.shape[1]} classes, not {len(classes)}")
    scored = score(per_image.sum(0), protocol)
    means = {name: mean["value"] for name, mean in scored["means"].items()}
    found = headline(means)
    if stated is not None and not abs(stated - found) < TOLERANCE:
        raise DataError(f"DONE.json states {stated:.4f}, {matrices.name} gives {found:.4f}")
    remote = "://" in matrices.address
    return Run(
        **common,
        classes=tuple(classes),
        iou=tuple(scored["iou"]),
        means=means,
        confusions=str(matrices) if remote else Path(matrices.path),
        images=len(ids),
        sample_ids=digest_of_ids(ids),
        replicates=headline_replicates(per_image, protocol).astype(np.float32),
    )


def _check_kinds(common: dict[str, Any], classes: Sequence[str]) -> None:
    """DataError where a value is of another kind than ours: boards compare and sort them."""
    for name, value in common.items():
        if not isinstance(value, KINDS.get(name, str)):
            raise DataError(f"{name} cannot be {value!r}")
    if not all(isinstance(pixels, int) for pixels in common["eval_size"]):
        raise DataError(f"eval_size cannot be {common['eval_size']}")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"classes cannot be {classes!r}")


def digest(value: Any) -> str:
    """sha256 of JSON in hex.  Its spaces stay (settings.digest has none): rows keep their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_ids(sample_ids: Sequence[str]) -> str:
    """Of which images were scored; the ids are sorted."""
    return digest(list(sample_ids))


def load_confusions(run: Run) -> tuple[list[str], np.ndarray]:
    """Sample ids, sorted, and per-image matrices (N, K, K), rows truth."""
    return _read_matrices(open_folder(run.confusions))


def _read_matrices(file: Folder) -> tuple[list[str], np.ndarray]:
    try:
        table = ds.dataset(file.path, filesystem=file.files, format="parquet").to_table()
        classes = int(table.schema.metadata[b"classes"])
        flat = table["confusion"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        ids = np.array(table["sample_id"].to_pylist())
    except (OSError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise DataError(f"{file.name} cannot be read ({reason_of(error)})") from None
    order = np.argsort(ids, kind="stable")
    return ids[order].tolist(), flat.reshape(-1, classes, classes)[order]
