"""Where Ray runs: join the cluster that was named, or start one for this command alone."""

import argparse
import contextlib
import errno
import itertools
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from spcl.engine.commit import note_unknown
from spcl.errors import UserError
from spcl.store import sockets
from spcl.store.atomic import refusal

REACH_SECONDS = 5.0
ROOM = 2**19  # bytes that Ray's own files take at least, from 1 MiB on they fit
CANCEL_SECONDS = 10  # for killed tasks to let go of their files
ONE_CPU = {"CPU": 1.0}

RAY = "ray"  # Ray's folder in a temporary folder
#: The longest path of a socket there.
SOCKET = f"{RAY}/session_2000-01-01_00-00-00_000000_{{pid}}/sockets/plasma_store"
AUTH_MODE, AUTH_TOKEN, AUTH_TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"

T = TypeVar("T")
R = TypeVar("R")

#: Of a cluster we start ourselves, set before Ray is imported.
LOCAL_ENVIRONMENT = {
    # Ray runs its workers at nice 15: beside any other program they would hardly advance.
    "RAY_worker_niceness": "0",
    # Without a GPU Ray would hide the devices from its workers; it warns that this will change.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: no node is taken away here
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody was asked
}


def inside_job() -> bool:
    """Whether `ray job submit` started this process: its working folder is a throw-away copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_job_paths(arguments: argparse.Namespace, command: str) -> None:
    """UserError where a command inside a job leaves open which --data, --storage or --out it means.

    Only absolute paths are the same there as on every node.  A job that does not know its commit
    says so.
    """
    if not inside_job():
        return
    places = {
        "--data": arguments.data or os.environ.get("SPCL_DATA"),
        "--storage": arguments.storage or os.environ.get("SPCL_STORAGE"),
    }
    wrong = [name for name, path in places.items() if not path or not Path(path).is_absolute()]
    out = getattr(arguments, "out", None)
    if out and not out.is_absolute():
        wrong.append("--out")
    if wrong:
        raise UserError(
            f"inside a Ray job {' and '.join(wrong)} must be absolute and exist on every node (the "
            f"working folder is a copy that is thrown away); use: python {command} "
            f"--data /shared/data --storage /shared/runs"
        )
    note = note_unknown(command)
    if note:
        print(note, file=sys.stderr, flush=True)


def connect(address: str | None) -> None:
    """Join the cluster at `address`, else $RAY_ADDRESS, else start a local one.

    UserError if nothing answers there.  Never a plain `ray.init()`: it joins any cluster it finds.
    """
    named = " (RAY_ADDRESS in the environment)" if _environment_decides(address) else ""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    if local:
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Without byte code every worker would parse torch and ray anew, which takes twice as long.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    import ray  # seconds: after every check that needs no cluster

    if ray.is_initialized():
        return
    where = "on this machine" if local else f"at {address}{named}"
    try:
        _reach(address)
    except OSError as error:
        alone = "`unset RAY_ADDRESS`" if named else "give no --address"
        raise UserError(
            f"no Ray cluster answers at {address}{named}: {error}; start one with "
            f"`ray start --head`, or {alone} to use this machine alone"
        ) from None
    options: dict[str, Any] = {}
    if local:
        options = {"include_dashboard": False, **temporary_folder()}
    for warning in authentication_warnings():
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    token = _token_path()
    makes_token = local and token is not None and not token.exists()
    print(f"starting Ray {where}" if local else f"joining Ray {where}", file=sys.stderr, flush=True)
    try:
        # Ray annotates the level as a number and gives a word as its default.
        level: Any = "error"
        ray.init(address=address, log_to_driver=False, logging_level=level, **options)
    except Exception as error:  # Ray raises Exception itself where a node does not start
        # Of Ray's own files; it says nothing where there is no room for them.
        folder = Path(options["_temp_dir"]).parent if "_temp_dir" in options else _usual()[1]
        full = local and shutil.disk_usage(folder).free < ROOM
        refused = refusal(OSError(errno.ENOSPC, "") if full else error, folder)
        if refused:
            raise refused from None
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot use Ray {where} ({reason}); all nodes need one version of Ray and Python, "
            f"one token, and RAY_AUTH_MODE=token where it was started so"
            + ("; or `unset RAY_ADDRESS` to use this machine alone" if named else "")
        ) from None
    if makes_token and token is not None and token.exists():
        token.chmod(0o600)  # Ray leaves it to the umask, by which others may often read it


def _environment_decides(address: str | None) -> bool:
    """Whether $RAY_ADDRESS says where Ray runs.  Inside a job that is Ray's own doing."""
    return not address and bool(os.environ.get("RAY_ADDRESS")) and not inside_job()


