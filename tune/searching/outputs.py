"""What a search leaves for people: best.yaml, pick-N.yaml, trials.parquet, trials.csv, report.html.

Everything is made of the experiment's files, by the driver or after it; nothing here opens data or
a network.
"""

import csv
import dataclasses
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spcl.configuration.chosen_by import SECTION
from spcl.configuration.config import load
from spcl.settings import dump_yaml, flatten
from spcl.store import atomic
from tune.searching.experiment import Experiment, nested
from tune.searching.page import report

SCHEMA = 1


def write_outputs(folder: Path) -> None:
    """Write all files into the experiment's folder, each whole or not at all."""
    experiment = Experiment(folder)
    rows = trial_rows(experiment)
    atomic.write_bytes(experiment.folder / "best.yaml", best_yaml(experiment).encode())
    for number in experiment.picks:
        path = pick_path(experiment, number)
        found = [f"Configuration {number}, one of the search's final picks."]
        atomic.write_bytes(path, _yaml(experiment, number, found, path).encode())
    atomic.write_bytes(experiment.folder / "trials.csv", as_csv(rows).encode())
    atomic.write_bytes(experiment.folder / "trials.parquet", as_parquet(rows))
    atomic.write_bytes(experiment.folder / "report.html", report(experiment).encode())


# best.yaml and pick-N.yaml


def pick_path(experiment: Experiment, number: int) -> Path:
    """Where the file of a final pick lies."""
    return experiment.folder / f"pick-{number}.yaml"


def best_yaml(experiment: Experiment) -> str:
    """The chosen configuration as a file for --config; the default one where none is."""
    chosen = experiment.chosen
    number = None if chosen is None else chosen["configuration"]
    if chosen is None:
        found = ["No configuration has a score; this is the default configuration."]
    else:
        rung = experiment.rung_names[chosen["rung"]]
        found = [
            f"Configuration {number}: score {experiment.score(chosen):.4f} after {rung}.",
            "Selection rule: best score at the highest rung that any configuration has reached.",
        ]
    agreed = experiment.agreement
    if agreed is not None:
        found.append(f"Agreement with the ensemble (EnsV) picks configuration {agreed}.")
    return _yaml(experiment, number, found, experiment.folder / "best.yaml")


def _yaml(experiment: Experiment, number: int | None, found: Sequence[str], path: Path) -> str:
    """A configuration as the file `path`; found: what its head says of how it was found."""
    request, config = experiment.request, experiment.config(number)
    compat = f"compat={config.compat}"  # whoever reads the file has these switches set already
    usual = flatten(load(config.benchmark, config.method, None, [compat]).as_dict())
    shown = {*request["space"], "source.holdout"}
    values = {
        key: value
        for key, value in flatten(config.as_dict()).items()
        if key in shown or (usual.get(key) != value and not key.startswith(SECTION))
    }
    written = {name: getattr(config, name) for name in ("benchmark", "method", "compat")}
    written |= nested(values)
    if config.chosen_by:  # goes with every run of this file, whatever its name, to the boards
        written[SECTION] = dataclasses.asdict(config.chosen_by)
    header = [
        f"Found by the search {experiment.name} on {config.benchmark}, method {config.method}.",
        f"Objective: {request['objective']}; labelled target images used: "
        f"{request['label_budget']}.",
        *found,
        "source.holdout: these source images took part in the selection and must stay out of the",
        "training that it selected; with them in it (holdout 0) the network is another one.",
        "  " + shlex.join(_command(experiment, path)),
    ]
    comment = "".join(f"# {_one_line(line)}\n" for line in header)
    return comment + dump_yaml(written)


def _command(experiment: Experiment, path: Path) -> list[str]:
    request = experiment.request
    places = ["--data", request["data"], "--storage", request["storage"]]
    return ["python", "ray_jobs/train.py", "--config", str(path), *places]


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


# trials.csv and trials.parquet


def trial_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """One flat row per job, all with the same columns in the same order."""
    rows = []
    for record in experiment.records:
        rows.append(
            {
                "configuration": record["configuration"],
                "rung": record["rung"],
                "rung_name": experiment.rung_names[record["rung"]],
                "status": record["status"],
                "reason": record["reason"],
                "score": experiment.score(record),
                **_prefixed("parameter", record["parameters"]),
                **_prefixed("setting", record["settings"]),
                **_prefixed("validator", flatten(record["validators"] or {})),
                "steps": record["steps"],
                "shared_steps": sum((record.get("shared_steps") or {}).values()),
                "device_seconds": record["device_seconds"],
                "attempts": record["attempts"],
                "artefact": record["artefact"],
                "host": record["host"],
                "finished": record["finished"],
            }
        )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{column: row.get(column) for column in columns} for row in rows]


def _prefixed(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": _scalar(value) for key, value in values.items()}


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Comma-separated values; numbers in full precision, nothing for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    columns = {name: _column([row[name] for row in rows]) for name in (rows[0] if rows else [])}
    buffer = pa.BufferOutputStream()
    table = pa.table(columns).replace_schema_metadata({"schema": str(SCHEMA)})
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue().to_pybytes()


def _column(values: list[Any]) -> pa.Array:
    """One type per column: numbers as float64 where any is a float, text where kinds mix."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values = [None if value is None else float(value) for value in values]
    elif len(kinds) > 1:
        values = [None if value is None else str(value) for value in values]
    return pa.array(values)
