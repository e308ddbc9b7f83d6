"""Finished runs and searches as rows for boards: read incrementally, from any filesystem.

A folder is a storage folder, one run or one search, as a path or as a URI that pyarrow knows.  Only
what is finished at full budget and scored counts; everything else is told with its reason, and none
of it stops the reading.  Needs no torch and no ray.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spcl.boards.cache import load_cache, save_cache
from spcl.boards.folders import SCORES, Folder, Found, find, open_folder, reason_of, reports
from spcl.boards.runs import Run, digest, score_run
from spcl.configuration import chosen_by as choices
from spcl.configuration import old_words, table
from spcl.configuration.chosen_by import ChosenBy
from spcl.errors import DataError
from spcl.scoring.protocols import headline
from spcl.settings import flatten

GENERALISATION = "generalisation"  # the boards of networks on targets that they never saw
PICK = re.compile(r"(?P<search>.+)-c\d+(-s\d+)?")  # how a search names the runs of its picks


def read_runs(
    folders: Iterable[Path | str], cache: Path | None = None
) -> tuple[list[Run], list[str]]:
    """Every scored run below the folders, and one line for each folder not read, saying why.

    cache: a file that keeps what was read; with it only new and changed folders are opened, and
    those that could not be read before
    """
    found: dict[str, Found] = {}
    problems: list[str] = []
    for folder in folders:
        try:
            inside, reasons = find(open_folder(folder))
        except (OSError, ValueError) as error:  # an unknown scheme, a folder one may not list
            problems.append(f"{folder}: {reason_of(error)}")
            continue
        found |= {str(one.folder): one for one in inside}
        problems += [reason for reason in reasons if reason not in problems]
    known = load_cache(cache) if cache else {}
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
            save_cache(cache, kept)
    return [run for address in found for run in fresh[address]], problems


def _read(found: Found) -> tuple[list[Run], list[str]]:
    """The runs of one folder, and why some of it could not be read."""
    try:
        reader = _read_run if found.kind == "run" else _read_search
        return reader(found.folder)
    except Exception as error:  # foreign records may be wrong in any way; one must not stop others
        return [], [reason_of(error)]


def _read_run(folder: Folder) -> tuple[list[Run], list[str]]:
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
    runs: list[Run] = []
    problems: list[str] = []
    for row in done["table"]:
        evaluation = stages.get(f"evaluation of {row['stage']}", {})
        common = {
            "benchmark": manifest["benchmark"],
            "protocol": done["protocol"],
            "method": manifest["method"],
            "compat": manifest.get("compat", "ours"),
            **_of_memory(manifest),
            "stage": row["stage"],
            "backbone": backbone,
            "selection": chosen["selection"],
            "label_budget": chosen["label_budget"],
            "seed": manifest["seed"],
            "eval_size": size,
            "target": manifest["data"]["evaluation"]["name"],
            "target_fingerprint": manifest["data"]["evaluation"]["fingerprint"],
            "settings": evaluation.get("settings") or digest([older, row["stage"]]),
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
        runs.append(score_run(matrices, done["classes"], stated, common))
        for report in reports(folder):
            try:
                runs += _elsewhere(report, manifest, common)
            except Exception as error:  # see `_read`
                problems.append(f"reports/{report.name}: {reason_of(error)}")
    return runs, problems


def _elsewhere(report: Folder, manifest: dict[str, Any], common: dict[str, Any]) -> list[Run]:
    """The score of a stage's network on a data set of which training has seen no image, if it is.

    common  what a run of this stage says of itself
    """
    said = (report / SCORES).json()
    name, settings = said["data"]["name"], said["settings"]
    seen = {_dataset(one["name"]) for one in manifest["data"].values()}
    if said["stage"] != common["stage"] or not said["table"] or _dataset(name) in seen:
        return []
    height, width = settings["size"]
    here = {
        "benchmark": f"{GENERALISATION} from {manifest['benchmark']}",
        "protocol": said["protocol"],
        "eval_size": (height, width),
        "target": name,
        "target_fingerprint": said["data"]["fingerprint"],
        "settings": digest([common["settings"], settings]),
        "device_seconds": None,
        "unseen": True,
    }
    stated = headline(said["table"][0]["means"])["value"]
    return [score_run(report / "confusions.parquet", said["classes"], stated, common | here)]


def _dataset(split: str) -> str:
    """streets/real/val -> streets/real"""
    return split.rpartition("/")[0]


def _of_memory(manifest: dict[str, Any]) -> dict[str, Any]:
    """What of a run's method was recalled and not read; older manifests do not say."""
    return {
        "spec": manifest.get("spec", False),
        "recalled": tuple(manifest.get("recalled", ())),
    }


def _check_hash(matrices: Folder, record: dict[str, Any], name: str) -> None:
    """DataError unless a file of matrices is the one that a record names; old ones name none."""
    expected = record.get("matrices", {}).get(name)
    if expected and hashlib.sha256(matrices.read()).hexdigest() != expected:
        raise DataError(
            f"{matrices.name} was altered after it was written: its sha256 is another; restore it, "
            "or make it again"
        )


def _chosen_by(folder: Folder) -> ChosenBy | None:
    """The search whose pick this run trains, by the run's name: older manifests don't say it."""
    name = PICK.fullmatch(folder.name)
    if name is None:
        return None
    storage = Folder(folder.files, folder.path.rstrip("/").rpartition("/")[0], "")
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
    folder: Folder, manifest: dict[str, Any]
) -> tuple[str, tuple[int, int], dict[str, Any]]:
    """Backbone, evaluation size; for records without them, from the settings, which come third."""
    if "backbone" in manifest:
        height, width = manifest["evaluation_size"]
        return manifest["backbone"], (height, width), {}
    config = (folder / "config.yaml").yaml()
    height, width = config["evaluation"]["size"]
    older = {key: value for key, value in config.items() if key != "seed"}
    return config["model"]["name"], (height, width), older


def _read_search(folder: Folder) -> tuple[list[Run], list[str]]:
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
            **_of_memory(manifest),
            "stage": trained["title"],
            "backbone": config["model"]["name"],
            "selection": chosen["selection"],
            "label_budget": record["label_budget"] or chosen["label_budget"],
            "seed": config["seed"],
            "eval_size": (height, width),
            "target": audit["split"],
            "target_fingerprint": audit["fingerprint"],
            "settings": digest([same, record["settings"]]),
            "device_seconds": sum(spent),
            "date": record["finished"],
            "code": manifest["code"],
            "folder": str(folder / "configurations" / number),
            "source": "search",
        }
        _check_hash(matrices, audit, record["artefact"])
        runs.append(score_run(matrices, audit["classes"], None, common))
    return runs, problems


def settings_of(folder: str) -> dict[str, Any]:
    """Resolved settings of a run's folder but the seed, by dotted name; {} if none can be read."""
    try:
        stored = (open_folder(folder) / "config.yaml").yaml()
        values = flatten(old_words.modern(table.settings(), stored))
    except Exception:  # whatever stands there, a board can do without
        return {}
    return {
        name: value
        for name, value in values.items()
        if name != "seed" and not name.startswith(choices.SECTION)
    }
