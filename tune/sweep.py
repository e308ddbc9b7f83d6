"""A paper's table with one command: a grid of settings times seeds, each stage made once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs import cluster
from spcl import cli
from spcl.errors import UserError
from spcl.store.lease import Lease

if TYPE_CHECKING:
    from tune.sweeping.grid import Sweep

EXAMPLE = """examples:
  python tune/sweep.py configs/sweeps/components.yaml --dry-run
  python tune/sweep.py configs/sweeps/components.yaml --benchmark gta5 --seeds 0..2
  python tune/sweep.py configs/sweeps/switches.yaml --scale tiny --workers 0
  python tune/sweep.py components --config runs/searches/NAME/best.yaml
The same command continues a sweep that was stopped; more --seeds run only what is new.
"""
DEFAULT_SEEDS = "0..2"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from tune.sweeping.file import SCALES, TINY_FRACTION

    parser = cli.Parser(
        prog="python tune/sweep.py",
        description=__doc__,
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("file", help="a sweep file, or a name in configs/sweeps")
    add("--benchmark", help="a file of configs/benchmarks (default: the sweep's, else streets)")
    add("--config", type=Path, help="a YAML file that all rows begin from, e.g. a best.yaml")
    add("--seeds", default=DEFAULT_SEEDS, help=f"e.g. 0..4 or 0,3 (default: {DEFAULT_SEEDS})")
    add("--scale", choices=SCALES, default="full", help=f"tiny: 1/{TINY_FRACTION} of every stage")
    add("--name", help="of the folder of the table (default: made of what is asked)")
    add("--workers", type=int, metavar="N", help="cells at a time, at most; 0: without Ray")
    add("--workers-per-cell", type=int, default=1, metavar="N", help="GPUs, else CPU processes")
    add("--dry-run", action="store_true", help="say what would run and cost, and stop")
    add("--time", action="store_true", help="with --dry-run: time steps on a CPU, too")
    cli.add_places(parser)
    add("--address", help="Ray cluster (default: $RAY_ADDRESS, else this machine)")
    add("settings", nargs="*", metavar="key=value", help="settings of every row")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.time and not arguments.dry_run:
        raise UserError("--time is of a dry run; add --dry-run")
    if arguments.workers_per_cell < 1:
        raise UserError(f"--workers-per-cell must be at least 1, got {arguments.workers_per_cell}")
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers must be at least 0, got {arguments.workers}")
    if arguments.workers == 0 and arguments.workers_per_cell > 1:
        raise UserError(
            "--workers-per-cell needs Ray, but --workers 0 is without it; leave one out"
        )
    return arguments


def run(argv: Sequence[str] | None) -> int:
    arguments = parse(argv)
    from spcl.configuration import early
    from tune.sweeping.file import check, find_file, read_sweep

    cluster.check_job_paths(arguments, f"tune/sweep.py {arguments.file}")
    if arguments.name is not None:
        early.check_name(arguments.name)
    path, seeds = find_file(arguments.file), cli.parse_seeds(arguments.seeds)
    check(read_sweep(path), arguments.benchmark, arguments.config, arguments.settings)
    from spcl.engine.inputs import data_root  # what follows imports torch
    from spcl.launch import check_batches
    from tune.sweeping.grid import resolve

    sweep = resolve(
        path,
        arguments.benchmark,
        list(dict.fromkeys(seeds or ())),
        arguments.scale,
        arguments.settings,
        data_root(arguments.data),
        cli.storage_root(arguments.storage, writes=not arguments.dry_run),
        _say,
        name=arguments.name,
        workers=arguments.workers_per_cell,
        dry_run=arguments.dry_run,
        base=arguments.config,
    )
    for cell in sweep.distinct:
        check_batches(cell.config, arguments.workers_per_cell)
    if arguments.dry_run:
        from spcl.engine.timing import is_timed
        from tune.sweeping.estimate import describe

        print(describe(sweep, is_timed(sweep.distinct[0].config, arguments.time)))
        return 0
    with Lease(sweep.folder):
        return _make(sweep, arguments)


def _make(sweep: Sweep, arguments: argparse.Namespace) -> int:
    """Run what is missing; write and print the table.  1 if a cell failed."""
    from spcl.configuration.chosen_by import carry
    from tune.sweeping.live import Live
    from tune.sweeping.schedule import Schedule
    from tune.sweeping.table import as_text, make_table, write_table

    for cell in sweep.distinct:  # finished ones too: who chose the settings of any of their rows
        if cell.config.chosen_by and cell.run.folder.is_dir():
            carry(cell.run, cell.config.chosen_by)
    schedule = Schedule.of(sweep)
    live = Live(sweep, schedule)
    _say(f"{sweep.name}: {len(sweep.distinct)} runs, {len(schedule.waiting)} to do")
    if schedule.waiting:
        from tune.sweeping import jobs

        if arguments.workers == 0:
            jobs.here(schedule, sweep, live.started, live.ended)
        else:
            places = arguments.workers, arguments.address
            jobs.on_ray(schedule, sweep, *places, live.started, live.ended, live.show)
    table = make_table(sweep, schedule.failed)
    write_table(table)
    print(as_text(table))
    print(f"outputs: {sweep.folder}  (table.md, table.csv, table.html)")
    return 1 if schedule.failed else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(run, argv)


if __name__ == "__main__":
    cli.treat_sigterm_as_ctrl_c()  # so that a stopped job says how to go on
    sys.exit(main())
