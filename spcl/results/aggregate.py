"""Finished runs and searches as rows for boards: read incrementally, from any filesystem.

A folder is a storage folder, one run or one search, as a path or as a URI that pyarrow knows.  Only
what is finished at full budget and scored counts; everything else is told with its reason, and none
of it stops the reading.  Needs no torch and no ray.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml
from pyarrow import fs

from spcl import atomic, old_words, records, table
from spcl import chosen_by as choices
from spcl.chosen_by import ChosenBy
from spcl.errors import DataError
from spcl.protocols import PROTOCOLS, check_classes, headline, score
from spcl.results.statistics import RESAMPLES, RESAMPLING_SEED, headline_replicates
from spcl.results.store import SCHEMA
from spcl.settings import flatten, parse_yaml

CACHE_SCHEMA = "4"
CONTAINERS = ("searches",)  # folders of a storage that hold more of what is looked for
OTHER = ("artefacts", "sweeps")  # sub-folders to skip: they hold no run at full budget
RECORDS = ("DONE.json", "manifest.json", "FAILED.json", "config.yaml", "search.yaml", "audit.json")
BOARDS = "leaderboard.json"  # in a folder that boards were written to
PROBED = (*RECORDS, BOARDS)
PICK = re.compile(r"(?P<search>.+)-c\d+(-s\d+)?")  # how a search names the runs of its picks
TOLERANCE = 1e-6  # between the IoU a run states and the one its matrices give
#: Types of the fields that are not texts.
KINDS = {
    "seed": int,
    "label_budget": int,
    "eval_size": tuple,
    "device_seconds": int | float | None,
    "final": bool,
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
    final: bool = True  # the last stage of its recipe
    images: int = 0  # how many were scored
    sample_ids: str = ""  # digest of their names; "": unknown
    #: (RESAMPLES,) headline mean over resampled images, in the order of the sorted sample ids
    replicates: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class _Folder:
    """A folder on some filesystem."""

    files: fs.FileSystem
    path: str  # as the filesystem names it
    address: str  # as the user does: a path or a URI
    query: str = ""  # of a URI

    def __truediv__(self, name: str) -> "_Folder":
        path, address = f"{self.path.rstrip('/')}/{name}", f"{self.address.rstrip('/')}/{name}"
        return _Folder(self.files, path, address, self.query)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.address + self.query

    def read(self) -> bytes:
        with self.files.open_input_stream(self.path) as stream:
            return stream.read()

    def json(self) -> dict[str, Any]:
        return records.parse(self.read(), self.name, "restore it, or make it again")

    def yaml(self) -> dict[str, Any]:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster
        return parse_yaml(self.read(), self.name, loader)

    def record(self) -> dict[str, Any]:
        """Of a record in YAML."""
        return records.check(self.yaml(), self.name, "restore it")

    def children(self) -> list["_Folder"]:
        found = self.files.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return [self / info.base_name for info in sorted(found, key=lambda info: info.path)]


def _open(folder: Path | str) -> _Folder:
    text = str(folder)
    if "://" not in text:
        path = os.path.abspath(text)
        return _Folder(fs.LocalFileSystem(), path, path)
    files, path = fs.FileSystem.from_uri(text)
    address, mark, query = text.partition("?")
    return _Folder(files, path, address.rstrip("/"), mark + query)


# Which folders there are.


@dataclass(frozen=True)
class _Found:
    """A run or search to be read.  stamp: changes whenever its records do."""

    folder: _Folder
    kind: str  # "run" or "search"
    stamp: str


def _find(root: _Folder) -> tuple[list[_Found], list[str]]:
    """Runs and searches at or below a folder, and what else there was."""
    info = root.files.get_file_info(root.path)
    if info.type != fs.FileType.Directory:
        return [], [f"{root}: there is no such folder"]
    found, problems = _classify([root], quiet=True)
    if found:
        return found, problems
    children = [child for child in root.children() if not child.name.startswith(".")]
    for child in [c for c in children if c.name in CONTAINERS]:
        inner, reasons = _find(child)
        found, problems = found + inner, problems + reasons
    rest = [c for c in children if c.name not in (*CONTAINERS, *OTHER)]
    here, reasons = _classify(rest)
    return found + here, problems + reasons


def _classify(folders: Sequence[_Folder], quiet: bool = False) -> tuple[list[_Found], list[str]]:
    """What each folder is, by the files in it; all of them asked for at once."""
    if not folders:
        return [], []
    files = folders[0].files
    paths = [f"{folder.path.rstrip('/')}/{name}" for folder in folders for name in ("", *PROBED)]
    infos = iter(files.get_file_info([path.rstrip("/") for path in paths]))
    found, problems = [], []
    for folder in folders:
        itself = next(infos)
        probed = {name: next(infos) for name in PROBED}
        have = {name: info for name, info in probed.items() if info.is_file}
        if itself.type != fs.FileType.Directory:
            continue
        wrong = [name for name, i in probed.items() if i.type == fs.FileType.Directory]
        if wrong:
            problems.append(f"{folder}: {wrong[0]} must be a file, but a folder is there")
            continue
        if "search.yaml" in have:
            jobs = files.get_file_info(fs.FileSelector(f"{folder.path}/jobs", allow_not_found=True))
            infos_of = [have["search.yaml"], *jobs]
            infos_of += [have["audit.json"]] if "audit.json" in have else []
            found.append(_Found(folder, "search", _stamp(infos_of)))
        elif "DONE.json" in have:
            stamped = [have[name] for name in ("DONE.json", "manifest.json") if name in have]
            found.append(_Found(folder, "run", _stamp(stamped)))
        elif "FAILED.json" in have:
            problems.append(f"{folder}: failed: {_failure(folder)}")
        elif "config.yaml" in have or "manifest.json" in have:
            problems.append(f"{folder}: not finished")
        elif not quiet and BOARDS not in have:
            problems.append(f"{folder}: neither a run nor a search")
    return found, problems


def _stamp(infos: Iterable[fs.FileInfo]) -> str:
    lines = sorted(f"{info.base_name} {info.mtime_ns} {info.size}" for info in infos)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _failure(folder: _Folder) -> str:
    try:
        return str((folder / "FAILED.json").json()["error"]).splitlines()[0]
    except Exception as error:  # whatever stands there, it is no run to read
        return f"FAILED.json cannot be read ({_reason(error)})"


# Reading.


def read_runs(
    folders: Iterable[Path | str], cache: Path | None = None
) -> tuple[list[Run], list[str]]:
    """Every scored run below the folders, and one line for each folder not read, saying why.

    cache: a file that keeps what was read; with it only new and changed folders are opened, and
    those that could not be read before
    """
    found: dict[str, _Found] = {}
    problems: list[str] = []
    for folder in folders:
        try:
            inside, reasons = _find(_open(folder))
        except (OSError, ValueError) as error:  # an unknown scheme, a folder one may not list
            problems.append(f"{folder}: {_reason(error)}")
            continue
        found |= {str(one.folder): one for one in inside}
        problems += [reason for reason in reasons if reason not in problems]
    known = _load_cache(cache) if cache else {}
    fresh = {
        address: known[address][1]
        for address, one in found.items()
        if address in known and known[address][0] == one.stamp
    }
    missing = [one for address, one in found.items() if address not in fresh]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for one, (runs, reasons) in zip(missing, pool.map(_read, missing), strict=True):
            problems += [f"{one.folder}: {reason}" for reason in reasons]
            found[str(one.folder)] = one
            if not reasons:
                known[str(one.folder)] = (one.stamp, runs)
            fresh[str(one.folder)] = runs
    if cache and (missing or known.keys() - found.keys()):
        kept = {a: known[a] for a in found if a in known and known[a][0] == found[a].stamp}
        with contextlib.suppress(OSError):  # without it the next call takes longer, no more
            _save_cache(cache, kept)
    return [run for address in found for run in fresh[address]], problems


def _read(found: _Found) -> tuple[list[Run], list[str]]:
    """The runs of one folder, and why some of it could not be read."""
    try:
        reader = _read_run if found.kind == "run" else _read_search
        return reader(found.folder)
    except Exception as error:  # foreign records may be wrong in any way; one must not stop others
        return [], [_reason(error)]


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"a record lacks {error}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _read_run(folder: _Folder) -> tuple[list[Run], list[str]]:
    done, manifest = (folder / "DONE.json").json(), (folder / "manifest.json").json()
    if not done["table"]:
        return [], ["not evaluated: no labelled evaluation split"]
    stages = {stage["title"]: stage for stage in manifest["stages"]}
    last = [title for title, stage in stages.items() if stage["kind"] == "train"][-1]
    backbone, size, older = _about_network(folder, manifest)
    chosen = {"selection": manifest["selection"], "label_budget": manifest["label_budget"]}
    by_name = _chosen_by(folder)
    if by_name:
        chosen = (choices.of_manifest(manifest) | by_name).in_manifest()
    runs = []
    for row in done["table"]:
        evaluation = stages.get(f"evaluation of {row['stage']}", {})
        common = {
            "benchmark": manifest["benchmark"],
            "protocol": done["protocol"],
            "method": manifest["method"],
            "compat": manifest.get("compat", "ours"),
            "stage": row["stage"],
            "backbone": backbone,
            "selection": chosen["selection"],
            "label_budget": chosen["label_budget"],
            "seed": manifest["seed"],
            "eval_size": size,
            "target": manifest["data"]["evaluation"]["name"],
            "target_fingerprint": manifest["data"]["evaluation"]["fingerprint"],
            "settings": evaluation.get("settings") or _digest([older, row["stage"]]),
            "device_seconds": done.get("device_seconds", {}).get(row["stage"]),
            "date": datetime.fromtimestamp(manifest["started"], UTC).isoformat(timespec="seconds"),
            "code": manifest["code"],
            "folder": str(folder),
            "source": "run",
            "final": row["stage"] == last,
        }
        matrices = folder / "evaluations" / f"{row['stage']}.parquet"
        stated = headline(row["means"])["value"]
        _check_hash(matrices, done, row["stage"])
        runs.append(_score(matrices, done["classes"], stated, common))
    return runs, []


def _check_hash(matrices: _Folder, record: dict[str, Any], name: str) -> None:
    """DataError unless a file of matrices is the one that a record names; old ones name none."""
    expected = record.get("matrices", {}).get(name)
    if expected and hashlib.sha256(matrices.read()).hexdigest() != expected:
        raise DataError(
            f"{matrices.name} was altered after it was written: its sha256 is another; restore it, "
            "or make it again"
        )


def _chosen_by(folder: _Folder) -> ChosenBy | None:
    """The search whose pick this run trains, by the run's name: older manifests don't say it."""
    name = PICK.fullmatch(folder.name)
    if name is None:
        return None
    storage = _Folder(folder.files, folder.path.rstrip("/").rpartition("/")[0], "")
    request = storage / "searches" / name["search"] / "search.yaml"
    if not folder.files.get_file_info(request.path).is_file:
        return None
    return _of_search(request.record(), name["search"])


def _of_search(request: dict[str, Any], name: str) -> ChosenBy:
    """Who has chosen a search's configurations: itself, and whoever chose where it began."""
    own = {"search": name, "objective": request["objective"]}
    itself = {choices.SECTION: own | {"label_budget": request["label_budget"]}}
    return choices.of_values(itself) | choices.of_values(request.get("config", {}))


