"""What was read of runs and searches before, in one file: only what is new is opened again."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spcl.boards.runs import Run
from spcl.scoring.statistics import RESAMPLES, RESAMPLING_SEED
from spcl.store import atomic
from spcl.store.run_folder import SCHEMA

CACHE_SCHEMA = "5"
_PLAIN = [f.name for f in fields(Run) if f.name != "replicates"]


def save_cache(path: Path, known: dict[str, tuple[str, list[Run]]]) -> None:
    """known: by folder, its stamp and its runs, each with replicates."""
    rows = [(folder, stamp, run) for folder, (stamp, runs) in known.items() for run in runs]
    records = [
        json.dumps({name: getattr(run, name) for name in _PLAIN}, default=str) for *_, run in rows
    ]
    table = pa.table(
        {
            "folder": pa.array([folder for folder, _, _ in rows], pa.string()),
            "stamp": pa.array([stamp for _, stamp, _ in rows], pa.string()),
            "run": pa.array(records, pa.string()),
            "replicates": pa.array([_bytes(run) for *_, run in rows], pa.binary()),
        },
        metadata={"written_by": _version()},
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    atomic.write_bytes(path, buffer.getvalue().to_pybytes())


def _bytes(run: Run) -> bytes:
    assert run.replicates is not None  # whatever was read from a folder has them
    return run.replicates.tobytes()


def load_cache(path: Path) -> dict[str, tuple[str, list[Run]]]:
    """By folder: its stamp and its runs.  A cache of another version, or damaged, is empty."""
    try:
        table = pq.read_table(path)
        if table.schema.metadata[b"written_by"].decode() != _version():
            return {}
        known: dict[str, tuple[str, list[Run]]] = {}
        for row in table.to_pylist():
            values = json.loads(row["run"])
            for name in ("eval_size", "classes", "iou", "recalled"):
                values[name] = tuple(values[name])
            if "://" not in values["confusions"]:
                values["confusions"] = Path(values["confusions"])
            replicates = np.frombuffer(row["replicates"], np.float32)
            runs = known.setdefault(row["folder"], (row["stamp"], []))[1]
            runs.append(Run(**values, replicates=replicates))
    except (OSError, KeyError, TypeError, ValueError):
        return {}
    return known


def _version() -> str:
    return f"{CACHE_SCHEMA}/{SCHEMA}/{RESAMPLES}/{RESAMPLING_SEED}"
