import pytest

from spcl import cli
from spcl.runs import main
from spcl.store.run_folder import RunFolder


@pytest.fixture
def storage(tmp_path):
    for name in ("alpha", "beta"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    row = {"title": "x", "iou": [0.25], "means": {"mIoU": {"value": 0.25, "classes": 1}}}
    RunFolder(tmp_path / "alpha").finish(
        {"table": [row], "classes": ["road"], "protocol": "p", "images": 1, "selection": "last"}
    )
    RunFolder(tmp_path / "beta").fail("the loss was not finite", "TrainingError")
    return tmp_path


def call(storage, *arguments):
    return cli.guarded(main, ["--storage", str(storage), *arguments])


def test_the_storage_may_stand_after_the_command(storage, capsys):
    assert call(storage, "ls") == cli.guarded(main, ["ls", "--storage", str(storage)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_ls_says_what_is_done(storage, capsys):
    assert call(storage, "ls") == 0
    rows = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines()}
    assert rows["alpha"] == ["done", "25.0"] and rows["beta"] == ["failed", "-"]


def test_show_gives_the_table_or_the_reason(storage, capsys):
    assert call(storage, "show", "alpha") == 0
    assert "25.0" in capsys.readouterr().out
    assert call(storage, "show", "beta") == 0
    assert "failed: the loss was not finite" in capsys.readouterr().out


def test_rm_removes_one_run(storage, capsys):
    assert call(storage, "rm", "beta") == 0
    assert not (storage / "beta").exists() and (storage / "alpha").exists()


def test_an_unknown_run_names_the_nearest(storage, capsys):
    assert call(storage, "show", "alpa") == 2
    assert "run 'alpa' is unknown; did you mean 'alpha'" in capsys.readouterr().err


def test_no_runs_yet(tmp_path, capsys):
    assert call(tmp_path, "show", "x") == 2
    assert "there are no runs in" in capsys.readouterr().err
