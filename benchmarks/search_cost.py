"""What a search through rungs saves, and what it costs in mIoU, on `streets`.

    python benchmarks/search_cost.py [--seeds 0..2] [--processes 2] [--data DIR] [--storage DIR]

One list of configurations, the default one and then a Sobol sequence over the space of
configs/search/spcl.yaml, is tried in two ways, per training seed:

    (a) every configuration is run whole;
    (b) the search's own driver takes the same list through the rungs, one job at a time.

Both train the stages that no parameter touches once, and both pick by the label-free score.  Only
(a) is computed; (b) is its driver's decisions over (a)'s records.  This is exact: a whole run
passes through every rung, a job that continues a configuration gives bit for bit the network that
never stopped (tests/spcl/test_continuation.py), validators are functions of the network, and the
list does not depend on results.  So each record of (a) is the record that the same job of (b) would
have written, and the cost of (b) is the sum over exactly the jobs that its driver asks for.
Device-seconds of (a) include the validation at its lower rungs, which a whole run could leave out.

The oracle is `python -m tune.searching.audit`, after all jobs, in a process of its own.  A killed
benchmark continues where it stopped.  Writes benchmarks/results/search_cost.json.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from spcl import cli
from spcl.boards.tables import with_spread
from spcl.configuration.config import Config, load
from spcl.engine.inputs import data_root, prepare_streets
from spcl.engine.provenance import code_version, commit
from spcl.errors import UserError
from spcl.settings import digest
from spcl.store import atomic
from tune.searching import jobs
from tune.searching.driver import Driver, forget_failed_reference
from tune.searching.experiment import REFERENCE, Experiment
from tune.searching.request import Search, with_holdout
from tune.searching.rungs import ladder
from tune.searching.space import load_space
from tune.searching.study import propose

SCHEMA = 2  # 1 also pooled networks of different rungs, under the name "all"
RESULT = Path(__file__).parent / "results" / "search_cost.json"
FIXED = ["train.threads=1", "train.loader_workers=0"]  # the bits depend on the first alone
LIST_SEED = 0  # of the Sobol sequence
MOST_STEPS = 0.25  # (b)'s share of (a)'s steps
MOST_REGRET = 0.01  # mIoU; (b)'s mean regret less that of (a)'s pick

Job = tuple[int, int]  # configuration, rung


def scaled(config: Config, scale: float) -> Config:
    """The recipe with a share of every stage's steps, its schedules' shapes kept."""
    sections = {
        name: dataclasses.replace(
            config.of(name),
            steps=math.ceil(config.of(name).steps * scale),
            horizon=math.ceil(config.of(name).horizon * scale),
        )
        for name in config.stages
    }
    return config.with_sections(sections)


def make_search(arguments: argparse.Namespace, seed: int) -> Search:
    """(a)'s experiment folder of a seed, as that of a search which promotes everybody."""
    settings = [*FIXED, *arguments.settings, f"seed={seed}"]
    config = scaled(load("streets", "spcl", None, settings), arguments.scale)
    data, storage = data_root(arguments.data), cli.storage_root(arguments.storage)
    prepare_streets(config, data, say)
    config = with_holdout(config, data)
    space = load_space("spcl", config)
    same = digest([config.as_dict(), arguments.configurations])[:8]
    return Search(
        name=f"search-cost-{same}-s{seed}",
        config=config,
        space=space,
        rungs=ladder(config, space.keys),
        objective="label_free",
        trials=arguments.configurations,
        eta=arguments.eta,
        seed=LIST_SEED,
        sampler="qmc",
        promotion="asha",
        data=data,
        storage=storage,
        settings=tuple(settings),
    )


# (a)


def whole_run(search: Search, number: int) -> list[jobs.Job]:
    """One configuration's jobs, through all rungs."""
    parameters = propose(search.sampler, search.seed, number, search.space, search.config, ())
    return [search.job(number, rung, parameters, {}) for rung in range(len(search.rungs))]


def run_in_turn(chain: Sequence[jobs.Job]) -> None:
    """Jobs that continue one another; what is recorded already is left alone."""
    for job in chain:
        record = jobs.run(job)
        name = job.record.relative_to(Path(job.storage))
        say(f"{name}: {record['status']}{': ' if record['reason'] else ''}{record['reason'] or ''}")
        if record["status"] != "done":
            break


