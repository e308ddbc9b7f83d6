"""From the raw files of a user's GTA5 and Cityscapes to a table, by the README's commands."""

import pytest
from trees import cityscapes_tree, gta5_tree

from spcl.store.run_folder import RunFolder

STEPS = 2  # per stage: a ResNet-50 takes seconds for each on a CPU
SETTINGS = (
    "model=deeplabv2_resnet50",
    "model.weights=none",
    *(f"{role}.size=[128,256]" for role in ("source", "target", "evaluation")),
    *(f"{stage}.steps={STEPS}" for stage in ("adversarial", "spcl", "self_training")),
    "train.batch=2",
    "self_training.batch=2",
    "train.threads=1",
    "train.loader_workers=0",
)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_downloaded_folders_to_the_table(tmp_path, cluster, commands):
    gta5_tree(tmp_path / "gta5", n=4)
    cityscapes_tree(tmp_path / "cityscapes")
    data, runs = tmp_path / "data", tmp_path / "runs"
    for dataset in ("gta5", "cityscapes"):
        line = ["--dataset", dataset, "--root", str(tmp_path / dataset), "--out", str(data)]
        done = commands.run(["python", "ray_jobs/ingest.py", *line], cluster.environment)
        assert done.code == 0, done.err
    line = ["--benchmark", "gta5", *SETTINGS]
    line += ["--data", str(data), "--storage", str(runs), "--name", "mine"]
    done = commands.start(["python", "ray_jobs/train.py", *line], cluster.environment)
    done.finish(500)
    assert done.code == 0, done.err
    assert "mIoU-tail" in done.out and "adapted" in done.out
    table = RunFolder(runs / "mine").done["table"]
    assert [row["stage"] for row in table] == ["adversarial", "spcl", "self_training"]
    assert (runs / "mine" / "panel.png").is_file()
    line = ["mine", "--data", str(data), "--storage", str(runs), "--export-server"]
    done = commands.run(["python", "ray_jobs/evaluate.py", *line], cluster.environment)
    assert done.code == 0, done.err
    assert f"{100 * table[-1]['means']['mIoU']['value']:.1f}" in done.out
    exported = sorted(path.name for path in (runs / "mine/reports").rglob("server/*.png"))
    assert [name[:23] for name in exported] == [
        "frankfurt_000000_000294",
        "munster_000173_000019_l",
    ]
