import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trees
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from conftest import MINI
from PIL import Image

from ray_jobs import evaluate
from spcl import cli
from spcl.boards.aggregate import read_runs
from spcl.boards.ranking import make_boards
from spcl.data.convert import convert
from spcl.data.labels import CLASS_NAMES, TRAIN_ID_COLORS, TRAIN_TO_LABEL_ID
from spcl.store.run_folder import RunFolder, read_confusions
from spcl.train import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def storage(mini_data, tmp_path_factory) -> Path:
    """Of a finished run on `streets`, the first stage of the recipe."""
    folder = tmp_path_factory.mktemp("runs")
    line = ["--data", str(mini_data), "--storage", str(folder), "--name", "mini"]
    steps = ("adversarial.steps=40", "train.log_every=40", "train.checkpoint_every=40")
    assert main([*line, *MINI, *steps, "stages=[adversarial,self_training]"]) == 0
    return folder


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory) -> Path:
    """A miniature of Cityscapes: its raw files, and converted in data/."""
    root = trees.cityscapes_tree(tmp_path_factory.mktemp("raw"), val=3, size=(128, 64))
    for split in ("val", "test"):
        convert("cityscapes", root, root / "data/cityscapes" / split, split=split)
    return root


def run(data: Path, storage: Path, *more: object) -> int:
    line = ["mini", "--data", data, "--storage", storage, "--workers", "0", *more]
    return evaluate.main([*map(str, line)])


def test_a_report_on_the_runs_own_split_repeats_the_runs_numbers(
    storage, mini_data, tmp_path, capsys
):
    before = (storage / "mini/DONE.json").read_bytes()
    for stage in ("self_training", "adversarial"):
        assert run(mini_data, storage, "--stage", stage) == 0
        report = storage / f"mini/reports/{stage}-streets-real-val"
        ids, matrices = read_confusions(report / "confusions.parquet")
        own = read_confusions(storage / f"mini/evaluations/{stage}.parquet")
        assert ids == own[0] and np.array_equal(matrices, own[1])
    rows = RunFolder(storage / "mini").done["table"]
    assert json.loads((report / "evaluation.json").read_text())["table"] == rows[:1]
    assert "IoU in %, 6 images, protocol cityscapes19" in capsys.readouterr().out
    assert (storage / "mini/DONE.json").read_bytes() == before


def test_the_official_evaluator_gives_our_iou_on_the_exported_files(
    storage, cityscapes, tmp_path, monkeypatch
):
    out = tmp_path / "report"
    more = ("--dataset", "cityscapes", "--export-server", "--out", out)
    assert run(cityscapes / "data", storage, *more) == 0
    monkeypatch.setattr(official.args, "predictionPath", str(out / "server"))
    monkeypatch.setattr(official.args, "predictionWalk", None)
    for name, value in (("evalInstLevelScore", False), ("JSONOutput", False), ("quiet", True)):
        monkeypatch.setattr(official.args, name, value)
    truths = sorted(map(str, cityscapes.glob("gtFine/val/*/*_gtFine_labelIds.png")))
    found = [official.getPrediction(official.args, truth) for truth in truths]
    assert len(found) == 3 == len(list((out / "server").iterdir()))
    theirs = official.evaluateImgLists(found, truths, official.args)["classScores"]
    (ours,) = json.loads((out / "evaluation.json").read_text())["table"]
    assert len(set(ours["iou"])) > 2  # more than zeros
    for name, value in zip(CLASS_NAMES, ours["iou"], strict=True):
        assert value == pytest.approx(theirs[name], abs=1e-12), name


def test_a_report_on_another_data_set_is_a_row_of_the_generalisation_board(storage, cityscapes):
    assert run(cityscapes / "data", storage, "--dataset", "cityscapes") == 0
    runs, problems = read_runs([storage / "mini"])
    assert problems == []
    (board,) = (b for b in make_boards(runs) if b.benchmark == "generalisation from streets")
    (row,) = board.rows
    report = storage / "mini/reports/self_training-cityscapes-val/evaluation.json"
    (said,) = json.loads(report.read_text())["table"]
    assert row.method == "spcl on cityscapes/val" and row.rank is None  # one seed
    assert row.mean == pytest.approx(said["means"]["mIoU"]["value"])


def test_without_labels_there_are_files_and_no_table(storage, cityscapes, tmp_path, capsys):
    out = tmp_path / "report"
    more = ("--dataset", "cityscapes", "--split", "test", "--out", out)
    assert run(cityscapes / "data", storage, *more, "--predictions", "--export-server") == 0
    assert "mIoU" not in capsys.readouterr().out
    assert not (out / "confusions.parquet").exists()
    name = "berlin_000000_000019"
    pixels = {
        kind: np.array(Image.open(out / path))
        for kind, path in {
            "train_ids": f"predictions/train_ids/berlin/{name}.png",
            "color": f"predictions/color/berlin/{name}.png",
            "server": f"server/{name}_labelIds.png",
        }.items()
    }
    assert pixels["train_ids"].shape == (64, 128)  # the image's own; the network read 32x64
    assert np.array_equal(pixels["server"], TRAIN_TO_LABEL_ID[pixels["train_ids"]])
    assert np.array_equal(pixels["color"], TRAIN_ID_COLORS[pixels["train_ids"]])


