import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
import yaml
from conftest import MINI
from PIL import Image

from spcl import cli
from spcl.boards.aggregate import read_runs
from spcl.configuration.config import load
from spcl.data.convert import convert
from spcl.data.datasets.custom import read_description
from spcl.engine.run_config import open_run
from spcl.errors import ConfigError
from spcl.launch import default_name
from spcl.store import records
from spcl.store.checkpoint import Checkpoints
from spcl.store.run_folder import RunFolder, read_confusions
from spcl.train import main

ROOT = Path(__file__).resolve().parents[3]


def run(data: Path, storage: Path, *arguments: str) -> int:
    return cli.guarded(main, ["--data", str(data), "--storage", str(storage), *arguments, *MINI])


def states(storage: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every stored checkpoint by artefact name."""
    return {
        path.parent.name: torch.load(path, weights_only=True)["method"]
        for path in sorted(storage.glob("artefacts/*/checkpoint.pt"))
    }


def assert_equal_states(one: dict, other: dict) -> None:
    assert one.keys() == other.keys() and one
    for name, state in one.items():
        for key, value in state.items():
            assert torch.equal(value, other[name][key]), (name, key)


@pytest.fixture(scope="module")
def finished(mini_data, tmp_path_factory):
    """The SPCL recipe, run once: its storage."""
    storage = tmp_path_factory.mktemp("runs")
    assert run(mini_data, storage, "--name", "full") == 0
    return storage


def test_a_run_leaves_what_the_design_promises(finished):
    run_folder = RunFolder(finished / "full")
    done = run_folder.done
    assert [row["title"] for row in done["table"]] == ["warm-up", "adapted", "self-trained"]
    assert done["selection"] == "last" and done["protocol"] == "cityscapes19"
    manifest = run_folder.manifest
    assert manifest["label_budget"] == 0 and len(manifest["code"]) == 16
    assert {"source", "target", "evaluation"} == set(manifest["data"])
    for name in ("adversarial", "spcl", "self_training"):
        ids, matrices = read_confusions(run_folder.folder / "evaluations" / f"{name}.parquet")
        assert len(ids) == 6 and matrices.shape == (6, 19, 19)
        assert 0 < matrices.sum() <= 6 * 32 * 64
    assert list((run_folder.folder / "tensorboard").glob("events*"))
    assert not (run_folder.folder / "checkpoints").exists() or not list(
        (run_folder.folder / "checkpoints").iterdir()
    )
    with Image.open(run_folder.folder / "panel.png") as panel:
        assert panel.size[0] == 64 * 5  # image, truth, three stages


def test_stages_are_logged_in_order_with_their_losses(finished):
    stages = [line["stage"] for line in RunFolder(finished / "full").metrics()]
    assert stages == ["adversarial"] * 6 + ["spcl"] * 6 + ["self_training"] * 4
    for line in RunFolder(finished / "full").metrics():
        assert all(np.isfinite(value) for value in line["losses"].values())


def test_a_finished_command_says_so_and_does_nothing(finished, mini_data, capsys):
    before = (finished / "full" / "DONE.json").stat().st_mtime_ns
    assert run(mini_data, finished, "--name", "full") == 0
    assert "full is finished already" in capsys.readouterr().out
    assert (finished / "full" / "DONE.json").stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_run(finished, mini_data, tmp_path):
    assert run(mini_data, tmp_path, "--name", "again") == 0
    assert_equal_states(states(finished), states(tmp_path))
    one, other = (
        RunFolder(s / n).done["table"] for s, n in ((finished, "full"), (tmp_path, "again"))
    )
    assert one == other


def test_cells_of_a_table_share_stages(finished, mini_data, capsys):
    before = set(states(finished))
    assert run(mini_data, finished, "--name", "cell", "spcl.contrast_weight=0") == 0
    new = {name.rsplit("-", 1)[0] for name in set(states(finished)) - before}
    assert new == {"spcl", "self_training"}
    assert "adversarial: done before, reused" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [
        ["stages=[adversarial,spcl]"],
        ["stages=[adversarial,self_training]"],
        ["stages=[source_only,spcl]"],
        ["spcl.source_contrast=false"],
        ["spcl.target_contrast=false", "spcl.init=per_image", "spcl.source_mask=agree"],
        ["spcl.absent=decay", "spcl.normalize_keys=false", "pseudo_label.median=ref_index"],
    ],
    ids=" ".join,
)
def test_cells_of_the_component_table_and_switches_run(finished, mini_data, overrides):
    name = "cell-" + "".join(c if c.isalnum() else "-" for c in "".join(overrides))
    assert run(mini_data, finished, "--name", name, *overrides) == 0


def test_adabn_changes_the_score_and_not_the_training(mini_data, tmp_path):
    method = ("--method", "source_only")
    assert run(mini_data, tmp_path, *method, "--name", "plain") == 0
    adabn = "model.target_statistics=estimated"
    assert run(mini_data, tmp_path, *method, "--name", "adabn", adabn) == 0
    folders = sorted(p.name.rsplit("-", 1)[0] for p in (tmp_path / "artefacts").iterdir())
    assert folders.count("source_only") == 1 and "statistics-of-source_only" in folders
    tables = [RunFolder(tmp_path / n).done["table"][0]["iou"] for n in ("plain", "adabn")]
    assert tables[0] != tables[1]


def test_a_target_without_labels_is_adapted_to_and_shown(finished, mini_data, tmp_path, capsys):
    assert run(mini_data, tmp_path, "--name", "blind", "evaluation.dataset=none") == 0
    assert "not evaluated: no labelled evaluation split" in capsys.readouterr().out
    blind = RunFolder(tmp_path / "blind")
    assert blind.done["table"] == [] and blind.done["protocol"] is None
    assert "evaluation" not in blind.manifest["data"]
    assert len(states(tmp_path)) == 3 and states(tmp_path).keys() <= states(finished).keys()
    with Image.open(blind.folder / "panel.png") as panel:
        assert panel.size[0] == 64 * 4  # image, three stages; no truth


def test_a_target_without_labels_needs_no_evaluation_data(mini_data, tmp_path):
    data = shutil.copytree(mini_data, tmp_path / "data")
    shutil.rmtree(data / "streets/real/val")
    method = ("--method", "source_only", "--name", "a")
    none = ("evaluation.dataset=none", "target.dataset=own", "source.dataset=sim")
    (data / "streets/real").rename(data / "own")
    (data / "streets/sim").rename(data / "sim")
    assert run(data, tmp_path, *method, *none) == 0
    assert RunFolder(tmp_path / "a").done["images"] == 0


@pytest.fixture(scope="module")
def own_classes(tmp_path_factory) -> Path:
    """The data folder of a user with three classes: sim/train, and real/train and real/val."""
    root = tmp_path_factory.mktemp("own")
    names = ["road", "car", "person"]
    colors = np.array([(60, 60, 60), (200, 0, 0), (0, 0, 200)], np.uint8)
    splits = {
        "sim": {"train": {"role": "source", "images": "rgb/*.png", "labels": "ids/*.png"}},
        "real": {
            "train": {"role": "target", "images": "rgb/*.png"},
            "val": {"role": "eval", "images": "rgb/*.png", "labels": "ids/*.png"},
        },
    }
    for number, (name, wanted) in enumerate(splits.items()):
        for image in range(8):
            rng = np.random.default_rng([number, image])
            raw = trees.cells((64, 32), range(3), rng)
            trees.save(root / name / f"rgb/{image}.png", trees.picture(raw, colors, rng))
            trees.save(root / name / f"ids/{image}.png", raw)
        labels = {"encoding": "png8:L", "ids": dict(enumerate(names))}
        about = {"name": name, "class_names": names, "labels": labels, "splits": wanted}
        about["palette"] = colors.tolist()
        (root / f"{name}.yaml").write_text(yaml.safe_dump(about))
        for split in wanted:
            description = read_description(root / f"{name}.yaml")
            convert(description, root / name, root / "data" / name / split, split=split)
    return root / "data"


OWN = ("source.dataset=sim", "target.dataset=real", "evaluation.dataset=real")


def test_own_classes_are_trained_scored_and_shown_in_their_colours(own_classes, tmp_path, capsys):
    assert run(own_classes, tmp_path, "--name", "a", *OWN, "evaluation.protocol=all") == 0
    done = RunFolder(tmp_path / "a").done
    assert done["classes"] == ["road", "car", "person"]
    for row in done["table"]:
        assert row["means"]["mIoU"]["value"] == pytest.approx(np.mean(row["iou"]))
        assert row["means"]["mIoU"]["classes"] == 3
    with Image.open(tmp_path / "a/panel.png") as panel:
        truth = np.array(panel)[14:, 64:128].reshape(-1, 3)
    assert np.unique(truth, axis=0).tolist() == [[0, 0, 200], [60, 60, 60], [200, 0, 0]]


def test_own_classes_need_the_protocol_for_them(own_classes, tmp_path, capsys):
    assert run(own_classes, tmp_path, "--name", "a", *OWN) == 2
    err = capsys.readouterr().err
    assert "protocol cityscapes19 is made for the 19 Cityscapes classes, but real/val has" in err


def test_the_table_of_a_source_that_lacks_classes_says_what_to_report(mini_data, tmp_path, capsys):
    data = shutil.copytree(mini_data, tmp_path / "data")
    path = data / "streets/sim/train/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["metadata"] |= {"dataset": "synthia", "absent_train_ids": [9, 14, 16]}
    records.write(path, manifest)
    assert run(data, tmp_path, "--method", "source_only", "--name", "a") == 0
    done = RunFolder(tmp_path / "a").done
    means = done["table"][-1]["means"]["mIoU"]
    (note,) = done["notes"]
    assert f"mIoU over {means['classes']} = {100 * means['value']:.1f}; report syn16_full" in note
    assert note in capsys.readouterr().out
    assert note.startswith("synthia has no terrain, truck, train. ")


def test_augmentation_at_test_time_repeats_the_evaluation_alone(finished, mini_data, capsys):
    more = ("evaluation.flip=true", "evaluation.scales=[0.75,1.0]", "evaluation.window=[16,32]")
    assert run(mini_data, finished, "--name", "flipped", *more) == 0
    out = capsys.readouterr().out
    assert "self_training: done before, reused" in out and "evaluation of spcl: started" in out
    rows = [RunFolder(finished / name).done["table"] for name in ("full", "flipped")]
    assert rows[0] != rows[1]


def test_a_damaged_artefact_is_named_and_refused(mini_data, tmp_path, capsys):
    assert run(mini_data, tmp_path, "--name", "a", "stages=[adversarial]") == 0
    (path,) = tmp_path.glob("artefacts/adversarial-*/checkpoint.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert run(mini_data, tmp_path, "--name", "b", "stages=[adversarial,spcl]") == 2
    assert f"{path} is damaged or missing" in capsys.readouterr().err


def test_training_never_opens_the_labels_of_the_target(mini_data, tmp_path, monkeypatch):
    """Labels are read from the source while training, from the evaluation split after it."""
    from spcl.data.shards import ShardSet

    opened = []
    label = ShardSet.label

    def spy(self, index):
        artefacts = tmp_path / "artefacts"
        trained = len(list(artefacts.glob("self_training-*"))) if artefacts.exists() else 0
        opened.append((self.name, trained))
        return label(self, index)

    monkeypatch.setattr(ShardSet, "label", spy)
    assert run(mini_data, tmp_path, "--name", "a") == 0
    assert {name for name, _ in opened} == {"streets/sim/train", "streets/real/val"}
    assert all(trained for name, trained in opened if name == "streets/real/val")


def test_seeds_end_with_their_mean(mini_data, tmp_path, capsys):
    assert run(mini_data, tmp_path, "--method", "source_only", "--seeds", "0,3", "--name", "s") == 0
    out = capsys.readouterr().out
    assert "mean over 2 seeds, 95 % t interval" in out
    assert RunFolder(tmp_path / "s-s3").done["seed"] == 3


@pytest.mark.timeout(240)
def test_torchrun_with_two_processes_gives_nearly_the_run_of_one(finished, mini_data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "spcl.train"]
    command += ["--data", str(mini_data), "--storage", str(tmp_path), "--name", "two", *MINI]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU-tail") == 2  # the table and its last line, of rank 0 alone
    one, two = states(finished), states(tmp_path)
    assert two.keys() <= one.keys()
    for name in two:
        for key, value in two[name].items():
            assert torch.allclose(value.double(), one[name][key].double(), atol=2e-2), (name, key)
    (path,) = tmp_path.glob("artefacts/predictions-of-adversarial-*/histogram.npy")
    assert np.load(path).sum() == 16 * 32 * 64  # every pixel of every target image, once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "street"], "benchmark 'street' is unknown; did you mean 'streets'"),
        (["--method", "spcll"], "method 'spcll' is unknown; did you mean 'spcl'"),
        (["spcl.temprature=1"], "'spcl.temprature' is unknown; did you mean 'spcl.temperature'"),
        (["spcl.prototype_momentum=1.5"], "spcl.prototype_momentum must be at most 1.0, got 1.5"),
        (["stages=[spcl]"], "stage 'spcl' starts from a trained network"),
        (["stages=[adversarial,spcll]"], "stage 'spcll' is unknown; did you mean 'spcl'"),
        (["spcl.horizon=3"], "spcl.horizon must be at least spcl.steps"),
        (["train.workers=3"], "is the number of processes, 1 here, got train.workers=3"),
        (["stages=adversarial"], "stages must be a list, e.g. [a,b,...], got 'adversarial'"),
        (["--method", "sdca", "stages=[sdca]"], "try stages=[source_only,sdca]"),
        (["--method", "asanet", "asanet.neighbours=6"], "asanet.neighbours 6 is unknown; known: 8"),
        (["model.weights=imagenet"], "tiny starts from scratch: model.weights must be none"),
        (["model=deeplabv2_resnet50", "model.weights=/no.pth"], "or a file; no file at /no.pth"),
        (["--name", "leaderboard"], "--name must not be 'leaderboard'"),
        (["train.batch"], "a setting is given as key=value, got 'train.batch'"),
        (["--config", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
        (["--seeds", "4..1"], "--seeds must look like 0..4 or 0,3,5, got '4..1'"),
        (["source.dataset=gta5"], "write them with: python ray_jobs/ingest.py --dataset gta5"),
        (["train.device=cuda"], "train.device=cuda needs a GPU"),
        (["model.norm=frozen", "model.target_statistics=estimated"], "model.norm=domain"),
    ],
)
def test_bad_input_is_one_clear_line(mini_data, tmp_path, capsys, arguments, message):
    if "train.device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert run(mini_data, tmp_path, "--name", "bad", *arguments) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and message in err and "\n" not in err


def test_settings_that_no_stage_reads_are_named(mini_data, tmp_path, capsys):
    asked = ["--dry-run", "--method", "adversarial", "sdca.delta_on=logits"]
    assert run(mini_data, tmp_path, *asked) == 0
    assert "note: what sdca.* says is read by no stage of adversarial\n" in capsys.readouterr().out


def test_data_that_cannot_be_written(mini_data, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(tmp_path / "file" / "data", tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert "give --data DIR" in error and len(error.splitlines()) == 1


def test_a_name_is_of_what_can_change_a_result():
    def name(*settings):
        return default_name(load("streets", "sdca", None, settings))

    assert name("train.workers=2") == name("train.threads=1") == name("seed=3") == name()
    other = ["train.batch=8", "train.reduction=per_rank", "sdca.delta=0.5"]
    assert len({name(setting) for setting in other} | {name()}) == 4
    official = [name("compat=official", f"train.workers={n}") for n in (1, 2)]
    assert official[0] != official[1]


def test_an_official_run_of_other_workers_is_another_run(tmp_path):
    one, two = (
        load("streets", "sdca", None, ["compat=official", f"train.workers={n}"]) for n in (1, 2)
    )
    open_run(one, tmp_path, "a")
    with pytest.raises(ConfigError, match="train.workers: 1 -> 2"):
        open_run(two, tmp_path, "a")


def test_storage_that_cannot_be_written(mini_data, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(mini_data, tmp_path / "file" / "runs") == 2
    assert "results must be writable" in capsys.readouterr().err


def test_a_name_belongs_to_one_configuration(finished, mini_data, capsys):
    assert run(mini_data, finished, "--name", "full", "spcl.temperature=7") == 2
    err = capsys.readouterr().err
    assert "run 'full' exists with other settings (spcl.temperature: 0.1 -> 7.0)" in err


@pytest.fixture
def own_data(mini_data, tmp_path) -> Path:
    """A copy of the data that a test may damage."""
    return Path(shutil.copytree(mini_data, tmp_path / "data"))


def test_a_damaged_shard_is_named(own_data, tmp_path, capsys):
    shard = sorted((own_data / "streets/sim/train").glob("*.arrow"))[0]
    data = bytearray(shard.read_bytes())
    at = data.index(b"IDAT") + 20
    data[at] ^= 0xFF
    shard.write_bytes(data)
    code = run(own_data, tmp_path, "--method", "source_only", "source_only.steps=40")
    assert code == 2
    err = capsys.readouterr().err
    assert "checksum" in err and shard.name in err


def test_shards_of_another_schema_are_refused(own_data, tmp_path, capsys):
    path = own_data / "streets/sim/train/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["schema"] = 99
    path.write_text(json.dumps(manifest))
    assert run(own_data, tmp_path) == 2
    assert "99" in capsys.readouterr().err


def test_empty_shards_are_refused(own_data, tmp_path, capsys):
    for path in (own_data / "streets/sim/train").glob("*.arrow"):
        os.remove(path)
    assert run(own_data, tmp_path) == 2
    assert "streets/sim/train" in capsys.readouterr().err


def test_a_run_that_was_killed_twice_has_its_cost_on_the_board(mini_data, tmp_path, monkeypatch):
    """Once in the middle of a stage, once between its last checkpoint and its result."""
    line = ["--data", str(mini_data), "--storage", str(tmp_path), "--name", "r", *MINI]
    line += ["stages=[adversarial]"]
    save = Checkpoints.save
    for step in (4, 6):

        def killed(self, done, state, at=step):
            save(self, done, state)
            if done == at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "save", killed)
            assert cli.guarded(main, line) == 130
    (newest,) = (tmp_path / "r/checkpoints").glob("*/step-00000006/manifest.json")
    stored = json.loads(newest.read_text())["device_seconds"]
    assert cli.guarded(main, line) == 0
    (run,), _ = read_runs([tmp_path])
    assert run.device_seconds > stored > 0


def test_a_manifest_names_the_code_and_what_it_ran_on(finished):
    manifest = RunFolder(finished / "full").manifest
    found = manifest["versions"]
    names = {"python", "torch", "torchvision", "numpy", "pyarrow", "pillow", "ray", "optuna"}
    names |= {"timm", "segmentation-models-pytorch"}
    assert found.keys() == names and all(found.values())
    assert found["numpy"] == np.__version__ and found["torch"] == torch.__version__
    assert len(manifest["commit"]) == 40 and manifest["dirty"] in (True, False)