def _about_network(
    folder: _Folder, manifest: dict[str, Any]
) -> tuple[str, tuple[int, int], dict[str, Any]]:
    """Backbone, evaluation size; for records without them, from the settings, which come third."""
    if "backbone" in manifest:
        height, width = manifest["evaluation_size"]
        return manifest["backbone"], (height, width), {}
    config = (folder / "config.yaml").yaml()
    height, width = config["evaluation"]["size"]
    older = {key: value for key, value in config.items() if key != "seed"}
    return config["model"]["name"], (height, width), older


def _read_search(folder: _Folder) -> tuple[list[Run], list[str]]:
    """Configurations that finished the last rung and whose networks an audit has scored."""
    request = (folder / "search.yaml").record()
    top = len(request["rungs"]) - 1
    jobs = [job.json() for job in (folder / "jobs").children() if job.name[0].isdigit()]
    finished = [r for r in jobs if r["rung"] == top and r["status"] == "done"]
    if not finished:
        return [], ["no configuration has finished the last rung"]
    paths = [(folder / "audit.json").path]
    if not folder.files.get_file_info(paths)[0].is_file:
        return [], [f"not audited; python tune/search.py --audit {folder.name}"]
    audit = (folder / "audit.json").json()
    if "confusions" not in audit:
        return [], [f"audited by an older version; python tune/search.py --audit {folder.name}"]
    chosen = _of_search(request, folder.name).in_manifest()
    runs, problems = [], []
    for record in finished:
        number = f"{record['configuration']:04d}"
        matrices = folder / "audit" / audit["confusions"] / f"{record['artefact']}.parquet"
        if not matrices.files.get_file_info([matrices.path])[0].is_file:
            problems.append(f"configuration {number} is not audited")
            continue
        spent = [r["device_seconds"] for r in jobs if r["configuration"] == record["configuration"]]
        config = request["config"]
        height, width = config["evaluation"]["size"]
        manifest = (folder / "configurations" / number / "manifest.json").json()
        trained = [stage for stage in manifest["stages"] if stage["kind"] == "train"][-1]
        same = {key: value for key, value in config.items() if key != "seed"}
        common = {
            "benchmark": request["benchmark"],
            "protocol": audit["protocol"],
            "method": request["method"],
            "compat": config.get("compat", "ours"),
            "stage": trained["title"],
            "backbone": config["model"]["name"],
            "selection": chosen["selection"],
            "label_budget": record["label_budget"] or chosen["label_budget"],
            "seed": config["seed"],
            "eval_size": (height, width),
            "target": audit["split"],
            "target_fingerprint": audit["fingerprint"],
            "settings": _digest([same, record["settings"]]),
            "device_seconds": sum(spent),
            "date": record["finished"],
            "code": manifest["code"],
            "folder": str(folder / "configurations" / number),
            "source": "search",
        }
        _check_hash(matrices, audit, record["artefact"])
        runs.append(_score(matrices, audit["classes"], None, common))
    return runs, problems


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def settings_of(folder: str) -> dict[str, Any]:
    """Resolved settings of a run's folder but the seed, by dotted name; {} if none can be read."""
    try:
        stored = (_open(folder) / "config.yaml").yaml()
        values = flatten(old_words.modern(table.settings(), stored))
    except Exception:  # whatever stands there, a board can do without
        return {}
    return {
        name: value
        for name, value in values.items()
        if name != "seed" and not name.startswith(choices.SECTION)
    }


