"""Where Ray runs, as far as it can be decided without starting it."""

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from clusters import environment
from conftest import MINI
from mini import TRAIN, arguments

from ray_jobs import cluster
from spcl import cli, train
from spcl.errors import UserError
from spcl.store import sockets

RAY_VARIABLES = ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", cluster.AUTH_MODE, cluster.AUTH_TOKEN)


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """An environment that says nothing of Ray, and a home without a token."""
    for name in (*RAY_VARIABLES, cluster.AUTH_TOKEN_PATH, "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def longest() -> int:
    """Bytes of the longest TMPDIR with which a socket as Ray names it can be bound: tried out."""
    rest = len(f"/ray/session_2026-11-25_08-00-00_123456_{os.getpid()}/sockets/plasma_store")
    name = f"/tmp/{os.getpid()}-".ljust(sockets.SOCKET_BYTES, "x")
    with socket.socket(socket.AF_UNIX) as fits, socket.socket(socket.AF_UNIX) as probe:
        fits.bind(name)
        os.unlink(name)
        with pytest.raises(OSError, match="too long"):
            probe.bind(name + "x")
    return sockets.SOCKET_BYTES - rest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Ray reads TMPDIR on Linux only")
@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_is_replaced_by_a_short_one(name, monkeypatch, capsys):
    short = Path(f"/tmp/spcl-test-{os.getpid()}")  # as /tmp is: pytest's own folders are too long
    short.mkdir()
    monkeypatch.setattr(sockets, "SHORT_FOLDERS", (Path("/proc"), short))
    try:
        fits = longest()
        monkeypatch.setenv(name, "/é" + "x" * (fits - 3))
        assert cluster.temporary_folder() == {} and capsys.readouterr().err == ""
        monkeypatch.setenv(name, "/" + "x" * fits)
        chosen = short / f"spcl-{os.getuid()}"
        assert cluster.temporary_folder() == {"_temp_dir": str(chosen / "ray")}
        assert chosen.stat().st_mode & 0o777 == 0o700
        (said,) = capsys.readouterr().err.splitlines()
        assert said == (
            f"{name} is too long for Ray's sockets (108 bytes, at most 107); its files go to "
            f"{chosen}/ray"
        )
        monkeypatch.setattr(sockets, "SHORT_FOLDERS", (Path("/proc"), Path("/" + "y" * fits)))
        with pytest.raises(UserError, match=f"with {name}=/x*x it has 108; set RAY_TMPDIR to a sh"):
            cluster.temporary_folder()
    finally:
        (short / f"spcl-{os.getuid()}").rmdir()
        short.rmdir()


def test_a_stale_address_is_told_to_be_the_environments(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        cluster.connect(None)
    message = str(caught.value)
    assert "answers at 127.0.0.1:9 (RAY_ADDRESS in the environment): " in message
    assert "or `unset RAY_ADDRESS` to use this machine alone" in message
    with pytest.raises(UserError) as caught:
        cluster.connect("127.0.0.1:10")
    assert "RAY_ADDRESS" not in str(caught.value)
    assert "give no --address to use" in str(caught.value)


def token(path: Path, mode: int, folder: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("secret")
    path.chmod(mode)
    path.parent.chmod(folder)
    return path


@pytest.mark.parametrize(
    ("mode", "folder", "told"),
    [
        (0o644, 0o755, True),
        (0o640, 0o750, True),
        (0o604, 0o711, True),
        (0o640, 0o701, False),  # the group may read, but not come there
        (0o644, 0o700, False),
        (0o600, 0o755, False),
    ],
)
@pytest.mark.parametrize("where", ["home", "variable"])
def test_a_token_that_others_can_read_is_told(where, mode, folder, told, monkeypatch, tmp_path):
    path = tmp_path / ("home/.ray/auth_token" if where == "home" else "elsewhere/token")
    token(path, mode, folder)
    if where == "variable":
        monkeypatch.setenv(cluster.AUTH_TOKEN_PATH, str(path))
    real = Path.stat

    def open_above(self: Path, **options):
        """pytest's own folders can be entered by nobody else."""
        found = real(self, **options)
        ours = self in (path, path.parent)
        return found if ours else os.stat_result((found.st_mode | 0o755, *found[1:]))

    monkeypatch.setattr(Path, "stat", open_above)
    said = list(cluster.authentication_warnings())
    assert len(said) == told
    if told:
        assert (
            f"others can read Ray's token, and with it run code as you; `chmod 600 {path}`"
            in (said[0])
        )
    monkeypatch.setenv(cluster.AUTH_TOKEN, "secret")  # then no file is read
    assert not list(cluster.authentication_warnings())


def test_no_token_at_all_is_told(monkeypatch, tmp_path):
    assert list(cluster.authentication_warnings()) == []
    token(tmp_path / "home/.ray/auth_token", 0o644)
    monkeypatch.setenv(cluster.AUTH_MODE, "Disabled")
    (said,) = cluster.authentication_warnings()
    assert said.startswith("RAY_AUTH_MODE=disabled lets anybody who reaches the cluster's ports")


# A start that is refused leaves nothing: other refusals are in test_mistakes.


def left(storage: Path) -> list[str]:
    return sorted(str(path.relative_to(storage)) for path in storage.rglob("*") if path.is_file())


def test_a_refused_search_or_sweep_leaves_nothing(mini_data, tmp_path, monkeypatch, capsys):
    from tune import search, sweep

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    given = ["--data", str(mini_data), "--storage", str(tmp_path), "--name", "x", *MINI]
    for command, more in ((search.main, []), (sweep.main, ["components", "--seeds", "0"])):
        assert command([*more, *given]) == 2
        assert "error: no Ray cluster answers at 127.0.0.1:9 (RAY_ADDRESS" in (
            capsys.readouterr().err
        )
        assert not list((tmp_path / "searches").glob("*")) and left(tmp_path) == []
    assert not list((tmp_path / "sweeps").glob("*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_found_before_a_folder_is_made(mini_data, tmp_path, capsys):
    given = ["--data", str(mini_data), "--storage", str(tmp_path), "--name", "x", *MINI]
    assert cli.guarded(train.main, [*given, "train.device=cuda"]) == 2
    assert "error: train.device=cuda needs a GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_run_with_its_own_ray_below_a_long_temporary_folder(commands, mini_data, tmp_path):
    """As on a batch system: Ray itself refuses such a folder."""
    long = tmp_path / "scratch/".ljust(90, "x")
    long.mkdir(parents=True)
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    variables = environment({"TMPDIR": str(long), "HOME": str(home)})
    line = arguments(mini_data, tmp_path / "runs", "r", "stages=[adversarial]", "spcl.steps=6")
    command = commands.run([*TRAIN, *line, "train.loader_workers=1"], variables)
    assert command.code == 0, command.err
    said, starting = command.err.splitlines()
    assert said.startswith("TMPDIR is too long for Ray's sockets (")
    assert said.endswith(f"its files go to /tmp/spcl-{os.getuid()}/ray")
    assert starting == "starting Ray on this machine"
    token = home / ".ray/auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
