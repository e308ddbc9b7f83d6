"""Where many pieces of work run beside each other: how many fit a cluster, and on what."""

import signal

from ray_jobs import cluster
from spcl import cli
from spcl.configuration.sections import Train
from spcl.errors import UserError


def connect(address: str | None) -> None:
    """Join or start Ray; Ctrl-C stays ours.  UserError if nothing answers."""
    cluster.connect(address)
    for sign in (signal.SIGINT, signal.SIGTERM):  # Ray has put handlers of its own
        signal.signal(sign, cli.interrupt)


def worker_resources(train: Train) -> dict[str, float]:
    """What one device of a configuration reserves: a GPU, or as many CPUs as it has threads."""
    each = cluster.worker_resources(train.device)
    return each if "GPU" in each else {"CPU": float(train.threads)}


def slots(worker: dict[str, float], devices: int, concurrent: int | None) -> int:
    """How many configurations run at a time.  UserError: what was asked for does not fit."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(
        min(int(node.get(name, 0) // amount) for name, amount in worker.items()) for node in nodes
    )
    fit = places // devices
    if fit < (concurrent or 1):
        asked = ", ".join(f"{amount:g} {name}" for name, amount in worker.items())
        have = "; ".join(
            ", ".join(f"{node.get(name, 0):g} {name}" for name in worker) for node in nodes
        )
        raise UserError(
            f"{concurrent or 1} configuration(s) of {devices} device(s) with {asked} each do not "
            f"fit the cluster, whose nodes have: {have}; it holds {fit} of them at a time. Lower "
            "--concurrent, --devices-per-trial or train.threads, or add nodes"
        )
    return concurrent or fit


def leave() -> None:
    """Let go of the cluster, or end the one of this command."""
    import ray

    ray.shutdown()
