"""Small files that are damaged in every way, through the commands that read them.

Each is named with its path and the way out (exit code 2, one line), or, where it is no part of a
result or the command only lists, it stops nothing.  Never a traceback.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import searches
import yaml
from conftest import MINI

from ray_jobs import evaluate, ingest
from spcl import cli, runs, train
from spcl.configuration.config import load
from spcl.data import inspect
from spcl.errors import ConfigError, DataError
from spcl.store import records
from spcl.store.run_folder import RunFolder
from tune import leaderboard, search, sweep
from tune.searching.agreement import candidates, is_current
from tune.searching.driver import Driver
from tune.searching.experiment import Experiment
from tune.searching.outputs import write_outputs
from tune.searching.page import report
from tune.searching.study import JOURNAL

DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "a list": lambda whole: b"[1, 2]\n",
    "not UTF-8": lambda whole: b"\xff\xfe\x00" + whole,
    "a folder": None,
}


#: A handful for `make test`, the rest with the slow tests.
FAST = ("cut", "a folder")
EVERY = [how if how in FAST else pytest.param(how, marks=pytest.mark.slow) for how in DAMAGES]
OF_FILES = [how for how in EVERY if how != "a folder"]


def damage(path: Path, how: str) -> None:
    change = DAMAGES[how]
    whole = path.read_bytes()
    if change is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(change(whole))


def call(main: Callable, *arguments: object) -> int:
    return cli.guarded(main, [str(argument) for argument in arguments])


def copied(storage: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(storage, tmp_path / "runs", symlinks=True))


def told(capsys: pytest.CaptureFixture, path: Path) -> str:
    """The one line of an error; it names the path and says what to do about it."""
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    (line,) = errors
    assert str(path) in line, line
    assert re.search("remove|restore|write .* again|leave", line), line
    return line


# Runs.


def train_again(data: Path, storage: Path, *more: str) -> int:
    places = ["--data", data, "--storage", storage, "--name", "a", "--method", "source_only"]
    return call(train.main, *places, *more, *MINI)


@pytest.fixture(scope="module")
def finished(mini_data, tmp_path_factory) -> Path:
    """A storage with two finished runs that share their stages."""
    storage = tmp_path_factory.mktemp("runs")
    assert train_again(mini_data, storage) == 0
    shutil.copytree(storage / "a", storage / "b")
    return storage


@pytest.fixture
def storage(finished, tmp_path) -> Path:
    return copied(finished, tmp_path)


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("file", ["config.yaml", "DONE.json", "manifest.json"])
def test_a_run_with_a_damaged_record_is_named_and_what_is_advised_helps(
    mini_data, storage, capsys, file, how
):
    table = RunFolder(storage / "a").done["table"]
    path = storage / "a" / file
    damage(path, how)
    capsys.readouterr()
    assert train_again(mini_data, storage) == 2
    line = told(capsys, path)
    if file != "manifest.json":  # which no evaluation reads
        again = ["a", "--storage", storage, "--data", mini_data, "--workers", 0]
        assert call(evaluate.main, *again) == 2
        told(capsys, path)
    if "spcl.runs rm a" in line:
        assert call(runs.main, "rm", "a", "--storage", storage) == 0
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train_again(mini_data, storage) == 0
    assert RunFolder(storage / "a").done["table"] == table


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("file", ["config.yaml", "DONE.json", "manifest.json", "FAILED.json"])
def test_one_damaged_run_stops_no_listing(storage, capsys, file, how):
    path = storage / "a" / file
    if file == "FAILED.json":
        RunFolder(storage / "a").fail("boom", "TrainingError")
        (storage / "a" / "DONE.json").unlink()
    damage(path, how)
    capsys.readouterr()
    assert call(runs.main, "ls", "--storage", storage) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines()}
    assert rows["b"] == "done"
    assert rows["a"] == {"DONE.json": "damaged", "FAILED.json": "failed"}.get(file, "done")
    assert file != "DONE.json" or str(path) in out

    assert call(leaderboard.main, "--storage", storage) == 0
    captured = capsys.readouterr()
    assert "1 results of 1 runs" in captured.out or file == "config.yaml"
    if file != "config.yaml":
        (line,) = captured.err.splitlines()
        assert line.startswith("not read: ") and str(storage / "a") in line and file in line

    before = sorted((storage / "artefacts").iterdir())
    assert call(runs.main, "gc", "--yes", "--storage", storage) == 0
    assert sorted((storage / "artefacts").iterdir()) == before


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("file", ["DONE.json", "manifest.json"])
def test_showing_a_damaged_run_names_the_file(storage, capsys, file, how):
    damage(storage / "a" / file, how)
    assert call(runs.main, "show", "a", "--storage", storage) == 2
    told(capsys, storage / "a" / file)
    assert call(runs.main, "show", "b", "--storage", storage) == 0


@pytest.mark.parametrize("how", EVERY)
def test_a_damaged_cost_stops_no_run(mini_data, storage, how):
    (path,) = storage.glob("artefacts/source_only-*/cost.json")
    damage(path, how)
    (storage / "a/DONE.json").unlink()
    assert train_again(mini_data, storage) == 0
    assert RunFolder(storage / "a").done["device_seconds"] == {"source_only": None}


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("file", ["FAILED.json", "lease.json"])
def test_a_run_goes_on_over_what_it_writes_anew(mini_data, storage, capsys, file, how):
    """Only a folder in the file's place must be removed by hand."""
    path = storage / "a" / file
    (storage / "a/DONE.json").unlink()
    if not path.exists():
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "error": "x"}))
    damage(path, how)
    if file == "lease.json":  # whose holder, whoever it is, has not been heard of for a while
        os.utime(path, (0, 0))
    code = train_again(mini_data, storage)
    if how == "a folder":
        assert code == 2 and str(path) in capsys.readouterr().err
        path.rmdir()
        code = train_again(mini_data, storage)
    assert code == 0 and RunFolder(storage / "a").done["table"]


