"""A Ray cluster of the tests' own, and commands run on it as a user would.

One head node on loopback, on free ports, with its own token and folder: nothing is shared with a
Ray that runs on the machine already, and it is stopped by its process id.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent  # `python` and `ray` of the environment that runs the tests
CPUS = 2
ATTEMPTS = 3  # a free port may be taken before Ray listens there
START_SECONDS = 90
STOP_SECONDS = 30

PLAIN = {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    # A detached actor of Ray Train outlives every run, and stopping would wait for it.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process less to start
    # By default a report waits up to 2 s for Ray's controller.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}
_UNSET = ("PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS", "SPCL_DATA", "SPCL_STORAGE")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: this process's, with no other cluster or folder named."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return kept | PLAIN | dict(more or {})


@dataclass(frozen=True)
class RayCluster:
    address: str  # host:port, for --address
    dashboard: str  # http://host:port, for `ray job submit`
    folder: Path  # Ray's own files
    token: dict[str, str]  # variables that let a process in

    @property
    def environment(self) -> dict[str, str]:
        """Of a command that runs on this cluster."""
        return environment(self.token | {"RAY_ADDRESS": self.address})


@contextmanager
def started_cluster(cpus: int = CPUS) -> Iterator[RayCluster]:
    """Start a head node as the README says, and stop it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: socket paths are limited
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / ".ray/auth_token")}
    subprocess.run(
        ["ray", "get-auth-token", "--generate"],
        env=environment({"HOME": str(folder)}),  # the user's own token stays as it is
        check=True,
        timeout=START_SECONDS,
        capture_output=True,
    )
    (folder / ".ray/auth_token").chmod(0o600)  # Ray opens the folder to everybody
    head = None
    try:
        for _ in range(ATTEMPTS):
            gcs, dashboard, agent, client, metrics = free_ports(5)
            # fmt: off
            head = _start_node(
                folder, token, "--head", "--port", gcs, "--num-cpus", cpus,
                "--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent,
                "--ray-client-server-port", client, "--metrics-export-port", metrics,
            )
            # fmt: on
            if _answers(head, (gcs, dashboard, agent)):
                break
            stop_group(head, signal.SIGTERM)
        else:
            pytest.fail(f"Ray did not start: {(folder / 'node.log').read_text()}")
        yield RayCluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", folder, token)
    finally:
        if head:
            stop_group(head, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def second_node(cluster: RayCluster, cpus: int) -> Iterator[subprocess.Popen]:
    """Another node on this machine; killing its group is the loss of the node."""
    (agent,) = free_ports(1)
    # fmt: off
    node = _start_node(
        cluster.folder, cluster.token, "--address", cluster.address, "--num-cpus", cpus,
        "--dashboard-agent-listen-port", agent,
    )
    # fmt: on
    try:
        if not _answers(node, (agent,)):
            pytest.fail(f"Ray did not start: {(cluster.folder / 'node.log').read_text()}")
        yield node
    finally:
        stop_group(node, signal.SIGKILL)


def _start_node(folder: Path, token: Mapping[str, str], *options: object) -> subprocess.Popen:
    with open(folder / "node.log", "ab") as log:
        return subprocess.Popen(
            ["ray", "start", "--block", "--temp-dir", str(folder), *map(str, options)],
            env=environment(token),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _answers(node: subprocess.Popen, ports: Sequence[int]) -> bool:
    """Wait until something listens on each port; False if the node ends before."""
    deadline = time.monotonic() + START_SECONDS
    while not all(_listens(port) for port in ports):
        if node.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """One cluster for all tests that need no other."""
    with started_cluster() as running:
        yield running


class Command:
    """A command under way, in a session of its own; `out` and `err` are what it printed."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path):
        self._files = [Path(tempfile.mkstemp(dir=folder, suffix=s)[1]) for s in (".out", ".err")]
        with open(self._files[0], "wb") as out, open(self._files[1], "wb") as err:
            self.process = subprocess.Popen(
                arguments,
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def finish(self, seconds: float = 150) -> int:
        """The exit code; a command that hangs fails the test."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end after {seconds:g} s:\n{self.out}\n{self.err}")


class Commands:
    """Starts commands, and kills what is left of them at the end."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, []

    def start(self, line: Sequence[object], environment: Mapping[str, str]) -> Command:
        self.started.append(Command([*map(str, line)], environment, self.folder))
        return self.started[-1]

    def run(self, line: Sequence[object], environment: Mapping[str, str]) -> Command:
        command = self.start(line, environment)
        command.finish()
        return command

    def stop(self) -> None:
        for command in self.started:
            stop_group(command.process, signal.SIGKILL)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("output"))
    yield made
    made.stop()


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll `holds()` until it is true; the test fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s in vain until {what}")
        time.sleep(0.02)


def stop_group(process: subprocess.Popen, how: signal.Signals) -> None:
    """Signal a process that leads a session, and kill what it leaves of that session."""
    if process.poll() is None:
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)
