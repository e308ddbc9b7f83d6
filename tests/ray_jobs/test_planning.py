"""Planning without data: the commands of training, on a machine that has none or a part of it.

`tests/tune/test_estimate.py` does the same with searches and sweeps.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trees

import spcl.train
from ray_jobs import ingest, train
from spcl import cli
from spcl.configuration.config import load
from spcl.engine.inputs import missing_data

ROOT = Path(__file__).resolve().parents[2]
NETWORK = ("model=tiny", "train.threads=1")
COMMANDS: dict[str, Callable] = {"ray": train.main, "plain": spcl.train.main}
UNWRITABLE = "/proc/spcl"  # nobody can make a folder there
SIZE = (64, 48)


def call(main: Callable, data: Path, storage: Path | str, *line: str) -> int:
    return cli.guarded(main, ["--data", str(data), "--storage", str(storage), *line])


def convert(dataset: str, raw: Path, data: Path, *more: str) -> None:
    line = ["--dataset", dataset, "--root", str(raw), "--out", str(data), "--workers", "0"]
    assert ingest.main([*line, *more]) == 0


@pytest.mark.parametrize(
    ("command", "data"), [("ray", "empty"), ("plain", "absent"), ("ray", UNWRITABLE)]
)
def test_a_machine_without_data_plans_from_known_facts(command, data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    asked = ["--benchmark", "synscapes", "--dry-run"]
    assert call(COMMANDS[command], tmp_path / data, UNWRITABLE, *asked) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert "source     synscapes/train, 25000 images of 1440x720, not converted yet" in lines[1]
    assert "target     cityscapes/train, 2975 images of 2048x1024, not converted yet" in lines[2]
    assert "evaluation cityscapes/val, 500 images of 2048x1024, not converted yet" in lines[3]
    rows = {line[:34].strip(): line[34:] for line in lines[5:14]}
    steps = {"adversarial": "40000", "spcl": "40000", "self_training": "20000"}
    assert {name: rows[name].split()[4] for name in steps} == steps
    assert all(int(rows[name].split()[6]) > 1000 for name in steps)  # MiB
    assert all(row.startswith("not converted yet ?") for row in rows.values()) and len(rows) == 9
    assert not re.search(r"[0-9a-f]{16}", captured.out)  # no key of data that nobody has seen
    assert "synscapes/train: register and download at https://" in captured.out
    assert "cityscapes/train, cityscapes/val: register and download at https://" in captured.out
    assert lines[-1] == "can't start yet: 2 data sets missing"
    assert sorted(tmp_path.rglob("*")) == before and not captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_start_without_data_lists_all_of_it_and_makes_nothing(command, tmp_path, capsys):
    data, storage = tmp_path / "data", tmp_path / "runs"
    assert call(COMMANDS[command], data, storage, "--benchmark", "synthia") == 2
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == f"error: no shards in {data} of 2 data sets:"
    assert [line.split(":")[0].strip() for line in lines] == [
        "synthia/train",
        "cityscapes/train, cityscapes/val",
    ]
    assert all("https://" in line and "python ray_jobs/ingest.py" in line for line in lines)
    assert not data.exists() and list(storage.iterdir()) == []


def test_nothing_is_rendered_before_a_start_is_refused(tmp_path, capsys):
    asked = ["evaluation.dataset=cityscapes", "target.dataset=cityscapes"]
    assert call(train.main, tmp_path / "data", tmp_path / "runs", *asked) == 2
    captured = capsys.readouterr()
    assert "of cityscapes/train, cityscapes/val: register" in captured.err
    assert "rendering" not in captured.err and not (tmp_path / "data").exists()


def test_a_plan_renders_nothing(tmp_path, capsys):
    assert call(train.main, tmp_path / "data", UNWRITABLE, "--dry-run", "streets.size=[32,64]") == 0
    out = capsys.readouterr().out
    assert "streets/sim/train, 600 images of 64x32, rendered on first use" in out
    assert out.splitlines()[-1].endswith("nothing was started")  # it could start
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_the_data_gives_a_part_of_the_keys(tmp_path, capsys):
    """A key that is told while other data are missing is the stage's key, not another."""
    data = tmp_path / "data"
    convert("gta5", trees.gta5_tree(tmp_path / "gta5", 3, SIZE), data)
    asked = ["--benchmark", "gta5", "--method", "source_only", "--dry-run", *NETWORK]

    def keys() -> dict[str, str]:
        capsys.readouterr()
        assert call(train.main, data, UNWRITABLE, *asked) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if "source_only" in line]
        return {row[:34].strip(): row[34:52].strip() for row in rows[1:]}

    before = keys()
    assert re.fullmatch("[0-9a-f]{16}", before["source_only"])
    assert before["evaluation of source_only"] == "not converted yet"
    raw = trees.cityscapes_tree(tmp_path / "cityscapes", size=SIZE)
    convert("cityscapes", raw, data)
    after = keys()
    assert after["source_only"] == before["source_only"]
    assert re.fullmatch("[0-9a-f]{16}", after["evaluation of source_only"])
    assert call(train.main, data, UNWRITABLE, *asked) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("nothing was started")