@pytest.mark.parametrize("how", EVERY)
def test_a_damaged_artefact_is_named(mini_data, storage, capsys, how):
    (path,) = storage.glob("artefacts/source_only-*/manifest.json")
    damage(path, how)
    (storage / "a/DONE.json").unlink()
    shutil.rmtree(next(storage.glob("artefacts/evaluation-*")))
    assert train_again(mini_data, storage) == 2
    assert f"remove the folder {path.parent}" in told(capsys, path)
    shutil.rmtree(path.parent)
    assert train_again(mini_data, storage) == 0


def test_lines_of_a_log_that_are_no_steps_are_passed_over(storage):
    path = storage / "a/metrics.jsonl"
    steps = list(RunFolder(storage / "a").metrics())
    path.write_bytes(path.read_bytes() + b'3\n[]\n"x"\n{"step": 1}\n\xff\n{"st')
    assert steps and list(RunFolder(storage / "a").metrics()) == steps


# Splits.


@pytest.mark.parametrize("how", EVERY)
def test_a_damaged_split_is_named_and_the_others_are_listed(mini_data, tmp_path, capsys, how):
    data = Path(shutil.copytree(mini_data / "streets", tmp_path / "data/streets")).parent
    path = data / "streets/sim/train/manifest.json"
    damage(path, how)
    assert train_again(data, tmp_path / "runs") == 2
    told(capsys, path)
    assert ingest.main(["--verify", str(path.parent)]) == 2
    told(capsys, path)
    assert call(inspect.main, path.parent) == 2
    told(capsys, path)
    assert call(inspect.main, data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and sum("damaged: " in line for line in lines) == 1


# Searches.


@pytest.fixture(scope="module")
def searched(mini_data, tmp_path_factory) -> Path:
    """A storage with a finished search whose jobs have only pretended."""
    storage = tmp_path_factory.mktemp("searched")
    asked = searches.search(mini_data, storage, settings=MINI)
    asked.open()
    searches.work(Driver(asked), [0] * 99)
    for path in (asked.folder / "jobs").glob("*.json"):
        job = json.loads(path.read_text())
        about = {"artefact": f"net-{path.stem}", "steps": 1, "attempts": 1, "host": "here"}
        records.write(path, job | about | {"finished": "2026-01-01T00:00:00"})
    chosen = candidates(Experiment(asked.folder))
    numbers = [one["configuration"] for one in chosen]
    agreement = {"configuration": numbers[0], "artefacts": [one["artefact"] for one in chosen]}
    records.write(asked.folder / "agreement.json", agreement)
    write_outputs(asked.folder)
    return storage


@pytest.fixture
def again(mini_data, searched, tmp_path, monkeypatch) -> Callable[[], int]:
    """Start the finished search again; returns its exit code.  Nothing may be left to do."""
    monkeypatch.setattr(search, "_audit", lambda folder: 0)
    monkeypatch.setattr("tune.searching.outputs.report", lambda experiment: "")
    storage = copied(searched, tmp_path)
    places = ["--data", mini_data, "--storage", storage, "--name", "s"]
    what = ["--objective", "source_val", "--trials", 9, "--eta", 3]
    return lambda: call(search.run, *places, *what, *MINI)


def test_the_search_of_these_tests_is_finished(again, capsys):
    assert again() == 0
    assert "s is finished already" in capsys.readouterr().err


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("file", ["search.yaml", "jobs/0000-0.json", "jobs/reference.json"])
def test_a_damaged_record_of_a_search_is_named(again, tmp_path, capsys, file, how):
    path = tmp_path / "runs/searches/s" / file
    damage(path, how)
    assert again() == 2
    told(capsys, path)
    assert call(leaderboard.main, "--storage", tmp_path / "runs") == 0


@pytest.mark.parametrize("how", EVERY)
def test_a_damaged_pick_of_the_ensemble_is_made_again(again, tmp_path, how):
    folder = tmp_path / "runs/searches/s"
    assert is_current(Experiment(folder))
    damage(folder / "agreement.json", how)
    assert not is_current(Experiment(folder))
    with pytest.raises(DataError, match=f"{folder}/agreement.json .*remove it and search again"):
        _ = Experiment(folder).agreement


@pytest.mark.parametrize("how", EVERY)
def test_a_damaged_audit_is_named_by_the_page_of_a_search(searched, tmp_path, how):
    folder = copied(searched, tmp_path) / "searches/s"
    records.write(folder / "audit.json", {"validators": []})
    damage(folder / "audit.json", how)
    with pytest.raises(DataError, match=f"{folder}/audit.json .*remove it and audit again"):
        report(Experiment(folder))


@pytest.mark.parametrize("how", EVERY)
def test_a_damaged_journal_is_told_again_from_the_records(again, tmp_path, capsys, how):
    path = tmp_path / "runs/searches/s" / JOURNAL
    whole = path.read_bytes()
    damage(path, how)
    code = again()
    if how == "a folder":
        assert code == 2
        told(capsys, path)
        path.rmdir()
        code = again()
    assert code == 0 and "s is finished already" in capsys.readouterr().err
    assert path.read_bytes().count(b"\n") > len(whole.splitlines()) // 2


def test_a_journal_of_other_operations_is_named(again, tmp_path, capsys):
    path = tmp_path / "runs/searches/s" / JOURNAL
    path.write_bytes(b'{"op_code": 4, "worker_id": "x"}\n' + path.read_bytes())
    assert again() == 2
    told(capsys, path)
    path.unlink()
    assert again() == 0


@pytest.mark.parametrize("how", OF_FILES)
@pytest.mark.parametrize("file", ["best.yaml", "report.html", "trials.csv"])
def test_damaged_outputs_of_a_finished_search_are_written_again(again, tmp_path, file, how):
    path = tmp_path / "runs/searches/s" / file
    assert again() == 0
    whole = path.read_bytes()
    if whole:
        damage(path, how)
    assert again() == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize("how", EVERY)
def test_training_from_a_damaged_best_yaml_is_refused(mini_data, searched, tmp_path, capsys, how):
    path = copied(searched, tmp_path) / "searches/s/best.yaml"
    damage(path, how)
    places = ["--data", mini_data, "--storage", tmp_path / "runs", "--config", path]
    assert call(train.main, *places, "--dry-run", *MINI) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


def test_no_best_yaml_that_is_cut_passes_for_a_whole_one(searched, tmp_path):
    """Cut at the end of a line it would be valid YAML of fewer settings."""
    whole = (searched / "searches/s/best.yaml").read_bytes()
    path, count = tmp_path / "best.yaml", 0
    ends = [n for n in range(len(whole)) if whole[n : n + 1] == b"\n"]
    for end in ends[:-1]:
        path.write_bytes(whole[: end + 1])
        with pytest.raises(ConfigError, match=str(path)):
            load(file=path)
        count += 1
    assert count > 10
    path.write_bytes(whole)
    assert load(file=path).method == yaml.safe_load(whole)["method"]


# Sweeps.


def test_a_damaged_cell_of_a_sweep_is_named_and_made_again(mini_data, tmp_path, capsys):
    file = tmp_path / "two.yaml"
    rows = [{"name": "baseline", "settings": {"stages": ["source_only"]}}]
    file.write_text(yaml.safe_dump({"title": "Two", "method": "source_only", "rows": rows}))
    storage = tmp_path / "runs"
    line = [file, "--data", mini_data, "--storage", storage, "--name", "s", "--workers", 0]
    line += ["--seeds", "0", *(m for m in MINI if not m.startswith("stages"))]
    assert call(sweep.run, *line) == 0
    table = (storage / "sweeps/s/table.csv").read_text()
    (path,) = storage.glob("*/DONE.json")
    for how in FAST:
        damage(path, how)
        capsys.readouterr()
        assert call(sweep.run, *line) == 2
        told(capsys, path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert call(sweep.run, *line) == 0
        assert (storage / "sweeps/s/table.csv").read_text() == table


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "cut"])  # by hand, no end
def test_a_damaged_file_of_a_sweep_is_named(mini_data, tmp_path, capsys, how):
    path = tmp_path / "two.yaml"
    path.write_text("rows: []")
    damage(path, how)
    line = [path, "--data", mini_data, "--storage", tmp_path / "runs", "--dry-run", *MINI]
    assert call(sweep.run, *line) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