def run_all(searches: Sequence[Search], processes: int) -> None:
    """(a) of every seed, in this process or in several.  First what all configurations share."""
    for search in searches:
        search.open()
        forget_failed_reference(search.folder)
    shared = [[search.reference_job({})] for search in searches]
    numbers = range(searches[0].trials)
    runs = [whole_run(search, number) for number in numbers for search in searches]
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        run = map
        if processes > 1:
            run = stack.enter_context(ProcessPoolExecutor(processes, mp_context=spawn)).map
        list(run(run_in_turn, shared))
        for search in searches:
            if Experiment(search.folder).reference is None:
                raise UserError(
                    f"the shared stages failed, see {search.folder}/jobs/reference.json"
                )
        list(run(run_in_turn, runs))


# (b)


def replay(whole: Search) -> tuple[list[Job], dict[str, Any] | None]:
    """The jobs that a search through rungs would run, in order, and the record that it picks."""
    with tempfile.TemporaryDirectory() as folder:
        search = dataclasses.replace(whole, storage=Path(folder))
        search.open()
        driver, ran = Driver(search), []
        while (job := driver.next()) is not None:
            stored = jobs.record_path(whole.folder, job.configuration, job.rung)
            if json.loads(stored.read_text())["settings"] != job.settings:
                raise UserError(f"{stored} is of other settings than the list's; remove it")
            job.record.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(stored, job.record)
            driver.finished(job, failed=False)
            if not job.is_reference:
                ran.append((job.configuration, job.rung))
        return ran, Experiment(search.folder).chosen


# What both cost, and what they find.


def audit(search: Search) -> tuple[dict[Job, float], dict[str, Any]]:
    """Oracle mIoU of every job, and the audit's summary."""
    command = [sys.executable, "-m", "tune.searching.audit", str(search.folder)]
    if subprocess.run(command, cwd=cli.REPOSITORY).returncode:
        raise UserError(f"the audit of {search.folder} failed; the same command tries again")
    rows = pq.read_table(search.folder / "audit.parquet").to_pylist()
    summary = json.loads((search.folder / "audit.json").read_text())
    return {(row["configuration"], row["rung"]): row["oracle"] for row in rows}, summary


def measure(search: Search) -> dict[str, Any]:
    """Cost and regret of both ways for one seed."""
    experiment = Experiment(search.folder)
    records = {(r["configuration"], r["rung"]): r for r in experiment.records}
    oracle, summary = audit(search)
    top = len(search.rungs) - 1
    whole = {number: value for (number, rung), value in oracle.items() if rung == top}
    if not whole:
        raise UserError(f"no configuration of {search.folder} has reached the last rung")
    ran, picked = replay(search)

    def cost(done: Sequence[Job]) -> dict[str, Any]:
        shared = sum(search.rungs[0].steps[name] for name in search.shared)
        return {
            "jobs": [sum(rung == r for _, r in done) for rung in range(top + 1)],
            "steps": shared + sum(records[job]["steps"] for job in done),
            "device_seconds": experiment.reference["device_seconds"]
            + sum(records[job]["device_seconds"] for job in done),
        }

    def found(record: dict[str, Any] | None) -> dict[str, Any]:
        if record is None:  # every configuration violates a constraint: the defaults are kept
            record = {"configuration": experiment.default, "rung": top}
        value = oracle[record["configuration"], record["rung"]]
        return {
            "configuration": record["configuration"],
            "rung": record["rung"],
            "oracle": value,
            "regret": max(whole.values()) - value,
        }

    return {
        "seed": search.config.seed,
        "warm_up_oracle": oracle[REFERENCE, REFERENCE],
        "default_oracle": oracle.get((experiment.default, top)),
        "best": {"configuration": max(whole, key=whole.get), "oracle": max(whole.values())},
        "whole": cost(list(records)) | {"pick": found(experiment.chosen)},
        "rungs": cost(ran) | {"pick": found(picked), "order": ran},
        "validators": summary["validators"],
    }


