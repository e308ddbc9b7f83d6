"""Searches for tests: what is asked, and jobs that only pretend."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conftest import MINI

from spcl.configuration.config import load
from spcl.store import atomic
from tune.searching.driver import Driver
from tune.searching.jobs import Job
from tune.searching.request import Search, with_holdout
from tune.searching.rungs import ladder
from tune.searching.space import build_space, load_space

#: Of a recipe of one stage.
WEIGHT = {"adversarial.weight": {"low": 1e-4, "high": 1e-2, "log": True}}
RATE = {"source_only.learning_rate": {"low": 0.01, "high": 0.2, "log": True}}


def search(
    data: Path,
    storage: Path,
    *settings: str,
    method: str = "spcl",
    lines: Mapping[str, Any] | None = None,
    **asked: Any,
) -> Search:
    """A small search of the mini benchmark by source_val.

    lines  of the space (default: the method's file)
    """
    config = with_holdout(load("streets", method, None, [*MINI, *settings]), data)
    space = build_space(lines, config) if lines else load_space(method, config)
    defaults = {
        "name": "s",
        "config": config,
        "space": space,
        "rungs": ladder(config, space.keys),
        "objective": "source_val",
        "trials": 9,
        "eta": 3,
        "seed": 0,
        "sampler": "tpe",
        "promotion": "asha",
        "data": data,
        "storage": storage,
    }
    made = Search(**(defaults | asked))
    made.folder.mkdir(parents=True, exist_ok=True)
    return made


def pretend(job: Job) -> None:
    """Write the record of a job: its score is a function of parameters and rung."""
    if job.is_reference:
        value = 0.1
    else:
        distance = math.log(job.parameters["spcl.temperature"] / 3) ** 2
        value = job.parameters["pseudo_label.cap"] - 0.01 * distance + 0.1 * job.rung
    validators = {"finite": True, "source_val": value}
    write(job, {"device_seconds": float(job.steps), "validators": validators})


def write(job: Job, found: dict[str, Any]) -> None:
    """Write the record of a job that is done."""
    record = {
        "schema": 1,
        "status": "done",
        "reason": None,
        "configuration": job.configuration,
        "rung": job.rung,
        "parameters": job.parameters,
        "settings": job.settings,
    } | found
    assert not job.record.exists(), "a job ran twice"
    atomic.write_json(job.record, record)


def work(driver: Driver, order: list[int], stop_after: int | None = None) -> None:
    """Run the driver's jobs to the end, or let go of it after some were finished.

    order  of those under way, which one ends next
    """
    finished = 0
    while not driver.is_over:
        while driver.next():
            pass
        if finished == stop_after:
            return
        under_way = sorted(driver.running)
        job = driver.running[under_way[order.pop() % len(under_way)]]
        pretend(job)
        driver.finished(job, failed=False)
        finished += 1
    driver.close()


def records(folder: Path) -> dict[str, dict]:
    """Every record by file name."""
    return {path.name: json.loads(path.read_text()) for path in (folder / "jobs").glob("*.json")}
