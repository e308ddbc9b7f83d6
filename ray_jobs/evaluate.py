"""Evaluate a finished run on any converted split, in parallel on Ray; write what it predicts.

python ray_jobs/evaluate.py demo
python ray_jobs/evaluate.py demo --stage spcl --predictions --analysis
python ray_jobs/evaluate.py my-run --dataset cityscapes --split test --export-server
python ray_jobs/evaluate.py my-run --dataset acdc --size 540x960 --flip --scales 0.75,1,1.25
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs import cluster
from ray_jobs.progress import Progress
from spcl import cli
from spcl.errors import UserError

if TYPE_CHECKING:
    from spcl.configuration.config import Config
    from spcl.configuration.sections import Evaluation


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from spcl.scoring.protocols import PROTOCOLS

    parser = cli.Parser(
        prog="ray_jobs/evaluate.py",
        description=__doc__,
    )
    add = parser.add_argument
    add("run", help="a run's name in the storage, or its folder")
    cli.add_places(parser)
    add("--dataset", help="what to evaluate on (default: the run's own)")
    add("--split", help="(default: the run's own)")
    add("--stage", help="whose network (default: the last stage's)")
    add("--protocol", help=f"{', '.join(PROTOCOLS)} (default: the run's own)")
    add("--size", metavar="HxW", help="network input (default: the run's own)")
    add("--flip", action="store_true", help="average with the mirrored image")
    add("--scales", metavar="S,S,...", help="average over input sizes, e.g. 0.75,1,1.25")
    add("--window", metavar="HxW", help="read the input window by window")
    add("--stride", metavar="HxW", help="of the window (default: half of it)")
    add("--predictions", action="store_true", help="write colour and trainId PNGs")
    add("--export-server", action="store_true", help="write what the Cityscapes server takes")
    add("--analysis", action="store_true", help="class centre distances, PCA, t-SNE")
    add("--out", type=Path, help="the report (default: <run>/reports/<what was asked>)")
    add("--workers", type=int, help="Ray workers (default: all GPUs, else CPUs); 0: without Ray")
    add("--address", help="Ray cluster (default: $RAY_ADDRESS, else one on this machine)")
    return parser.parse_args(argv)


def evaluation_settings(arguments: argparse.Namespace, own: Evaluation) -> Evaluation:
    """The run's own evaluation with what the command line says otherwise.  ConfigError."""
    from spcl.configuration.sections import Evaluation
    from spcl.settings import build

    given: dict[str, Any] = {
        name: value
        for name in ("dataset", "split", "protocol")
        if (value := getattr(arguments, name)) is not None
    }
    for name in ("size", "window", "stride"):
        if (text := getattr(arguments, name)) is not None:
            given[name] = _size(name, text)
    if arguments.flip:
        given["flip"] = True
    if arguments.scales is not None:
        given["scales"] = arguments.scales.split(",")
    settings = build(Evaluation, dataclasses.asdict(own) | given, "evaluation.")
    settings.check()
    if not settings.wanted:
        raise UserError("the run has no evaluation split of its own; give --dataset and --split")
    return settings


def _size(name: str, text: str) -> list[int]:
    """ "512x1024" -> [512, 1024]"""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise UserError(f"--{name} must be height x width like 512x1024, got {text!r}")
    return [int(found[1]), int(found[2])]


def report_name(stage: str, settings: Evaluation, own: Evaluation) -> str:
    """Says what was asked for: self_training-cityscapes-val-flip."""
    parts = [stage, settings.dataset.replace("/", "-"), settings.split]
    if settings.protocol != own.protocol:
        parts.append(settings.protocol)
    if settings.size != own.size:
        parts.append("size-{}x{}".format(*settings.size))
    if settings.flip:
        parts.append("flip")
    if settings.scales != (1.0,):
        parts.append("scales-" + "-".join(f"{scale:g}" for scale in settings.scales))
    if any(settings.window):
        parts.append("window-{}x{}".format(*settings.window))
    if any(settings.stride):
        parts.append("stride-{}x{}".format(*settings.stride))
    return "-".join(parts)


def find_run(arguments: argparse.Namespace) -> Path:
    """The folder of the run, absolute."""
    from spcl import runs

    path = Path(arguments.run)
    if (path / "config.yaml").exists():
        return path.resolve()
    storage = cli.storage_root(arguments.storage, writes=arguments.out is None)
    return runs.find(storage, arguments.run).folder


def check(arguments: argparse.Namespace, folder: Path) -> None:
    """ConfigError where a name is unknown; told without torch."""
    from spcl.scoring.protocols import PROTOCOLS
    from spcl.settings import choose, read_yaml

    if arguments.protocol is not None:
        choose(arguments.protocol, PROTOCOLS, "evaluation.protocol")
    if arguments.stage is not None:
        choose(arguments.stage, read_yaml(folder / "config.yaml").get("stages", ()), "stage")


def run(argv: Sequence[str] | None) -> int:
    arguments = parse(argv)
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers must be 0 or more, got {arguments.workers}")
    cluster.check_job_paths(arguments, f"ray_jobs/evaluate.py {arguments.run}")
    folder = find_run(arguments)
    check(arguments, folder)
    from spcl.boards.tables import ccd_table, run_table
    from spcl.configuration.chosen_by import stored
    from spcl.engine import rescore
    from spcl.engine.inputs import data_root
    from spcl.engine.rescore import FinishedRun, Job, make_report

    finished = FinishedRun(folder)
    config, stage = finished.config, arguments.stage or finished.config.stages[-1]
    settings = evaluation_settings(arguments, config.evaluation)
    name = report_name(stage, settings, config.evaluation)
    job = Job(
        run=folder,
        stage=stage,
        split=data_root(arguments.data) / settings.dataset / settings.split,
        settings=settings,
        device="cpu",
        out=(arguments.out or folder / "reports" / name).resolve(),
        predictions=arguments.predictions,
        server=arguments.export_server,
        analysis=arguments.analysis,
    )
    rescore.check(job)
    device, map_shares = _workers(arguments, config)
    job = dataclasses.replace(job, device=device)
    try:
        report = make_report(
            job, map_shares, Progress(f"{finished.run.name} on {settings.dataset}")
        )
    except KeyboardInterrupt:
        print("interrupted; nothing is left of this report", file=sys.stderr)
        return 130
    if report["table"]:
        print(run_table(report, stored(finished.run)))
    if "ccd" in report:
        print(ccd_table(report["ccd"]))
    print(f"report: {job.out}")
    return 0


def _workers(
    arguments: argparse.Namespace, config: Config
) -> tuple[str, Callable[[Callable, list], Iterable]]:
    """The device of a worker, and what maps shares over workers."""
    allowed = "cpu" if config.train.device == "cpu" else "auto"
    if arguments.workers == 0:
        import torch

        gpu = allowed == "auto" and torch.cuda.is_available()
        return "cuda" if gpu else "cpu", map
    cluster.connect(arguments.address)
    each = cluster.worker_resources(allowed)
    limit = arguments.workers or cluster.capacity(each)

    def map_shares(function: Callable, shares: list) -> Iterable:
        return cluster.ray_map(function, shares, limit, each)

    return "cuda" if "GPU" in each else "cpu", map_shares


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(run, argv, OSError)  # a full disk, a folder without permission


if __name__ == "__main__":
    cli.treat_sigterm_as_ctrl_c()  # so that a stopped job cleans up, too
    sys.exit(main())