def conclude(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and whether what is required of a search holds."""

    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    share = sum(s["rungs"]["steps"] for s in seeds) / sum(s["whole"]["steps"] for s in seeds)
    whole, rungs = ([s[way]["pick"]["regret"] for s in seeds] for way in ("whole", "rungs"))
    return {
        "steps_share": share,
        "device_seconds_share": sum(s["rungs"]["device_seconds"] for s in seeds)
        / sum(s["whole"]["device_seconds"] for s in seeds),
        "mean_regret": {"whole": mean(whole), "rungs": mean(rungs)},
        "holds": {
            "steps": share <= MOST_STEPS,
            "regret": mean(rungs) <= mean(whole) + MOST_REGRET,
        },
    }


def table(seeds: Sequence[dict[str, Any]], summary: dict[str, Any]) -> str:
    lines = [
        "| seed | way | steps | device-s | jobs per rung | pick | mIoU | regret |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in seeds:
        for way, title in (("whole", "(a) whole"), ("rungs", "(b) rungs")):
            c, pick = one[way], one[way]["pick"]
            counts = " ".join(map(str, c["jobs"]))
            lines.append(
                f"| {one['seed']} | {title} | {c['steps']} | {c['device_seconds']:.0f} | {counts} "
                f"| {pick['configuration']} | {100 * pick['oracle']:.1f} "
                f"| {100 * pick['regret']:.1f} |"
            )
        best = one["best"]
        name = f"{one['seed']} | best of (a), by the oracle"
        lines.append(
            f"| {name} | | | | {best['configuration']} | {100 * best['oracle']:.1f} | 0.0 |"
        )
    verdict = {True: "holds", False: "DOES NOT HOLD"}
    whole, rungs = summary["mean_regret"]["whole"], summary["mean_regret"]["rungs"]
    return "\n".join(
        [
            *lines,
            "",
            f"steps of (b): {100 * summary['steps_share']:.1f} % of (a), at most "
            f"{100 * MOST_STEPS:.0f} %: {verdict[summary['holds']['steps']]} "
            f"({100 * summary['device_seconds_share']:.1f} % of the device-seconds)",
            f"mean regret: (b) {100 * rungs:.2f}, (a) {100 * whole:.2f} mIoU; (b) at most "
            f"(a) + {100 * MOST_REGRET:.0f}: {verdict[summary['holds']['regret']]}",
            f"(b) less (a), paired over seeds: {_paired(seeds)}",
        ]
    )


def _paired(seeds: Sequence[dict[str, Any]]) -> str:
    differences = [
        100 * (one["rungs"]["pick"]["regret"] - one["whole"]["pick"]["regret"]) for one in seeds
    ]
    return with_spread(differences, "+", places=2)


def command(argv: Sequence[str]) -> str:
    """The command line without where things lie on this machine."""
    places = ("--data", "--storage", "--out")
    kept = [
        text
        for before, text in zip(["", *argv], argv, strict=False)
        if before not in places and not text.startswith(places)
    ]
    return shlex.join(["python", "benchmarks/search_cost.py", *kept])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=16)
    parser.add_argument("--seeds", default="0..2", help="of training, e.g. 0..2")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the benchmark's steps")
    parser.add_argument("--eta", type=int, default=4, help="one of ETA climbs to the next rung")
    parser.add_argument("--processes", type=int, default=1, help="configurations at a time")
    parser.add_argument("--data")
    parser.add_argument("--storage")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    searches = [make_search(arguments, seed) for seed in cli.parse_seeds(arguments.seeds)]
    run_all(searches, arguments.processes)
    seeds = [measure(search) for search in searches]
    summary = conclude(seeds)
    result = {
        "schema": SCHEMA,
        "command": command(sys.argv[1:] if argv is None else argv),
        "commit": commit().hash,
        "code": code_version(),
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "processes": arguments.processes,
        },
        "settings": {
            "configurations": arguments.configurations,
            "eta": arguments.eta,
            "scale": arguments.scale,
            "overrides": [*FIXED, *arguments.settings],
            "space": searches[0].space.as_dict(),
            "rungs": [rung.name for rung in searches[0].rungs],
            "protocol": searches[0].config.evaluation.protocol,
        },
        "seeds": seeds,
        "summary": summary,
    }
    atomic.write_json(arguments.out, result)
    print(table(seeds, summary))
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
