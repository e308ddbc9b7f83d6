"""Run a recipe under Ray Train: on this machine with nothing to start, in a cluster, as a job."""

import argparse
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from ray_jobs import cluster
from spcl import cli, launch
from spcl.errors import UserError
from spcl.launch import Request
from spcl.lease import Lease
from spcl.results.store import RunFolder
from spcl.telemetry import LiveLine

EXAMPLE = """examples:
  python ray_jobs/train.py                                   the SPCL recipe on streets
  python ray_jobs/train.py --method source_only --seeds 0..4
  python ray_jobs/train.py --benchmark gta5 --workers 8 spcl.contrast_weight=0.5
  ray job submit --working-dir . -- python ray_jobs/train.py --data /abs/data --storage /abs/runs
"""
RETRIES = 3  # restarts of the worker group after lost workers, each from our newest checkpoint
START_FAILURES = 3  # attempts at placing the workers; without a limit Ray waits for ever
COLLECTIVE_TIMEOUT = 600  # seconds until a rank that hears nothing gives up
POLL = 0.5  # seconds between looks at metrics.jsonl
SHOWN_LINES = 20  # of a failed worker's output


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python ray_jobs/train.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_run_arguments(parser)
    parser.add_argument("--workers", type=int, help="processes, one per GPU (default: 1)")
    parser.add_argument("--address", help="Ray cluster (default: $RAY_ADDRESS, else this machine)")
    parser.add_argument(
        "--placement", choices=("PACK", "SPREAD"), default="PACK", help="workers over nodes"
    )
    arguments = parser.parse_intermixed_args(argv)  # settings may stand anywhere
    if arguments.list:
        print(launch.list_known())
        return 0
    if cluster.inside_job():
        _check_job_paths(arguments)
    if arguments.workers is not None:
        arguments.settings = [*arguments.settings, f"train.workers={arguments.workers}"]
    asked = launch.requests(arguments)
    if arguments.dry_run:
        from spcl.dry_run import describe

        print(describe(asked[0], asked[0].config.train.workers))
        return 0

    finished = []
    for request in asked:
        run = request.open()
        if run.done:
            print(f"{run.name} is finished already")
        else:
            with Lease(run.folder):
                _train(request, run, arguments)
        launch.show_done(request, run)
        finished.append(run)
    launch.show_seeds(finished)
    return 0


def _check_job_paths(arguments: argparse.Namespace) -> None:
    """A job runs in a throw-away copy of the working folder: what it writes there is lost."""
    for option, variable in (("data", "SPCL_DATA"), ("storage", "SPCL_STORAGE")):
        given = getattr(arguments, option) or os.environ.get(variable)
        if not given or not Path(given).is_absolute():
            raise UserError(
                f"inside a Ray job --{option} must be an absolute path that exists on every node, "
                f"got {given!r}; submit with: ray job submit --working-dir . -- python "
                "ray_jobs/train.py --data /abs/data --storage /abs/runs"
            )


def _train(request: Request, run: RunFolder, arguments: argparse.Namespace) -> None:
    """One run on the cluster; returns when DONE.json stands, else raises UserError."""
    import ray

    if not ray.is_initialized():
        cluster.connect(arguments.address)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from ray_jobs.worker import pack, train_worker

    train = request.config.train
    gpu = train.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    per_worker = {"GPU": 1, "CPU": 1} if gpu else {"CPU": 1}
    cluster.check_resources(train.workers, per_worker)

    launch_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=pack(request, launch_id),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT),
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=gpu,
            resources_per_worker=per_worker,
            placement_strategy=arguments.placement,
        ),
        # Ray's own record of a launch is disposable: a restarted worker and a new launch both
        # continue from our checkpoints.
        run_config=RunConfig(
            name=launch_id,
            storage_path=str(run.folder / "ray"),
            failure_config=FailureConfig(
                max_failures=RETRIES, controller_failure_limit=START_FAILURES
            ),
        ),
    )
    with _Watch(run):
        try:
            trainer.fit()
        except SystemExit:  # how Ray ends after Ctrl-C
            raise KeyboardInterrupt from None
        except Exception as error:
            raise UserError(_explain(run, error)) from error
    failed = run.failed
    if not run.done:
        reason = failed["error"] if failed else "the workers ended without a result"
        raise UserError(reason)


def _explain(run: RunFolder, error: Exception) -> str:
    lines = [f"training failed: {str(error).strip().splitlines()[0]}"]
    for log in sorted((run.folder / "logs").glob("worker-*.log")):
        tail = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        lines += [f"--- end of {log}", *tail]
    return "\n".join(lines)


class _Watch:
    """Follows metrics.jsonl, which rank 0 writes, and draws the live line."""

    def __init__(self, run: RunFolder):
        self.path = run.folder / "metrics.jsonl"
        self.offset = self.path.stat().st_size if self.path.exists() else 0
        self.live = LiveLine()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._show_new()
        self.live.end()

    def _follow(self) -> None:
        while not self._stop.wait(POLL):
            self._show_new()

    def _show_new(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self.offset += len(line)
                self.live.show(json.loads(line))


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
