"""Hand-written boards."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from spcl.boards.ranking import Board
from spcl.boards.rows import Row

NASTY = "<script>document.title='broken'</script>\"'&|`*[x](javascript:alert(1))"

OURS = Row(
    key="a",
    method="spcl",
    backbone="tiny",
    selection="last",
    label_budget=0,
    iou=(0.75, 0.25, None),
    mean=0.5,
    low=0.45,
    high=0.55,
    means={"mIoU": 0.5, "mIoU-tail": 0.25},
    seeds=(0, 1, 2),
    device_hours=1.5,
    date="2026-11-21",
    code=("0123456789abcdef",),
    runs=(),
    rank=1,
    group="without target labels",
    badges=("last",),
    published=False,
    note="",
    seed_interval=(0.46, 0.54),
    image_interval=(0.47, 0.53),
)
PUBLISHED = replace(
    OURS,
    key="p",
    method="FADA",
    backbone="vgg16",
    selection="",
    mean=0.438,
    low=None,
    high=None,
    means={"mIoU": 0.438},
    seeds=(),
    device_hours=None,
    date="",
    code=(),
    rank=None,
    group="",
    badges=("published", "mean disagrees"),
    published=True,
    note="arXiv:2111.12358 Table 1",
    seed_interval=None,
    image_interval=None,
)


def board(folder: Path) -> Board:
    """Four rows by value; two runs of the first lie in `folder`, one with a panel."""
    runs = [folder / "spcl #1 of 'x'", folder / "spcl-s1"]
    for run in runs:
        run.mkdir(parents=True)
        (run / "DONE.json").write_text("{}")
    Image.new("RGB", (64, 32), (200, 30, 30)).save(runs[0] / "panel.png")
    rows = [
        replace(OURS, key="o", method="source_only", selection="target_oracle",
                label_budget=100, mean=0.6, low=None, high=None,
                means={"mIoU": 0.6, "mIoU-tail": 0.1}, seeds=(0,),
                badges=("target_oracle", "target labels"),
                iou=(0.2, 0.9, None), group="with target labels"),
        replace(OURS, runs=tuple(map(str, runs))),
        PUBLISHED,
        replace(OURS, key="n", method=NASTY, mean=0.09, low=0.08, high=0.1, rank=2,
                means={"mIoU": 0.09, "mIoU-tail": 0.05}, badges=(NASTY,), note=NASTY,
                selection=NASTY, runs=(f"s3://bucket/{NASTY}",)),
    ]  # fmt: skip
    classes = ("road", "rider", NASTY)
    return Board("streets", "cityscapes19", classes, rows, [f"{NASTY}: other size"], 0.021)