# Storage that can't be written.


@pytest.fixture
def read_only(finished, searched, mini_data, tmp_path):
    """Copies of finished work and of data on a file system that is mounted read-only."""
    source, place = tmp_path / "source", tmp_path / "mounted"
    shutil.copytree(finished, source / "runs")
    shutil.copytree(searched / "searches", source / "runs/searches")
    shutil.copytree(mini_data, source / "data")
    place.mkdir()
    for options in (["--bind"], ["-o", "remount,ro,bind"]):
        command = ["mount", *options, str(source), str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")
    try:
        yield place
    finally:
        # Lazily: evaluation keeps its shards mapped.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def commands_that_only_read(place: Path, elsewhere: Path) -> list[tuple[Callable, list[object]]]:
    at = ["--storage", place / "runs"]
    both = ["--data", place / "data", *at]
    sets = [part for part in MINI]
    sim = place / "data/streets/sim/train"
    return [
        (runs.main, ["ls", *at]),
        (runs.main, ["show", "a", *at]),
        (leaderboard.main, [*at, "--out", elsewhere / "boards"]),
        (train.main, [*both, "--dry-run", *sets]),
        (search.run, [*both, "--dry-run", "--trials", 9, "--eta", 3, *sets]),
        (sweep.run, ["components", *both, "--dry-run", "--seeds", "0", *sets]),
        (evaluate.run, ["a", *both, "--workers", 0, "--out", elsewhere / "report"]),
        (inspect.main, [sim, "--json"]),
        (inspect.main, [place / "data/streets"]),
        (ingest.run, ["--verify", sim]),
    ]


def test_commands_that_only_read_work_on_read_only_storage(read_only, tmp_path, capsys):
    with pytest.raises(OSError, match="Read-only"):
        (read_only / "runs/x").touch()
    for main, arguments in commands_that_only_read(read_only, tmp_path):
        assert call(main, *arguments) == 0, (main, capsys.readouterr())
    assert call(train.main, "--storage", read_only / "runs", *MINI) == 2
    assert "results must be writable" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_that_only_read_ask_for_no_probe(
    finished, mini_data, tmp_path, monkeypatch, capsys
):
    """As above, for those who may not mount: any file or folder made in the storage is an error."""
    place = tmp_path / "place"
    shutil.copytree(finished, place / "runs")
    shutil.copytree(mini_data, place / "data")
    before = sorted(os.walk(place))

    def refuse(self: Path, *_: object, **__: object) -> None:
        if place in self.parents and not self.exists():
            raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    for main, arguments in commands_that_only_read(place, tmp_path):
        if main is not evaluate.run:
            assert call(main, *arguments) == 0, (main, capsys.readouterr())
    assert sorted(os.walk(place)) == before


def test_nothing_is_made_where_only_reading_was_asked_for(tmp_path):
    assert call(runs.main, "ls", "--storage", tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
