"""Labels that cost much to make, each made once before a stage: a read then costs one decode.

    <folder>/00000-of-00002/kept_labels.arrow sample_id, label (8-bit grey PNG), one rank's share
    <folder>/00000-of-00002/manifest.json     its sha256

They follow from what is stored already and from the stage's settings, so they are no artefact:
they lie with the stage's checkpoints, and go with them.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from torch import Tensor

from spcl import distributed
from spcl.data.ahead import ahead
from spcl.data.batch import Labels
from spcl.data.loader import rank_indices
from spcl.data.predictions import png, rows_by_id
from spcl.data.transforms import decode_label
from spcl.store import atomic, heartbeat

FILE, MANIFEST = "kept_labels.arrow", "manifest.json"
SCHEMA = 1
COLUMNS = pa.schema([("sample_id", pa.string()), ("label", pa.large_binary())])


class KeptLabels:
    """Sample number -> (H, W) uint8 trainIds; opens its files lazily in each process."""

    def __init__(self, sample_ids: Sequence[str], files: Sequence[Path]):
        self.sample_ids, self.files = sample_ids, files
        self._rows: dict[str, tuple[pa.Table, int]] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_rows": None}

    def __call__(self, index: int) -> Tensor:
        if self._rows is None:
            self._rows = rows_by_id(self.files)
        table, row = self._rows[self.sample_ids[index]]
        return decode_label(table["label"][row].as_py())


def keep_labels(
    labels: Labels, sample_ids: Sequence[str], folder: Path, *, threads: int = 0
) -> KeptLabels:
    """The same labels, each made once, by one of the ranks, which all call this.

    A share is there as a whole or not at all: what a killed process has left is made again, and
    what is there already is used.
    """
    rank, world = distributed.rank(), distributed.world_size()
    shares = [folder / f"{number:05d}-of-{world:05d}" for number in range(world)]
    if not _is_whole(shares[rank]):
        _write(shares[rank], labels, sample_ids, threads)
    distributed.barrier()
    return KeptLabels(sample_ids, [share / FILE for share in shares])


def _write(share: Path, labels: Labels, sample_ids: Sequence[str], threads: int) -> None:
    shutil.rmtree(share, ignore_errors=True)
    mine = rank_indices(len(sample_ids), distributed.rank(), distributed.world_size()).tolist()
    made = ahead(lambda index: png(labels(index).numpy()), mine, threads)
    with atomic.folder(share) as temporary:
        path = temporary / FILE
        with atomic.writing(path), pa.ipc.new_file(path, COLUMNS) as writer:
            for index, label in zip(mine, heartbeat.counted("the labels", made), strict=True):
                columns = [[sample_ids[index]], [label]]
                writer.write_batch(pa.record_batch(columns, COLUMNS))
        manifest = {"schema": SCHEMA, "sha256": atomic.sha256(path)}
        atomic.write_json(temporary / MANIFEST, manifest)


def _is_whole(share: Path) -> bool:
    try:
        manifest = json.loads((share / MANIFEST).read_text())
        return manifest == {"schema": SCHEMA, "sha256": atomic.sha256(share / FILE)}
    except (OSError, ValueError):
        return False