def temporary_folder() -> dict[str, str]:
    """What `ray.init` needs so that the paths of its sockets are short enough; says so if it does.

    UserError where no short folder can be written to.
    """
    name, usual = _usual()
    longest = SOCKET.format(pid=os.getpid())
    if sockets.fits(usual, longest):
        return {}
    found, limit = sockets.length(usual, longest), sockets.SOCKET_BYTES
    folder = sockets.short_folder(longest)
    if folder is None:
        raise UserError(
            f"the path of Ray's sockets must not pass {limit} bytes, but with "
            f"{name}={usual} it has {found}; set RAY_TMPDIR to a shorter folder that "
            "can be written to"
        )
    print(
        f"{name} is too long for Ray's sockets ({found} bytes, at most {limit}); its files go to "
        f"{folder / RAY}",
        file=sys.stderr,
        flush=True,
    )
    return {"_temp_dir": str(folder / RAY)}  # which Ray opens to everybody; the folder above is not


def _usual() -> tuple[str | None, Path]:
    """The variable that names the temporary folder, and the folder, as Ray looks for it."""
    name = next((n for n in ("RAY_TMPDIR", "TMPDIR") if n in os.environ), None)
    return name, Path(os.environ[name] if name else "/tmp")


def authentication_warnings() -> Iterator[str]:
    """What lets other people run code on the cluster, a line each with the way out."""
    if os.environ.get(AUTH_MODE, "").lower() == "disabled":
        yield (
            f"{AUTH_MODE}=disabled lets anybody who reaches the cluster's ports run code as you; "
            f"`export {AUTH_MODE}=token` in every shell that starts or joins it"
        )
    path = _token_path()
    if path is not None and _others_can_read(path):
        yield (
            f"others can read Ray's token, and with it run code as you; `chmod 600 {path}`, and "
            "make a new one if somebody may have: `ray get-auth-token --generate`"
        )


def _token_path() -> Path | None:
    """The file that Ray reads its token from; None where it reads none."""
    if os.environ.get(AUTH_MODE, "").lower() == "disabled" or os.environ.get(AUTH_TOKEN):
        return None
    return Path(os.environ.get(AUTH_TOKEN_PATH) or Path.home() / ".ray/auth_token")


def _others_can_read(path: Path) -> bool:
    """Whether the group or everybody may read a file, and enter every folder above it."""
    try:
        path = path.resolve()
        allowed = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
        for folder in path.parents:
            enter = folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH)
            allowed &= enter << 2  # an x bit lies two below its r bit
    except OSError:
        return False
    return bool(allowed)


def _reach(address: str) -> None:
    """OSError if nothing listens at host:port; Ray itself would try for ten minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        with contextlib.closing(socket.create_connection((host, int(port)), REACH_SECONDS)):
            pass


def worker_resources(device: str) -> dict[str, float]:
    """What one training worker reserves: a GPU where the cluster has some and `device` allows.

    UserError where `device` is cuda and there is none.
    """
    import ray

    gpu = device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    if device == "cuda" and not gpu:
        raise UserError(
            "train.device=cuda needs a GPU, but the cluster has none; use train.device=cpu, or add "
            "a node that has some"
        )
    return {"CPU": 1, "GPU": 1} if gpu else {"CPU": 1}


def capacity(per_worker: Mapping[str, float]) -> int:
    """How many workers the cluster holds at a time, at least one."""
    import ray

    have = ray.cluster_resources()
    return max(1, min(int(have.get(name, 0) / amount) for name, amount in per_worker.items()))


def shortage(workers: int, per_worker: dict[str, float]) -> str | None:
    """What the cluster lacks, at its full size, for `workers` times `per_worker`."""
    import ray

    have = ray.cluster_resources()
    for name, amount in per_worker.items():
        if workers * amount > have.get(name, 0):
            return (
                f"{workers} workers need {workers * amount:g} {name}, but the cluster has "
                f"{have.get(name, 0):g}; lower --workers or add nodes"
            )
    return None


def ray_map(
    function: Callable[[T], R],
    tasks: Iterable[T],
    limit: int | None,
    each: Mapping[str, float] = ONE_CPU,
) -> Iterator[R]:
    """Results of function(task) as they come, at most `limit` under way (default: all CPUs).

    each  the CPU and GPU that a task reserves
    """
    import ray

    # max_calls: a process that has loaded a network onto its GPU keeps it for the next task.
    remote = ray.remote(num_cpus=each["CPU"], num_gpus=each.get("GPU", 0), max_calls=0)(function)
    limit = limit or max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(tasks)
    running: list[Any] = []
    try:
        while True:
            running += [remote.remote(t) for t in itertools.islice(waiting, limit - len(running))]
            if not running:
                return
            ready, running = ray.wait(running, num_returns=1)
            try:
                yield ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
    finally:
        for task in running:
            ray.cancel(task, force=True)
        if running:
            ray.wait(running, num_returns=len(running), timeout=CANCEL_SECONDS)
