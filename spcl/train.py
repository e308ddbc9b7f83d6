"""Run a recipe without Ray: plain Python, or `torchrun -m spcl.train` for several processes."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
from collections.abc import Sequence

from spcl import cli
from spcl.errors import ConfigError, UserError

EXAMPLE = """example:
  python -m spcl.train --benchmark streets --method spcl --seeds 0..4
  torchrun --nproc-per-node 2 -m spcl.train --benchmark streets spcl.contrast_weight=0
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m spcl.train",
        description=__doc__,
        epilog=EXAMPLE,
    )
    cli.add_run_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)  # settings may stand anywhere
    from spcl.configuration import early

    if arguments.list:
        print(early.list_known())
        return 0
    early.check_run(arguments)
    if arguments.list_settings:
        print(early.list_settings(arguments))
        return 0
    import torch.distributed as dist  # seconds: after all that needs none

    from spcl import distributed

    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    try:
        if "WORLD_SIZE" in os.environ:  # torchrun
            _join_group(arguments)
        return run(arguments, local_rank)
    except RuntimeError as error:
        if "WORLD_SIZE" in os.environ and distributed.lost_another(error):
            raise UserError(
                f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} heard nothing (more) "
                f"of another one ({str(error).splitlines()[0]}); see what that one says. What is "
                "stored is whole: start all of them again with the same command"
            ) from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join_group(arguments: argparse.Namespace) -> None:
    """Wait for the other processes that torchrun has started."""
    import torch
    import torch.distributed as dist

    from spcl.configuration.config import load

    # `run` reads the settings once more: a group must know before it exists how long to wait.
    config = load(arguments.benchmark, arguments.method, arguments.config, arguments.settings)
    timeout = datetime.timedelta(seconds=config.train.collective_timeout)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)


def _check_file(arguments: argparse.Namespace, workers: int) -> None:
    """ConfigError where a --config file is of another number of workers, and that matters."""
    from spcl.configuration import elastic
    from spcl.configuration.config import load
    from spcl.settings import flatten, read_yaml

    if "train.workers" not in flatten(read_yaml(arguments.config)):
        return
    config = load(arguments.benchmark, arguments.method, arguments.config, arguments.settings)
    for stage in config.stages:
        elastic.expect(stage, config.by_rank(stage), config.train.workers, workers)


def run(arguments: argparse.Namespace, local_rank: int = 0) -> int:
    """What a command line asks for, in this process and its process group, if there is one."""
    from spcl import distributed, launch
    from spcl.engine.devices import choose_device
    from spcl.engine.piece import on_rank
    from spcl.engine.recipe import Recipe
    from spcl.store.lease import Lease, under
    from spcl.store.run_folder import RunFolder
    from spcl.store.telemetry import LiveLine

    first, workers = distributed.rank() == 0, distributed.world_size()
    for given in arguments.settings:
        if given.startswith("train.workers=") and given != f"train.workers={workers}":
            raise ConfigError(
                f"without Ray train.workers is the number of processes, {workers} here, got "
                f"{given}; leave it out, and start more with torchrun or ray_jobs/train.py"
            )
    if arguments.config and not any(s.startswith("train.workers=") for s in arguments.settings):
        _check_file(arguments, workers)
    arguments.settings = [*arguments.settings, f"train.workers={workers}"]
    if not first:
        distributed.barrier()  # rank 0 makes data and folders before the others look
    asked = launch.requests(arguments)
    if first:
        distributed.barrier()
    if arguments.dry_run:
        from spcl.dry_run import describe

        text = describe(asked[0], workers)
        if first:
            print(text)
        return 0
    choose_device(asked[0].config.train, local_rank)  # before a folder is made in vain
    finished = []
    for request in asked:
        run = request.find() if first else RunFolder(request.storage / request.name)
        finished.append(run)
        if distributed.gather(run.done is not None)[0]:
            if first:
                print(f"{run.name} is finished already")
                launch.show_done(request, run)
            continue
        with Lease(run.folder) if first else contextlib.nullcontext() as lease:
            if lease:
                request.open()
                run.forget_failure()
            shared = distributed.gather(lease and lease.id)[0]  # every rank works under rank 0's
            with under(run.folder, shared):
                live = LiveLine() if first else None
                on_rank(request.piece, Recipe.__call__, local_rank, live=live)
        if first:
            launch.show_done(request, run)
    if first:
        launch.show_seeds(finished)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