# Matrices.


def _score(
    matrices: _Folder, classes: Sequence[str], stated: float | None, common: dict[str, Any]
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


def digest_of_ids(sample_ids: Sequence[str]) -> str:
    return _digest(list(sample_ids))


def load_confusions(run: Run) -> tuple[list[str], np.ndarray]:
    """Sample ids, sorted, and per-image matrices (N, K, K), rows truth."""
    return _read_matrices(_open(run.confusions))


def _read_matrices(file: _Folder) -> tuple[list[str], np.ndarray]:
    try:
        table = ds.dataset(file.path, filesystem=file.files, format="parquet").to_table()
        classes = int(table.schema.metadata[b"classes"])
        flat = table["confusion"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        ids = np.array(table["sample_id"].to_pylist())
    except (OSError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise DataError(f"{file.name} cannot be read ({_reason(error)})") from None
    order = np.argsort(ids, kind="stable")
    return ids[order].tolist(), flat.reshape(-1, classes, classes)[order]


# What was read before.

_PLAIN = [f.name for f in fields(Run) if f.name != "replicates"]


def _save_cache(path: Path, known: dict[str, tuple[str, list[Run]]]) -> None:
    rows = [(folder, stamp, run) for folder, (stamp, runs) in known.items() for run in runs]
    records = [
        json.dumps({name: getattr(run, name) for name in _PLAIN}, default=str) for *_, run in rows
    ]
    table = pa.table(
        {
            "folder": pa.array([folder for folder, _, _ in rows], pa.string()),
            "stamp": pa.array([stamp for _, stamp, _ in rows], pa.string()),
            "run": pa.array(records, pa.string()),
            "replicates": pa.array([run.replicates.tobytes() for *_, run in rows], pa.binary()),
        },
        metadata={"written_by": _cache_version()},
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    atomic.write_bytes(path, buffer.getvalue().to_pybytes())


def _load_cache(path: Path) -> dict[str, tuple[str, list[Run]]]:
    """By folder: its stamp and its runs.  A cache of another version, or damaged, is empty."""
    try:
        table = pq.read_table(path)
        if table.schema.metadata[b"written_by"].decode() != _cache_version():
            return {}
        known: dict[str, tuple[str, list[Run]]] = {}
        for row in table.to_pylist():
            values = json.loads(row["run"])
            for name in ("eval_size", "classes", "iou"):
                values[name] = tuple(values[name])
            if "://" not in values["confusions"]:
                values["confusions"] = Path(values["confusions"])
            replicates = np.frombuffer(row["replicates"], np.float32)
            runs = known.setdefault(row["folder"], (row["stamp"], []))[1]
            runs.append(Run(**values, replicates=replicates))
    except (OSError, KeyError, TypeError, ValueError):
        return {}
    return known


def _cache_version() -> str:
    return f"{CACHE_SCHEMA}/{SCHEMA}/{RESAMPLES}/{RESAMPLING_SEED}"
