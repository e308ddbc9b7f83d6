"""A Ray Train worker group, built alike for a run, a job of a search and a cell of a sweep."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

KEY = "spcl/stopped/{}"  # of a launch, in the cluster's own memory


def worker_group(
    function: Callable[[dict[str, Any]], Any],
    values: dict[str, Any],
    folder: Path,
    workers: int,
    each: dict[str, float],
    *,
    timeout: int,
    restarts: int,
    start_failures: int = 1,
    placement: str = "PACK",
    name: str | None = None,
) -> "TorchTrainer":
    """What runs function(values) on every worker, once it is asked to fit().

    folder          for Ray's own record of this launch, under `name` (default: a fresh one)
    each            resources of one worker
    timeout         seconds until a rank that hears nothing gives up
    restarts        of the group after lost workers
    start_failures  at placing the workers, until Ray gives up; without a limit it waits for ever
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = "GPU" in each
    return TorchTrainer(
        function,
        train_loop_config=values,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=timeout),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker=each,
            placement_strategy=placement,
        ),
        run_config=RunConfig(
            name=name or uuid.uuid4().hex[:12],
            storage_path=str(folder),
            # mypy sees the class of Train V1, which lacks the second.
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=restarts, controller_failure_limit=start_failures
            ),
        ),
    )


# Why a launch was stopped, where another attempt mends nothing.  A rank that others wait for must
# raise, and Ray then starts the group again: the new workers ask here first, since on a full disk
# no file could tell them.


def stop(launch: str, reason: str) -> None:
    """Note in the cluster, from a worker, why this launch is over."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(KEY.format(launch), reason)


def stopped(launch: str) -> str | None:
    """Why a launch is over, if a worker has said so."""
    from ray.experimental.internal_kv import _internal_kv_get

    found = _internal_kv_get(KEY.format(launch))
    return found.decode() if found else None
