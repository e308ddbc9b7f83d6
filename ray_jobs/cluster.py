"""Where Ray runs: join the cluster that was named, or start one for this command alone."""

import os

from spcl.errors import UserError


def inside_job() -> bool:
    """Whether `ray job submit` started this process: its working folder is a throw-away copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def connect(address: str | None) -> None:
    """Join the cluster at `address`, else $RAY_ADDRESS, else start a local one.

    UserError if nothing answers there.  Never a plain `ray.init()`: it joins any cluster it finds.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # Ray runs its workers at nice 15: beside any other program they would hardly advance.
        os.environ.setdefault("RAY_worker_niceness", "0")
    import ray  # seconds: after every check that needs no cluster

    if ray.is_initialized():
        return
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or "
            f"give no --address to use this machine alone"
        ) from None
