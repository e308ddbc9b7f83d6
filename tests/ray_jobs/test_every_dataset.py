"""Every dataset from its raw files to a score, by the commands, in this process, without Ray."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees
import yaml

from ray_jobs import evaluate, ingest, train
from spcl import cli
from spcl.store.run_folder import RunFolder

SIZE = (64, 48)
STEPS = 3
SETTINGS = (
    "model=tiny",
    "source_only.steps=3",
    "train.batch=2",
    "train.threads=1",
    "train.loader_workers=0",
    "train.log_every=1",
    *(f"{role}.size=[48,64]" for role in ("source", "target", "evaluation")),
)
SOURCES: dict[str, Callable[[Path], Path]] = {
    "gta5": lambda root: trees.gta5_tree(root, 4, SIZE),
    "synthia": lambda root: trees.synthia_tree(root, 4, SIZE),
    "synscapes": lambda root: trees.synscapes_tree(root, 4),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cityscapes, converted by the command."""
    root = tmp_path_factory.mktemp("data")
    trees.cityscapes_sequences(trees.cityscapes_tree(root / "raw/cityscapes", size=SIZE))
    convert("cityscapes", root)
    return root


def convert(dataset: str, root: Path, *more: str, raw: str | None = None) -> None:
    line = ["--dataset", dataset, "--root", str(root / "raw" / (raw or dataset))]
    assert ingest.main([*line, "--out", str(root), "--workers", "0", *more]) == 0


def trained(data: Path, storage: Path, *line: str) -> RunFolder:
    places = ["--data", str(data), "--storage", str(storage), "--name", "run", "--workers", "0"]
    assert train.main([*places, *line, *SETTINGS]) == 0
    run = RunFolder(storage / "run")
    assert max(record["step"] for record in run.metrics()) == STEPS
    return run


@pytest.mark.parametrize("benchmark", SOURCES)
def test_benchmark_from_raw_files_to_a_score(
    data: Path, tmp_path: Path, benchmark: str, capsys: pytest.CaptureFixture
) -> None:
    SOURCES[benchmark](data / "raw" / benchmark)
    convert(benchmark, data)
    run = trained(data, tmp_path, "--benchmark", benchmark, "--method", "source_only")
    (row,) = run.done["table"]
    headline, counts = ("mIoU", (16, 13)) if benchmark == "synthia" else ("mIoU", (19, 11))
    assert tuple(mean["classes"] for mean in row["means"].values())[:2] == counts
    assert row["means"][headline]["value"] >= 0
    capsys.readouterr()
    line = [str(run.folder), "--data", str(data), "--workers", "0", "--split", "val_sequence"]
    convert("cityscapes", data, "--split", "val_sequence")
    assert evaluate.main([*line, "--out", str(tmp_path / "report")]) == 0
    assert f"{100 * row['means'][headline]['value']:.1f}" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train_sequence", "train_labelled"])
def test_every_form_of_the_target_can_be_adapted_to(data: Path, tmp_path: Path, split: str) -> None:
    trees.gta5_tree(data / "raw/gta5", 4, SIZE)
    convert("gta5", data)
    convert("cityscapes", data, "--split", split)
    line = ["--benchmark", "gta5", "--method", "adversarial", f"target.split={split}"]
    run = trained(data, tmp_path, *line, "adversarial.steps=3", "adversarial.discriminator_width=4")
    assert run.done["table"][0]["means"]["mIoU"]["classes"] > 0


def test_view_of_the_source_can_be_trained_on_and_is_not_scored(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trees.synscapes_tree(data / "raw/synscapes", 4)
    convert("synscapes", data, "--split", "train_2k", "--view", "64x32", "--codec", "jpeg95")
    view = "synscapes-64x32-jpeg95"
    line = ["--benchmark", "synscapes", "--method", "source_only", "source.split=train_2k"]
    trained(data, tmp_path, *line, f"source.dataset={view}")
    places = ["--data", str(data), "--storage", str(tmp_path), "--workers", "0", *SETTINGS]
    scored = [f"evaluation.dataset={view}", "evaluation.split=train_2k"]
    assert cli.guarded(train.main, [*places, *line, *scored]) == 2
    assert "is a derived view" in capsys.readouterr().err


NAMES = ["road", "car", "person"]


def custom_tree(root: Path) -> None:
    """A simulator's labelled frames and a user's photographs, three classes."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 255, (256, 3))
    for number in range(4):
        raw = trees.cells(SIZE, (0, 1, 7, 9), rng)
        trees.save(root / f"sim/rgb/{number}.png", trees.picture(raw, colors, rng))
        trees.save(root / f"sim/class/{number}.png", raw)
        raw = trees.cells(SIZE, (0, 1, 7, 9), rng)
        trees.save(root / f"cars/{number}.jpg", trees.picture(raw, colors // 2, rng))
        trees.save(root / f"cars/{number}_id.png", raw)
    ids = {"encoding": "png8:L", "ids": {0: "ignore", 1: "road", 7: "car", 9: "person"}}
    sim = {"train": {"role": "source", "images": "sim/rgb/*.png", "labels": "sim/class/*.png"}}
    cars = {
        "train": {"role": "target", "images": "cars/*.jpg"},
        "val": {"role": "eval", "images": "cars/*.jpg", "labels": "cars/*_id.png"},
    }
    for name, splits in (("my-sim", sim), ("my-cars", cars)):
        described = {"name": name, "class_names": NAMES, "labels": ids, "splits": splits}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(described))


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("custom")
    custom_tree(root / "raw")
    for name in ("my-sim", "my-cars"):
        convert(str(root / f"raw/{name}.yaml"), root, raw=".")
    return root


OWN = (
    *("--benchmark", "gta5", "source.dataset=my-sim", "target.dataset=my-cars"),
    "adversarial.steps=3",
    "adversarial.discriminator_width=4",
    "spcl.steps=3",
    "self_training.steps=3",
    "self_training.batch=2",
)


def test_own_classes_and_images_through_the_whole_recipe(custom: Path, tmp_path: Path) -> None:
    scored = ("evaluation.dataset=my-cars", "evaluation.protocol=all")
    run = trained(custom, tmp_path, *OWN, *scored)
    assert run.done["classes"] == NAMES
    assert [len(row["iou"]) for row in run.done["table"]] == [3, 3, 3]


def test_target_without_any_label_can_be_adapted_to(
    custom: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = trained(custom, tmp_path, *OWN, "evaluation.dataset=none")
    assert run.done["table"] == [] and (run.folder / "panel.png").is_file()
    assert "not evaluated" in capsys.readouterr().out
