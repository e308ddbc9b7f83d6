import os
import subprocess
import sys
from pathlib import Path

import pytest
import trees

from ray_jobs import ingest
from spcl.data import convert as convert_module
from spcl.data.shards import ShardSet

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def gta5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SPCL_DATA", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return trees.gta5_tree(tmp_path / "raw", 12, trees.SMALL)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    return trees.cityscapes_tree(tmp_path / "cs", size=trees.SMALL)


def run(dataset: str, root: Path, out: Path, *more: str) -> int:
    argv = ["--dataset", dataset, "--root", str(root), "--out", str(out), "--workers", "0"]
    return ingest.main([*argv, *more])


def test_default_place_is_the_data_folder_of_the_environment(
    gta5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPCL_DATA", str(tmp_path / "data"))
    assert ingest.main(["--dataset", "gta5", "--root", str(gta5), "--workers", "0"]) == 0
    assert ShardSet(tmp_path / "data/gta5/train").name == "gta5/train"


def test_all_splits_that_are_there_are_converted(
    cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("cityscapes", cityscapes, tmp_path / "data") == 0
    assert sorted(os.listdir(tmp_path / "data/cityscapes")) == ["test", "train", "val"]
    assert "cityscapes/train: 4 samples in 4 shards" in capsys.readouterr().out


def test_target_labels_are_written_on_request_and_apart(cityscapes: Path, tmp_path: Path) -> None:
    assert run("cityscapes", cityscapes, tmp_path, "--split", "train", "--with-labels") == 0
    assert not ShardSet(tmp_path / "cityscapes/train").labelled
    assert ShardSet(tmp_path / "cityscapes/train_labelled").labelled


def test_named_set_has_its_own_place(gta5: Path, tmp_path: Path) -> None:
    assert run("gta5", gta5, tmp_path / "data", "--name", "streets/sim") == 0
    assert ShardSet(tmp_path / "data/streets/sim/train").sample_ids[0] == "streets/sim/00001"


def test_what_was_left_out_is_said(
    gta5: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trees.shorten_label(gta5 / "labels/00003.png")
    assert run("gta5", gta5, tmp_path / "data") == 0
    said = capsys.readouterr().out
    assert "11 samples" in said
    assert "size_mismatch: 1, left out (images/00003.png: image 64x48, label 64x42" in said
    assert "the release has 62 such pairs" in said


def test_second_run_says_that_nothing_was_done(
    gta5: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run("gta5", gta5, tmp_path / "data")
    assert run("gta5", gta5, tmp_path / "data") == 0
    assert "there already, made from the same; nothing done" in capsys.readouterr().out


def test_verify_tells_whole_from_damaged(
    gta5: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run("gta5", gta5, tmp_path / "data")
    folder = tmp_path / "data/gta5/train"
    assert ingest.main(["--verify", str(folder)]) == 0
    trees.flip_byte(folder / "shard-00003.arrow", 2000)
    assert ingest.main(["--verify", str(folder)]) == 2
    assert "shard-00003.arrow has another sha256" in capsys.readouterr().err


MISTAKES = {
    "no root": (["--dataset", "gta5"], "--dataset and --root are needed"),
    "missing root": (["--dataset", "gta5", "--root", "/nowhere"], "no folder /nowhere; gta5 must"),
    "wrong root": (["--dataset", "gta5", "--root", "/usr"], "/usr has no folder images, it holds"),
    "dataset": (["--dataset", "gta", "--root", "/"], "'gta' is unknown; did you mean 'gta5'?"),
    "split": (
        ["--dataset", "cityscapes", "--root", "/", "--split", "tran"],
        "did you mean 'train'?",
    ),
    "option": (["--datset", "gta5"], "--datset"),
    "workers": (["--dataset", "gta5", "--root", "/", "--workers", "-1"], "0 or more, got -1"),
    "labels": (["--dataset", "gta5", "--root", "/", "--with-labels"], "leave it away"),
    "verify": (["--verify", "/nowhere/gta5/train"], "no shards in /nowhere/gta5/train; write them"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_one_line_and_exit_code_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPCL_DATA", str(tmp_path))
    argv, message = MISTAKES[case]
    assert ingest.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_inside_a_job_relative_and_default_places_are_refused(
    gta5: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert ingest.main(["--dataset", "gta5", "--root", str(gta5)]) == 2
    assert "--out must be absolute" in capsys.readouterr().err
    assert ingest.main(["--dataset", "gta5", "--root", "raw", "--out", "/data"]) == 2
    assert "--root must be absolute" in capsys.readouterr().err


def test_interrupted_conversion_is_continued_by_the_same_command(
    gta5: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert_module.write_task

    def interrupted(task: convert_module.Task) -> convert_module.Done:
        if task.shard == 2:
            raise KeyboardInterrupt
        return whole(task)

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "write_task", interrupted)
        assert run("gta5", gta5, tmp_path / "data") == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    assert os.listdir(tmp_path / "data/gta5") == [".train.part"]
    assert run("gta5", gta5, tmp_path / "data") == 0
    assert "2 shards were there from an earlier try" in capsys.readouterr().out
    assert os.listdir(tmp_path / "data/gta5") == ["train"]


def test_without_workers_ray_is_never_imported(gta5: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom ray_jobs.ingest import main\n"
        f"assert main(['--dataset', 'gta5', '--root', {str(gta5)!r}, '--out', "
        f"{str(tmp_path / 'data')!r}, '--workers', '0']) == 0\n"
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True, timeout=60)


def test_address_where_nothing_listens_is_told_at_once(
    gta5: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more = ["--workers", "1", "--address", "127.0.0.1:9"]
    assert run("gta5", gta5, tmp_path / "data", *more) == 2
    assert "no Ray cluster answers at 127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_two_ray_workers_write_the_same_bytes_as_none(gta5: Path, tmp_path: Path) -> None:
    trees.shorten_label(gta5 / "labels/00003.png")
    run("gta5", gta5, tmp_path / "one")
    argv = ["--dataset", "gta5", "--root", gta5, "--out", tmp_path / "two", "--workers", "2"]
    script = REPOSITORY / "ray_jobs/ingest.py"
    subprocess.run([sys.executable, script, *argv], check=True, cwd=tmp_path, timeout=100)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / where / "gta5/train").iterdir()}
        for where in ("one", "two")
    )
    del one["conversion_report.json"], two["conversion_report.json"]
    assert one == two and "manifest.json" in one