def test_what_was_asked_for_names_the_report_and_a_second_one_takes_its_place(storage, mini_data):
    more = ("--flip", "--scales", "0.5,1", "--window", "16x32", "--protocol", "syn16_masked")
    for _ in range(2):
        assert run(mini_data, storage, *more) == 0
    name = "self_training-streets-real-val-syn16_masked-flip-scales-0.5-1-window-16x32"
    report = json.loads((storage / "mini/reports" / name / "evaluation.json").read_text())
    assert report["settings"]["scales"] == [0.5, 1.0] and report["settings"]["flip"]
    assert report["table"][0]["means"]["mIoU"]["classes"] <= 16
    assert not list((storage / "mini/reports").glob(".*"))


def same_files(one: Path, two: Path) -> list[str]:
    """Names of the files below `one`, each of which `two` has with the same bytes."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(p.relative_to(two)) for p in two.rglob("*") if p.is_file())
    assert filecmp.cmpfiles(one, two, names, shallow=False)[1:] == ([], [])
    return names


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(240)
def test_two_ray_workers_report_what_one_process_does(
    storage, mini_data, tmp_path, cluster, commands
):
    more = ["--dataset", "streets/sim", "--split", "train", "--analysis", "--predictions"]
    more += ["--size", "8x16"]  # few pixels: t-SNE takes seconds for thousands
    assert run(mini_data, storage, *more, "--out", tmp_path / "none") == 0
    script = [sys.executable, "ray_jobs/evaluate.py", "mini", "--data", mini_data]
    more += ["--storage", storage, "--workers", 2, "--out", tmp_path / "two"]
    command = commands.run([*script, *more], cluster.environment)
    assert command.code == 0, command.err
    names = same_files(tmp_path / "none", tmp_path / "two")
    assert "confusions.parquet" in names and "analysis/tsne.png" in names
    assert len(names) == 5 + 2 * 24  # pictures of every image


def test_without_workers_ray_is_never_imported(storage, mini_data, tmp_path):
    line = ["mini", "--data", str(mini_data), "--storage", str(storage), "--workers", "0"]
    script = (
        "import sys\nfrom ray_jobs.evaluate import main\n"
        f"assert main({[*line, '--out', str(tmp_path / 'out')]!r}) == 0\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True, timeout=60)


MISTAKES = {
    "run": (["minni"], "run 'minni' is unknown; did you mean 'mini'?"),
    "stage": (["mini", "--stage", "spcl"], "stage 'spcl' is unknown; known: adversarial, self_"),
    "dataset": (["mini", "--dataset", "acdc"], "no shards in"),
    "protocol": (["mini", "--protocol", "syn19"], "evaluation.protocol 'syn19' is unknown"),
    "scales": (
        ["mini", "--scales", "1,big"],
        "evaluation.scales must be a list, e.g. [a,b,...]",
    ),
    "scale 0": (["mini", "--scales", "0"], "evaluation.scales must be at least 0.1, got 0.0"),
    "window": (["mini", "--window", "512"], "--window must be height x width like 512x1024"),
    "workers": (["mini", "--workers", "-1"], "--workers must be 0 or more, got -1"),
    "option": (["mini", "--flipp", "1"], "did you mean --flip?"),
    "no labels": (["mini", "--dataset", "streets/real", "--split", "train"], "has no labels, so"),
    "analysis": (
        ["mini", "--dataset", "streets/real", "--split", "train", "--analysis"],
        "--analysis needs labels, and streets/real/train has none",
    ),
    "server": (
        ["mini", "--dataset", "streets/sim", "--split", "train", "--export-server"],
        "the server wants names like berlin_000000_000019",
    ),
    "out": (["mini", "--out", str(REPOSITORY / "tests")], "tests holds files that are no report"),
    "address": (
        ["mini", "--workers", "1", "--address", "127.0.0.1:9"],
        "no Ray cluster answers at 127.0.0.1:9",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(case, storage, mini_data, capsys):
    argv, message = MISTAKES[case]
    places = ["--data", str(mini_data), "--storage", str(storage)]
    assert evaluate.main([*places, *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_run_that_is_not_finished_is_refused(storage, mini_data, tmp_path, capsys):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini/config.yaml").write_bytes((storage / "mini/config.yaml").read_bytes())
    assert run(mini_data, tmp_path) == 2
    assert "run mini is not finished; run the command that started it" in capsys.readouterr().err


def test_a_network_that_was_removed_or_damaged_is_refused(storage, mini_data, tmp_path, capsys):
    subprocess.run(["cp", "-r", storage, tmp_path / "runs"], check=True)
    (path,) = (tmp_path / "runs/artefacts").glob("self_training-*/checkpoint.pt")
    trees.flip_byte(path, 500)
    assert run(mini_data, tmp_path / "runs") == 2
    assert f"{path} is damaged or missing" in capsys.readouterr().err
    for file in path.parent.iterdir():
        os.remove(file)
    assert run(mini_data, tmp_path / "runs") == 2
    assert "the network of stage 'self_training' is gone" in capsys.readouterr().err


def test_a_folder_names_a_run_too(storage, mini_data, tmp_path):
    line = [storage / "mini", "--data", mini_data, "--workers", "0", "--out", tmp_path / "report"]
    assert cli.guarded(evaluate.main, [*map(str, line)]) == 0
    assert (tmp_path / "report/evaluation.json").is_file()


def test_inside_a_job_relative_places_are_refused(storage, capsys, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert evaluate.main(["mini", "--data", "data", "--storage", str(storage)]) == 2
    assert "--data must be absolute" in capsys.readouterr().err
