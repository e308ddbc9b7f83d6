"""`python -m spcl.runs gc` on hand-made storage folders."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from spcl import cli
from spcl.runs import main
from spcl.store.garbage import find_garbage

KEYS = {name: 4 * (f"{n:x}" * 16) for n, name in enumerate(("warm-up", "adapted", "other"), 1)}
DEAD = 2**22 + 1  # more than the kernel's largest process id


def name_of(title):
    return f"{title}-{KEYS[title][:16]}"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def storage(tmp_path):
    """Three artefacts; `adapted` was made from `warm-up`."""
    for title in KEYS:
        folder = tmp_path / "artefacts" / name_of(title)
        inputs = {"checkpoint": KEYS["warm-up"]} if title == "adapted" else {}
        write(folder / "manifest.json", {"schema": 1, "seed": 0, "inputs": inputs})
        (folder / "checkpoint.pt").write_bytes(bytes(5000))
    return tmp_path


def gc(storage, *arguments):
    return cli.guarded(main, ["gc", "--storage", str(storage), *arguments])


def left(storage):
    return {path.name for path in (storage / "artefacts").iterdir()}


def test_an_artefact_of_a_finished_run_stays_with_what_it_was_made_from(storage):
    write(storage / "run/config.yaml", "seed: 0")
    write(storage / "run/DONE.json", {"artefacts": {"adapted": name_of("adapted")}})
    assert gc(storage, "--yes") == 0
    assert left(storage) == {name_of("adapted"), name_of("warm-up")}


def test_an_unfinished_run_keeps_what_its_manifest_names(storage):
    write(storage / "run/config.yaml", "seed: 0")
    write(storage / "run/manifest.json", {"stages": [{"title": "other", "key": KEYS["other"]}]})
    gc(storage, "--yes")
    assert left(storage) == {name_of("other")}


def test_a_job_of_a_search_keeps_its_network(storage):
    folder = storage / "searches" / "s"
    write(folder / "search.yaml", "config: {seed: 0}")
    write(folder / "jobs/0000-0.json", {"artefact": name_of("adapted")})
    gc(storage, "--yes")
    assert left(storage) == {name_of("adapted"), name_of("warm-up")}


@pytest.mark.parametrize(
    ("file", "text"), [("run/config.yaml", "seed: {}"), ("s/search.yaml", "config: {{seed: {}}}")]
)
def test_what_has_not_begun_keeps_the_artefacts_of_its_seed(storage, capsys, file, text):
    write(storage / file, text.format(0))
    gc(storage, "--yes")
    assert len(left(storage)) == 3
    assert "has not begun" in capsys.readouterr().out
    write(storage / file, text.format(1))
    gc(storage, "--yes")
    assert left(storage) == set()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run/DONE.json", '{"artefacts": {'),
        ("run/manifest.json", "[]"),
        ("searches/s/jobs/0000-0.json", ""),
        ("run/config.yaml", "method: spcl"),
        ("run/config.yaml", "a: b: c"),
        (f"artefacts/{name_of('adapted')}/manifest.json", "{"),
        (f"artefacts/{name_of('adapted')}/manifest.json", '{"inputs": ["warm-up"]}'),
    ],
)
def test_what_cannot_be_read_keeps_everything_and_is_named(storage, capsys, file, text):
    write(storage / "good/DONE.json", {"artefacts": {"adapted": name_of("adapted")}})
    write(storage / file, text)
    gc(storage, "--yes")
    assert len(left(storage)) == 3
    out = capsys.readouterr().out
    assert file.removesuffix("/manifest.json") in out and "everything is kept" in out


@pytest.mark.parametrize("what", ["run", "run/DONE.json"])
def test_what_may_not_be_opened_keeps_everything(storage, monkeypatch, capsys, what):
    write(storage / "run/DONE.json", {})
    if os.geteuid():
        (storage / what).chmod(0)
    else:  # nothing is forbidden to root
        read, scan = Path.read_bytes, os.scandir

        def refuse(call):
            def opened(path):
                if Path(path) == storage / what:
                    raise PermissionError(13, "Permission denied", str(path))
                return call(path)

            return opened

        monkeypatch.setattr(Path, "read_bytes", refuse(read))
        monkeypatch.setattr(os, "scandir", refuse(scan))
    try:
        garbage = find_garbage(storage)
    finally:
        (storage / what).chmod(0o755)
    assert garbage.folders == []
    (reason,) = garbage.because
    assert reason.startswith(f"{storage / what} cannot be read")


def test_a_run_that_is_a_link_keeps_its_artefacts(storage, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk") / "run"
    write(elsewhere / "DONE.json", {"artefacts": {"adapted": name_of("adapted")}})
    (elsewhere / "back").symlink_to(storage)  # must not be followed for ever
    (storage / "run").symlink_to(elsewhere)
    assert [path.name for path in find_garbage(storage).folders] == [name_of("other")]
    elsewhere.rename(elsewhere.with_name("unmounted"))
    assert find_garbage(storage).folders == []


def test_sizes_are_shown_and_nothing_goes_unasked(storage, capsys):
    assert gc(storage) == 0
    out = capsys.readouterr().out
    assert all(name_of(title) in out for title in KEYS)
    assert "4.9 KiB" in out and "14.8 KiB" in out and "add --yes" in out
    assert len(left(storage)) == 3


@pytest.mark.parametrize(("answer", "remaining"), [("", 3), ("no", 3), ("y", 0)])
def test_a_terminal_is_asked(storage, monkeypatch, answer, remaining):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    gc(storage)
    assert len(left(storage)) == remaining


def test_what_came_into_use_while_the_user_read_is_kept(storage, monkeypatch, capsys):
    def answer(prompt):
        write(storage / "new/DONE.json", {"artefacts": {"other": name_of("other")}})
        return "y"

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", answer)
    gc(storage)
    assert left(storage) == {name_of("other")}
    assert "1 have come into use" in capsys.readouterr().out


def test_only_leftovers_of_dead_processes_of_this_host_go(storage):
    host = socket.gethostname()
    names = {f".a.{host}-{os.getpid()}.tmp", f".a.elsewhere-{DEAD}.tmp", "not-an-artefact"}
    for name in (*names, f".a.{host}-{DEAD}.tmp"):
        (storage / "artefacts" / name).mkdir()
    gc(storage, "--yes")
    assert left(storage) == names


def test_an_empty_storage_has_nothing_to_remove(tmp_path, capsys):
    assert gc(tmp_path) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_the_names_are_those_that_the_store_gives(tmp_path):
    from spcl.engine.artefacts import ArtefactStore
    from spcl.engine.stages import Stage
    from spcl.store.garbage import NAME
    from spcl.store.process import this_process

    stage = Stage("statistics", "statistics of spcl", None, 1, 0, {}, {})
    with ArtefactStore(tmp_path).write(stage) as folder:
        assert folder.name == f".{stage.folder}.{this_process().label}.tmp"
    assert NAME.fullmatch(stage.folder)[1] == stage.key[:16]
    assert gc(tmp_path, "--yes") == 0 and left(tmp_path) == set()
