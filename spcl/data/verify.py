"""Is a converted split as it was written: every file's hash, and what the manifest says."""

import contextlib
from pathlib import Path
from typing import Any

from spcl.data import shards
from spcl.data.layouts import SHOWN_NAMES
from spcl.data.manifest import MANIFEST, contradictions, ingest_command, read_manifest
from spcl.errors import DataError
from spcl.store import atomic


def verify(folder: Path) -> dict[str, Any]:
    """Hash every file of a converted split again; DataError naming each that differs.

    What the manifest says of the samples is counted again from the index, and what it says of the
    data set is compared with what every shard says, so that one without a checksum is checked, too.

    Returns the manifest.
    """
    folder = Path(folder).absolute()
    manifest = read_manifest(folder)
    damaged = []
    for entry in (*manifest["shards"], manifest["index"]):
        path = folder / entry["name"]
        if not path.is_file():
            damaged.append(f"{entry['name']} is missing")
        elif path.stat().st_size != entry["bytes"]:
            damaged.append(f"{entry['name']} has {path.stat().st_size} of {entry['bytes']} bytes")
        elif atomic.sha256(path) != entry["sha256"]:
            damaged.append(f"{entry['name']} has another sha256 than when it was written")
            with contextlib.suppress(DataError, ValueError):  # where the rest is whole
                samples = shards.ShardSet(folder).altered(entry["name"])
                shown = ", ".join(samples[:SHOWN_NAMES]) or "nothing but what is between samples"
                damaged[-1] += f" (altered: {shown})"
    if not damaged:
        wrong = contradictions(folder, manifest)
        damaged = [f"{MANIFEST} says another {key} than the shards" for key in wrong]
    if damaged:
        shown = "; ".join(damaged[:SHOWN_NAMES])
        raise DataError(
            f"{len(damaged)} files of {folder} are damaged: {shown}; write the split again with: "
            f"{ingest_command(folder, manifest)}"
        )
    return manifest
