"""Run a recipe under Ray Train: on this machine with nothing to start, in a cluster, as a job."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ray_jobs import cluster
from ray_jobs.group import stopped, worker_group
from spcl import cli
from spcl.errors import UserError
from spcl.store.atomic import refusal
from spcl.store.lease import Lease, check

if TYPE_CHECKING:
    from ray.train import Result
    from ray.train.torch import TorchTrainer

    from spcl.launch import Request
    from spcl.store.run_folder import RunFolder

EXAMPLE = """examples:
  python ray_jobs/train.py                                   the SPCL recipe on streets
  python ray_jobs/train.py --method source_only --seeds 0..4
  python ray_jobs/train.py --benchmark gta5 --workers 8 spcl.contrast_weight=0.5
  python ray_jobs/train.py --workers 4 compat=official       as the authors' code, not the paper
  ray job submit --working-dir . -- python ray_jobs/train.py --data /abs/data --storage /abs/runs
"""
RETRIES = 3  # restarts of the worker group after lost workers, each from our newest checkpoint
START_FAILURES = 3  # attempts at placing the workers; without a limit Ray waits for ever
POLL = 0.5  # seconds between looks at metrics.jsonl
SILENCE = 90  # seconds until a user is told that the cluster may have no room
SHOWN_LINES = 20  # of a failed worker's output


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python ray_jobs/train.py",
        description=__doc__,
        epilog=EXAMPLE,
    )
    cli.add_run_arguments(parser)
    parser.add_argument(
        "--workers", type=int, help="processes, one per GPU (default: 1); 0: no Ray"
    )
    parser.add_argument("--address", help="Ray cluster (default: $RAY_ADDRESS, else this machine)")
    parser.add_argument(
        "--placement", choices=("PACK", "SPREAD"), default="PACK", help="workers over nodes"
    )
    arguments = parser.parse_intermixed_args(argv)  # settings may stand anywhere
    from spcl.configuration import early

    if arguments.list:
        print(early.list_known())
        return 0
    if arguments.list_settings:
        early.check_run(arguments)
        print(early.list_settings(arguments))
        return 0
    cluster.check_job_paths(arguments, "ray_jobs/train.py")
    early.check_run(arguments)
    if arguments.workers == 0:
        from spcl import train  # imports torch

        return train.run(arguments)
    if arguments.workers is not None:
        arguments.settings = [*arguments.settings, f"train.workers={arguments.workers}"]
    from spcl import launch  # imports torch

    asked = launch.requests(arguments)
    if arguments.dry_run:
        from spcl.dry_run import describe

        print(describe(asked[0], asked[0].config.train.workers))
        return 0

    finished = []
    for request in asked:
        run = request.find()
        if run.done:
            print(f"{run.name} is finished already")
        else:
            with Lease(run.folder) as lease:
                _train(request, run, lease, arguments)
        launch.show_done(request, run)
        finished.append(run)
    launch.show_seeds(finished)
    return 0


def _train(request: Request, run: RunFolder, lease: Lease, arguments: argparse.Namespace) -> None:
    """One run on the cluster; returns when DONE.json stands, else raises UserError."""
    from spcl.store.heartbeat import Watch

    cluster.connect(arguments.address)
    train = request.config.train
    per_worker = cluster.worker_resources(train.device)
    short = cluster.shortage(train.workers, per_worker)
    if short:
        raise UserError(short)
    request.open()  # only now: a start that is refused uses up no name
    from ray_jobs.piece import pack
    from ray_jobs.worker import group_worker  # imports ray
    from spcl.engine.recipe import Recipe

    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"  # of this launch
    # Ray's own record of a launch is disposable: a restarted worker and a new launch both continue
    # from our checkpoints.
    trainer = worker_group(
        group_worker,
        pack(request.piece, Recipe.__call__, name, lease.id, watched=True),
        run.folder / "ray",
        train.workers,
        per_worker,
        timeout=train.collective_timeout,
        restarts=RETRIES,
        start_failures=START_FAILURES,
        placement=arguments.placement,
        name=name,
    )
    run.forget_failure()
    progress = _Progress(run)
    with progress, Watch(run.folder, train.workers, progress.tell, deputy=True):
        result = _fit(trainer)
    check(run.folder)  # this process may have been frozen meanwhile
    if not run.done:
        told = getattr(result, "return_value", None) or stopped(name)
        if told:  # by a worker, which said why
            raise UserError(told)
        error = result if isinstance(result, Exception) else None
        refused = refusal(getattr(error, "controller_failure", error), run.folder / "ray")
        if refused:  # Ray's own record of the launch
            raise refused
        # A node may have been lost meanwhile.
        reason = cluster.shortage(train.workers, per_worker) or _reason(error)
        text = f"training failed: {reason}"
        run.fail(text, type(error).__name__)
        raise UserError("\n".join([text, *_last_output(run, name)]))
    for launched in (run.folder / "ray").iterdir():
        if launched.name != name:
            shutil.rmtree(launched, ignore_errors=True)


def _fit(trainer: TorchTrainer) -> Result | Exception:
    """Train to the end; what came of it.  KeyboardInterrupt on Ctrl-C and SIGTERM."""
    handlers = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return trainer.fit()
    except SystemExit:  # how Ray ends after Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:
        return error
    finally:
        for sign, handler in handlers.items():  # Ray leaves its own for Ctrl-C in place
            signal.signal(sign, handler)


def _reason(error: Exception | None) -> str:
    """What Ray says, in one line."""
    if error is None:
        return "the workers ended without a result"
    failures = getattr(error, "worker_failures", None)
    if failures:
        each = "; ".join(f"rank {rank}: {_line(failures[rank])}" for rank in sorted(failures))
        return f"{each} (after {RETRIES} restarts)"
    text = _line(getattr(error, "controller_failure", error)).split(". Potential causes")[0]
    return f"{text}; see what the cluster does with: ray status"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _last_output(run: RunFolder, name: str) -> Iterator[str]:
    """The end of what each worker of a launch has written."""
    for log in sorted((run.folder / "logs").glob(f"{name}-*.log")):
        yield f"--- end of {log}"
        yield from log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]


class _Progress(threading.Thread):
    """Follows metrics.jsonl, which rank 0 writes, and draws the live line."""

    def __init__(self, run: RunFolder):
        from spcl.store.telemetry import LiveLine

        super().__init__(daemon=True)
        self.path = run.folder / "metrics.jsonl"
        self.offset = self.path.stat().st_size if self.path.exists() else 0
        self.live = LiveLine()
        self.over = threading.Event()

    def __enter__(self) -> _Progress:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.join()
        self.live.end()

    def tell(self, text: str) -> None:
        """Of a wait; a line of its own."""
        from spcl.store.heartbeat import to_stderr

        self.live.end()
        to_stderr(text)

    def run(self) -> None:
        silent_until, start = time.monotonic() + SILENCE, self.offset
        while not self.over.wait(POLL):
            self.show()
            if self.offset == start and time.monotonic() > silent_until:
                print("no worker has started yet; see: ray status", file=sys.stderr, flush=True)
                silent_until = math.inf
        self.show()

    def show(self) -> None:
        """Show what is new."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self.offset += len(line)
                try:
                    self.live.show(json.loads(line))
                except (ValueError, TypeError, KeyError):  # half a line, left by a killed worker
                    continue


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