RAW: dict[str, Callable[[Path], Path]] = {
    "gta5": lambda root: trees.gta5_tree(root, 3, SIZE),
    "synthia": lambda root: trees.synthia_tree(root, 3, SIZE),
    "synscapes": lambda root: trees.synscapes_tree(root, 3),
    "cityscapes": lambda root: trees.cityscapes_tree(root, size=SIZE),
}
WANTED = {
    "gta5": [],
    "synthia": [],
    "synscapes": ["source.split=train_2k"],
    "gta5 ": ["source.dataset=gta5-64x48-png"],
    "gta5  ": ["target.split=train_labelled"],
    "gta5   ": ["source.dataset=streets/sim", "target.split=train", "streets.source_images=3"],
}


@pytest.mark.parametrize("benchmark", WANTED)
def test_the_lines_that_are_told_make_what_is_missing(benchmark, tmp_path, capsys, monkeypatch):
    """Who downloads the sets and copies the lines can start: nothing is missing any more."""
    data, asked = tmp_path / "data", ["--benchmark", benchmark.strip(), *WANTED[benchmark]]
    assert call(train.main, data, UNWRITABLE, *asked, "--dry-run", *NETWORK) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "ray_jobs/ingest.py" in line]
    assert told
    for line in told:
        for command in line.partition("write them with: ")[2].split(" && "):
            words = command.split()
            assert words[:2] == ["python", "ray_jobs/ingest.py"]
            raw = tmp_path / words[3]
            if not raw.exists():
                RAW[words[3]](raw)
            words = [str(raw) if word == "DIR" else word for word in words[2:]]
            assert ingest.main([*words, "--workers", "0"]) == 0
    config = load(benchmark.strip(), "spcl", None, WANTED[benchmark])
    assert [split for split in missing_data(config, data) if not split.rendered] == []


def test_of_a_users_own_sets_only_the_line_is_known(tmp_path, capsys):
    own = ["source.dataset=my-sim", "target.dataset=my-cars", "evaluation.dataset=none"]
    assert call(train.main, tmp_path, UNWRITABLE, "--benchmark", "gta5", "--dry-run", *own) == 0
    out = capsys.readouterr().out
    for name in ("my-sim", "my-cars"):
        line = f"write them with: python ray_jobs/ingest.py --dataset {name}.yaml --split train"
        assert f"  {name}/train: {line} --root DIR --out {tmp_path} (" in out
    assert re.search(r"adversarial +not converted yet \? +40000 +4 +\?\n", out)  # MiB of K classes
    assert out.splitlines()[-1] == "can't start yet: 2 data sets missing"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["source.split=trian"], "split of synscapes 'trian' is unknown; did you mean 'train'?"),
        (["source.holdout=25000"], "synscapes/train has 25000 and 25000 are to be held out"),
        (["source.dataset=cityscapes"], "source data must be labelled"),
        (["evaluation.dataset=synscapes-64x48-png", "evaluation.split=train"], "a derived view"),
        (["--workers", "3"], "must be divisible by the workers"),
    ],
)
def test_a_plan_that_no_data_could_save_is_refused(more, message, tmp_path, capsys):
    asked = ["--benchmark", "synscapes", "--dry-run", *more]
    assert call(train.main, tmp_path, UNWRITABLE, *asked) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_torchrun_plans_once_for_all_its_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "spcl.train"]
    command += ["--data", str(tmp_path), "--storage", UNWRITABLE, "--benchmark", "synscapes"]
    done = subprocess.run(
        [*command, "--dry-run", "model=tiny"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("can't start yet: 2 data sets missing") == 1
