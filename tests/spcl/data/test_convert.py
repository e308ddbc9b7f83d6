import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import trees
from PIL import Image, ImageFile

from spcl.data import shards
from spcl.data.convert import convert
from spcl.data.datasets import DATASETS, Release
from spcl.data.datasets.gta5 import GTA5
from spcl.data.labels import CITYSCAPES_IDS, GTA5_IDS, lookup_table
from spcl.data.output import REPORT
from spcl.data.request import Options
from spcl.data.shard_task import plan_shards
from spcl.data.shards import ShardSet
from spcl.data.verify import verify
from spcl.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def gta5(tmp_path: Path) -> Path:
    return trees.gta5_tree(tmp_path / "raw", 3, trees.SMALL)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    return trees.cityscapes_tree(tmp_path / "raw", size=trees.SMALL)


def files(folder: Path) -> dict[str, bytes]:
    """Everything but the report, which holds the clock."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != REPORT}


def visible(folder: Path) -> list[str]:
    """What a user sees in a folder; shards in the making are hidden."""
    return [name for name in os.listdir(folder) if not name.startswith(".")]


def decoded(data: ShardSet, index: int) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data.label(index))))


def rows(folder: Path) -> list[dict]:
    found = []
    for path in sorted(folder.glob("*.arrow")):
        with pa.ipc.open_file(str(path)) as reader:
            found += reader.read_all().to_pylist()
    return found


# --- planning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[5] * 3, [1] * 100, [1000, 1, 1, 1, 1, 1, 1, 1, 1, 1], [7]])
def test_shards_cover_all_samples_in_order_and_none_is_empty(sizes: list[int]) -> None:
    plan = plan_shards(sizes, shard_bytes=10**6)
    assert [n for bounds in plan for n in bounds] == list(range(len(sizes)))
    assert len(plan) == min(len(sizes), 8) and all(plan)


def test_shards_are_of_about_the_size_asked_for() -> None:
    plan = plan_shards([3] * 1000, shard_bytes=100)
    assert len(plan) == 30
    assert max(map(len, plan)) - min(map(len, plan)) <= 1


# --- what is written -----------------------------------------------------------------------------


def test_gta5_labels_are_the_train_ids_of_their_indices(gta5: Path, tmp_path: Path) -> None:
    convert("gta5", gta5, tmp_path / "out", split="train")
    data = ShardSet(tmp_path / "out")
    for index, path in enumerate(sorted((gta5 / "labels").iterdir())):
        expected = lookup_table(GTA5_IDS)[trees.load(path)]
        assert (decoded(data, index) == expected).all()
        assert data.class_pixels[index].sum() == (expected != 255).sum()
    assert Image.open(io.BytesIO(data.label(0))).mode == "L"


def test_rows_say_what_was_read(gta5: Path, tmp_path: Path) -> None:
    convert("gta5", gta5, tmp_path / "out", split="train")
    row = rows(tmp_path / "out")[1]
    image, label = gta5 / "images/00002.png", gta5 / "labels/00002.png"
    mapped = lookup_table(GTA5_IDS)[trees.load(label)]
    assert row["source_image_path"] == "images/00002.png"
    assert row["source_image_sha256"] == hashlib.sha256(image.read_bytes()).digest()
    assert row["source_label_sha256"] == hashlib.sha256(label.read_bytes()).digest()
    assert row["label_sha256"] == hashlib.sha256(mapped.tobytes()).digest()
    assert row["ignore_pixels"] == (mapped == 255).sum()
    assert (row["domain_role"], row["flags"], row["image_format"]) == ("source", [], "png")


def test_cityscapes_splits_have_their_roles_and_labels(cityscapes: Path, tmp_path: Path) -> None:
    found = {}
    for split in ("train", "val", "test", "train_labelled"):
        convert("cityscapes", cityscapes, tmp_path / split, split=split)
        row = rows(tmp_path / split)[0]
        found[split] = (row["domain_role"], row["label"] is not None, row["sample_id"])
    name = "cityscapes/train/aachen/aachen_000000_000019"
    assert found == {
        "train": ("target", False, name),
        "val": ("eval", True, "cityscapes/val/frankfurt/frankfurt_000000_000294"),
        "test": ("eval", False, "cityscapes/test/berlin/berlin_000000_000019"),
        "train_labelled": ("target", True, name),
    }
    assert (row["sequence_id"], row["frame_index"]) == ("aachen_000000", 19)


def test_unlabelled_split_needs_no_label_files(cityscapes: Path, tmp_path: Path) -> None:
    shutil.rmtree(cityscapes / "gtFine")
    assert convert("cityscapes", cityscapes, tmp_path / "out", split="train")["converted"] == 4


def test_derived_train_ids_are_accepted_and_said(cityscapes: Path, tmp_path: Path) -> None:
    other = trees.cityscapes_tree(tmp_path / "b", size=trees.SMALL, labels=["labelTrainIds"])
    ids = convert("cityscapes", cityscapes, tmp_path / "out/a", split="val")
    derived = convert("cityscapes", other, tmp_path / "out/b", split="val")
    assert derived["fingerprint"] == ids["fingerprint"]
    assert derived["checks"]["label_files"]["messages"] == [
        "gtFine/val has no files of labelIds; the files of trainIds in gtFine/val are used instead"
    ]
    assert ShardSet(tmp_path / "out/b").metadata["raw_encoding"] == "png8:L trainIds"


def test_shipped_ids_win_where_both_kinds_lie(tmp_path: Path) -> None:
    both = ["labelIds", "labelTrainIds"]
    raw = trees.cityscapes_tree(tmp_path / "raw", size=trees.SMALL, labels=both)
    assert convert("cityscapes", raw, tmp_path / "out", split="val")["checks"] == {}
    assert ShardSet(tmp_path / "out").metadata["raw_encoding"] == "png8:L labelIds"


def test_given_name_stands_for_the_datasets(cityscapes: Path, tmp_path: Path) -> None:
    convert(
        "cityscapes",
        cityscapes,
        tmp_path / "out",
        split="val",
        options=Options(name="streets/real"),
    )
    data = ShardSet(tmp_path / "out")
    assert data.name == "streets/real/val"
    assert data.sample_ids[0] == "streets/real/val/frankfurt/frankfurt_000000_000294"


def test_gta5_sorted_into_sub_folders_is_the_same_set(gta5: Path, tmp_path: Path) -> None:
    flat = convert("gta5", gta5, tmp_path / "out/a", split="train")
    for name in ("images", "labels"):
        (gta5 / name / "train/01").mkdir(parents=True)
        (gta5 / name / "00002.png").rename(gta5 / name / "train/01/00002.png")
    nested = convert("gta5", gta5, tmp_path / "out/b", split="train")
    assert nested["fingerprint"] == flat["fingerprint"] and nested["checks"] == {}


def test_output_is_the_same_in_any_order_of_tasks(gta5: Path, tmp_path: Path) -> None:
    def backwards(function: Callable, tasks: list) -> list:
        return [function(task) for task in reversed(tasks)]

    trees.shorten_label(gta5 / "labels/00002.png")
    convert("gta5", gta5, tmp_path / "out/a", split="train")
    convert("gta5", gta5, tmp_path / "out/b", split="train", map_tasks=backwards)
    assert files(tmp_path / "out/a") == files(tmp_path / "out/b")


def test_progress_reaches_the_number_of_samples(gta5: Path, tmp_path: Path) -> None:
    seen = []
    trees.shorten_label(gta5 / "labels/00002.png")
    convert("gta5", gta5, tmp_path / "out", split="train", progress=lambda *pair: seen.append(pair))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- what the checks find ------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["labelIds"], ["labelIds", "labelTrainIds"]])
def test_no_check_fires_on_clean_trees(tmp_path: Path, labels: list[str]) -> None:
    trees.gta5_tree(tmp_path / "gta5", 6)
    trees.cityscapes_tree(tmp_path / "cityscapes", labels=labels)
    for dataset, split in (
        ("gta5", "train"),
        ("cityscapes", "train_labelled"),
        ("cityscapes", "val"),
    ):
        report = convert(
            dataset, tmp_path / dataset, tmp_path / f"out/{split}-{dataset}", split=split
        )
        assert report["checks"] == {}


def lose_data(path: Path) -> None:
    """Half the pixels, in chunks that are all whole."""
    data = path.read_bytes()
    start = data.index(b"IDAT") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    body = data[start + 4 : start + 8 + length // 2]
    cut = struct.pack(">I", length // 2) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:start] + cut + data[-12:])  # and the end marker


def few_bits(path: Path) -> None:
    trees.save_grey_of_few_bits(path, trees.load(path) % 16, 4)


def add_alpha(path: Path) -> None:
    Image.open(path).convert("RGBA").save(path)


def deepen(path: Path) -> None:
    trees.save_rgb16(path, trees.load(path).astype(np.uint16) * 257)


def copy_below(path: Path) -> None:
    (path.parent / "again").mkdir()
    shutil.copy(path, path.parent / "again" / path.name)


IMAGE, LABEL = "images/00002.png", "labels/00002.png"
LEFT_OUT = {
    "label of fewer rows": (
        trees.shorten_label,
        LABEL,
        "size_mismatch",
        "image 64x48, label 64x42",
    ),
    "half-size image": (lambda p: trees.blank(p, True), IMAGE, "size_mismatch", "image 32x24"),
    "no label": (Path.unlink, LABEL, "missing_partner", "images 3, labels 2: no label for 00002;"),
    "no image": (Path.unlink, IMAGE, "missing_partner", "images 2, labels 3: no image for 00002;"),
}
NOTED = {
    "stray file": (
        trees.add_derived,
        LABEL,
        "ignored_file",
        r"1 files matching \*_labelTrainIds.png",
    ),
    "one class": (trees.single_class, LABEL, "single_class", "fewer than two classes; kept"),
    "constant image": (trees.blank, IMAGE, "blank_image", "constant image; kept .*--drop-blank"),
}
REFUSED = {
    "half an image": (
        trees.truncate,
        IMAGE,
        "damaged_file",
        "is truncated after 4.% of its rows.* extract this file",
    ),
    "half a label": (trees.truncate, LABEL, "damaged_file", "is truncated"),
    "empty image": (lambda p: p.write_bytes(b""), IMAGE, "damaged_file", "is empty"),
    "no PNG": (lambda p: p.write_bytes(b"GIF89a"), IMAGE, "damaged_file", "is not a PNG file"),
    "flipped byte": (lambda p: trees.flip_byte(p, 2000), IMAGE, "damaged_file", "damaged chunk"),
    "lost data": (lose_data, IMAGE, "damaged_file", "cannot be decoded .*truncated"),
    "alpha": (add_alpha, IMAGE, "image_encoding", "is 8-bit RGBA PNG, expected 8-bit RGB"),
    "16 bits": (deepen, IMAGE, "image_encoding", "is 16-bit RGB PNG, expected 8-bit RGB"),
    "colours": (trees.recolor, LABEL, "label_encoding", "is 8-bit RGB PNG, expected 8-bit palette"),
    "few bits": (few_bits, LABEL, "label_encoding", "is 4-bit grey PNG, expected .*by 17 and save"),
    "unknown id": (lambda p: trees.set_pixel(p, 99), LABEL, "unknown_id", r"value 99 .*\(0..34\)"),
    "void as 255": (lambda p: trees.set_pixel(p, 255), LABEL, "unknown_id", "value 255 is not in"),
    "train ids": (trees.to_train_ids, LABEL, "label_space", "1 of 3 labels hold trainIds"),
    "two of a name": (copy_below, IMAGE, "duplicate_name", "have the same name 00002"),
}


@pytest.mark.parametrize("case", LEFT_OUT | NOTED)
def test_defect_is_reported_once_and_the_rest_converted(
    gta5: Path, tmp_path: Path, case: str
) -> None:
    damage, path, check, message = (LEFT_OUT | NOTED)[case]
    damage(gta5 / path)
    report = convert("gta5", gta5, tmp_path / "out", split="train")
    assert report["converted"] == len(ShardSet(tmp_path / "out")) == 3 - (case in LEFT_OUT)
    assert list(report["checks"]) == [check] and report["checks"][check]["count"] == 1
    assert re.search(message, report["checks"][check]["messages"][0])


@pytest.mark.parametrize("case", REFUSED)
def test_defect_is_an_error_and_nothing_is_written(
    gta5: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other libraries do
    damage, path, check, message = REFUSED[case]
    damage(gta5 / path)
    out = tmp_path / "data/train"
    with pytest.raises(DataError, match=f"gta5/train was not converted: .*{message}"):
        convert("gta5", gta5, out, split="train")
    report = json.loads((tmp_path / f"data/train.{REPORT}").read_text())
    assert list(report["checks"]) == [check] and report["checks"][check]["count"] == 1
    assert visible(out.parent) == [f"train.{REPORT}"]


def test_all_problems_are_collected(gta5: Path, tmp_path: Path) -> None:
    trees.truncate(gta5 / "images/00001.png")
    trees.recolor(gta5 / "labels/00001.png")
    trees.set_pixel(gta5 / "labels/00002.png", 99)
    with pytest.raises(DataError, match=f"truncated.*RGB.*value 99.*{REPORT}"):
        convert("gta5", gta5, tmp_path / "out", split="train")
    checks = json.loads((tmp_path / f"out.{REPORT}").read_text())["checks"]
    assert set(checks) == {"damaged_file", "label_encoding", "unknown_id"}


def test_report_of_a_failure_goes_when_the_next_try_succeeds(gta5: Path, tmp_path: Path) -> None:
    whole = (gta5 / IMAGE).read_bytes()
    trees.truncate(gta5 / IMAGE)
    with pytest.raises(DataError):
        convert("gta5", gta5, tmp_path / "out", split="train")
    (gta5 / IMAGE).write_bytes(whole)
    convert("gta5", gta5, tmp_path / "out", split="train")
    assert not (tmp_path / f"out.{REPORT}").exists()


@pytest.mark.parametrize("case", LEFT_OUT)
def test_mismatches_are_errors_on_request(gta5: Path, tmp_path: Path, case: str) -> None:
    damage, path, _, message = LEFT_OUT[case]
    damage(gta5 / path)
    with pytest.raises(DataError, match=message):
        convert("gta5", gta5, tmp_path / "out", split="train", options=Options(on_mismatch="error"))


def test_blank_images_are_left_out_on_request(gta5: Path, tmp_path: Path) -> None:
    trees.blank(gta5 / IMAGE)
    report = convert(
        "gta5", gta5, tmp_path / "out", split="train", options=Options(drop_blank=True)
    )
    assert report["converted"] == 2 and report["checks"]["blank_image"]["severity"] == "skip"


def test_gaps_are_told_as_ranges(tmp_path: Path) -> None:
    raw = trees.gta5_tree(tmp_path / "raw", 9, trees.SMALL)
    for number in (2, 3, 4, 7):
        (raw / f"labels/{number:05d}.png").unlink()
    report = convert("gta5", raw, tmp_path / "out", split="train")
    (message,) = report["checks"]["missing_partner"]["messages"]
    assert "images 9, labels 5: no label for 00002-00004, 00007;" in message


def test_wrong_kind_of_labels_is_found_before_the_work(tmp_path: Path) -> None:
    raw = trees.gta5_tree(tmp_path / "raw", 20, trees.SMALL)
    for path in (raw / "labels").iterdir():
        trees.to_train_ids(path)

    def never(function: Callable, tasks: list) -> list:
        raise AssertionError("started")

    with pytest.raises(DataError, match="none of 8 samples looked at.* all 8 labels hold trainIds"):
        convert("gta5", raw, tmp_path / "out", split="train", map_tasks=never)


def test_train_ids_that_never_use_255_are_recognised(gta5: Path, tmp_path: Path) -> None:
    for path in (gta5 / "labels").iterdir():
        trees.save(path, trees.load(path) % 19, trees.GTA5_PALETTE)
    with pytest.raises(DataError, match="none of 3 labels has an id above 18"):
        convert("gta5", gta5, tmp_path / "out", split="train")


def test_label_ids_under_the_name_of_train_ids_are_recognised(tmp_path: Path) -> None:
    raw = trees.cityscapes_tree(tmp_path / "raw", size=trees.SMALL)
    for path in list(raw.glob("gtFine/val/*/*_labelIds.png")):
        path.rename(str(path).replace("_labelIds", "_labelTrainIds"))
    with pytest.raises(DataError, match="all 2 labels hold labelIds .*expected trainIds"):
        convert("cityscapes", raw, tmp_path / "out", split="val")


def test_licence_plate_is_an_id_of_gta5_only(cityscapes: Path, tmp_path: Path) -> None:
    label = next(cityscapes.glob("gtFine/val/munster/*_labelIds.png"))
    trees.set_pixel(label, 34, None)
    with pytest.raises(DataError, match=r"value 34 is not in the table of labelIds \(0..33\)"):
        convert("cityscapes", cityscapes, tmp_path / "out", split="val")
    assert 34 not in CITYSCAPES_IDS


def test_wrong_root_is_told_with_what_it_holds(cityscapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder images, it holds gtFine, leftImg8bit; gta5"):
        convert("gta5", cityscapes, tmp_path / "out", split="train")
    with pytest.raises(DataError, match="no folder .*nowhere"):
        convert("gta5", tmp_path / "nowhere", tmp_path / "out", split="train")
    with pytest.raises(DataError, match="no split 'val'; it has train"):
        convert("gta5", cityscapes, tmp_path / "out", split="val")


# --- all or nothing ------------------------------------------------------------------------------


def test_exception_midway_leaves_no_result(gta5: Path, tmp_path: Path) -> None:
    def breaking(function: Callable, tasks: list):
        yield function(tasks[0])
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        convert("gta5", gta5, tmp_path / "data/out", split="train", map_tasks=breaking)
    assert visible(tmp_path / "data") == []


KILLED = """
import os, signal
from pathlib import Path
from spcl.data.convert import convert
def killing(function, tasks):
    yield function(tasks[0])
    half = tasks[1].path.with_name(tasks[1].path.name + ".1234.tmp")
    half.write_bytes(b"ARROW1")
    os.kill(os.getpid(), signal.SIGKILL)
convert("gta5", Path({root!r}), Path({out!r}), split="train", map_tasks=killing)
"""


def test_killed_conversion_is_continued_to_the_same_bytes(gta5: Path, tmp_path: Path) -> None:
    out = tmp_path / "data/out"
    script = KILLED.format(root=str(gta5), out=str(out))
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert visible(out.parent) == []
    part = out.parent / ".out.part"
    before = (part / "shard-00000.arrow").stat()
    report = convert("gta5", gta5, out, split="train")
    assert report["shards_from_before"] == 1
    assert (out / "shard-00000.arrow").stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(out.parent) == ["out"]
    convert("gta5", gta5, tmp_path / "whole", split="train")
    assert files(out) == files(tmp_path / "whole")


def test_finished_shards_of_a_refused_set_are_used_when_it_is_mended(
    gta5: Path, tmp_path: Path
) -> None:
    whole = (gta5 / IMAGE).read_bytes()
    trees.flip_byte(gta5 / IMAGE, 2000)  # the size stays
    with pytest.raises(DataError, match="damaged chunk"):
        convert("gta5", gta5, tmp_path / "out", split="train")
    (gta5 / IMAGE).write_bytes(whole)
    report = convert("gta5", gta5, tmp_path / "out", split="train")
    assert report["shards_from_before"] == 2
    convert("gta5", gta5, tmp_path / "whole", split="train")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("change", ["drop_blank", "damaged"])
def test_shards_of_another_conversion_are_not_taken_up(
    gta5: Path, tmp_path: Path, change: str
) -> None:
    trees.truncate(gta5 / IMAGE)
    with pytest.raises(DataError):
        convert("gta5", gta5, tmp_path / "out", split="train")
    trees.gta5_tree(gta5, 3, trees.SMALL)
    if change == "damaged":
        trees.flip_byte(tmp_path / ".out.part/shard-00000.arrow", 2000)
    options = Options(drop_blank=change == "drop_blank")
    report = convert("gta5", gta5, tmp_path / "out", split="train", options=options)
    assert report["shards_from_before"] == (1 if change == "damaged" else 0)
    verify(tmp_path / "out")


def test_second_request_does_nothing(gta5: Path, tmp_path: Path) -> None:
    first = convert("gta5", gta5, tmp_path / "out", split="train")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    second = convert("gta5", gta5, tmp_path / "out", split="train")
    assert (first["status"], second["status"]) == ("done", "unchanged")
    assert second["fingerprint"] == first["fingerprint"]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


def test_other_inputs_are_refused_unless_told_to_overwrite(gta5: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("gta5", gta5, out, split="train")
    trees.gta5_tree(gta5, 5, trees.SMALL)
    with pytest.raises(DataError, match="files 3 there, 5 here.* --out or replace .*--overwrite"):
        convert("gta5", gta5, out, split="train")
    convert("gta5", gta5, out, split="train", options=Options(overwrite=True))
    assert len(ShardSet(out)) == 5
    assert {p.name for p in tmp_path.iterdir()} == {"out", "raw"}


def test_files_of_another_size_are_other_inputs(gta5: Path, tmp_path: Path) -> None:
    convert("gta5", gta5, tmp_path / "out", split="train")
    trees.blank(gta5 / IMAGE)
    with pytest.raises(DataError, match="the same number of files, of other names or sizes"):
        convert("gta5", gta5, tmp_path / "out", split="train")


def test_second_of_two_conversions_waits_and_finds_it_done(
    gta5: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    second = []

    def slowly(function: Callable, tasks: list) -> list:
        thread.start()
        thread.join(timeout=0.3)
        assert not second  # it waits for us
        return [function(task) for task in tasks]

    def again() -> None:
        second.append(convert("gta5", gta5, tmp_path / "out", split="train")["status"])

    thread = threading.Thread(target=again)
    convert("gta5", gta5, tmp_path / "out", split="train", map_tasks=slowly)
    thread.join(timeout=20)
    assert second == ["unchanged"]
    assert "waiting for another conversion" in capsys.readouterr().err


def test_failed_overwrite_keeps_the_old_shards(gta5: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("gta5", gta5, out, split="train")
    before = files(out)
    trees.truncate(gta5 / IMAGE)
    with pytest.raises(DataError, match="truncated"):
        convert("gta5", gta5, out, split="train", options=Options(overwrite=True))
    assert files(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_other_files_is_left_alone(gta5: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years")
    with pytest.raises(DataError, match="holds files"):
        convert("gta5", gta5, tmp_path / "out", split="train", options=Options(overwrite=overwrite))
    assert (tmp_path / "out/thesis.tex").exists()


def test_verify_names_each_file_that_changed(gta5: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("gta5", gta5, out, split="train")
    assert verify(out)["rows"] == 3
    trees.flip_byte(out / "shard-00000.arrow", 3000)
    (out / "shard-00002.arrow").unlink()
    with pytest.raises(DataError, match="2 files .*shard-00000.arrow has another.*00002.* missing"):
        verify(out)


def test_shard_whose_samples_are_all_left_out_is_not_kept(gta5: Path, tmp_path: Path) -> None:
    trees.shorten_label(gta5 / LABEL)
    convert("gta5", gta5, tmp_path / "out", split="train")
    named = [entry["name"] for entry in shards.read_manifest(tmp_path / "out")["shards"]]
    assert named == sorted(p.name for p in (tmp_path / "out").glob("*.arrow"))
    assert named == ["shard-00000.arrow", "shard-00002.arrow"]
    data = ShardSet(tmp_path / "out")
    assert data.image(1) == (gta5 / "images/00003.png").read_bytes()


def test_manifest_adds_up(gta5: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("gta5", gta5, out, split="train")
    manifest, data = shards.read_manifest(out), ShardSet(out)
    assert manifest["rows"] == sum(entry["rows"] for entry in manifest["shards"]) == 3
    assert manifest["bytes"] == sum(p.stat().st_size for p in out.glob("*.arrow"))
    assert manifest["class_pixels"] == data.class_pixels.sum(0).tolist()
    assert manifest["class_images"] == [3] * 19
    assert manifest["image_sizes"] == {"64x48": 3}


def test_altered_samples_of_a_shard_are_named(gta5: Path, tmp_path: Path) -> None:
    convert("gta5", gta5, tmp_path / "out", split="train", options=Options(shard_bytes=10**9))
    shard = tmp_path / "out/shard-00001.arrow"
    image = (gta5 / IMAGE).read_bytes()
    trees.flip_byte(shard, shard.read_bytes().index(image) + 100)
    with pytest.raises(DataError, match=r"00001.arrow has another .*\(altered: gta5/00002\)"):
        verify(tmp_path / "out")


# --- the published release -----------------------------------------------------------------------


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the release of GTA5 is another one."""

    def pretend(**facts: object) -> None:
        whole = {"images": 3, "sizes": frozenset({trees.SMALL}), "class_images": (3,) * 19}
        releases = {"train": Release(**whole | facts)}
        monkeypatch.setitem(DATASETS, "gta5", dataclasses.replace(GTA5, releases=releases))

    return pretend


def test_whole_release_is_recognised(gta5: Path, tmp_path: Path, release: Callable) -> None:
    release()
    report = convert("gta5", gta5, tmp_path / "out", split="train", options=Options(golden=True))
    assert report["differs_from_release"] == {}


def test_labels_that_are_left_out_count_as_part_of_the_release(
    gta5: Path, tmp_path: Path, release: Callable
) -> None:
    release()
    trees.blank(gta5 / IMAGE, True)  # as 15188 of the real one
    report = convert("gta5", gta5, tmp_path / "out", split="train", options=Options(golden=True))
    assert report["converted"] == 2 and report["class_images"] == [2] * 19
    assert report["differs_from_release"] == {}


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"images": 4}, "images: 3, expected 4"),
        ({"class_images": (3,) * 18 + (2,)}, "class_images: .*3], expected .*2]"),
    ],
)
def test_other_than_the_release_is_noted_and_an_error_on_request(
    gta5: Path, tmp_path: Path, release: Callable, fact: dict, message: str
) -> None:
    release(**fact)
    report = convert("gta5", gta5, tmp_path / "note", split="train")
    assert list(report["differs_from_release"]) == [message.split(":")[0]]
    for out in ("out", "note"):  # also where it is converted already
        with pytest.raises(DataError, match=f"not the release that was published: .*{message}"):
            convert("gta5", gta5, tmp_path / out, split="train", options=Options(golden=True))
    assert not (tmp_path / "out").exists()


def test_image_of_a_size_nobody_has_reported_is_noted_only(
    gta5: Path, tmp_path: Path, release: Callable
) -> None:
    release(sizes=frozenset({(9, 9)}))
    report = convert("gta5", gta5, tmp_path / "out", split="train", options=Options(golden=True))
    assert report["differs_from_release"] == {"image_sizes": [["9x9"], {"64x48": 3}]}


def test_golden_counts_are_those_of_the_two_releases() -> None:
    """datasets' published statistics: 24966 and 9400 images, 19 and 16 classes."""
    gta5, synthia = DATASETS["gta5"].releases["train"], DATASETS["synthia"].releases["train"]
    assert (gta5.images, gta5.class_images[0], gta5.class_images[16]) == (24966, 24795, 1128)
    assert sum(gta5.class_images) == 328428
    sixteen = [n for n in synthia.class_images if n]
    assert (synthia.images, len(sixteen), sixteen[9], sum(sixteen)) == (9400, 16, 8841, 134495)
    assert [k for k, n in enumerate(synthia.class_images) if not n] == [9, 14, 16]


# --- lists ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        "val/munster/munster_000173_000019_leftImg8bit.png",
        "munster/munster_000173_000019_leftImg8bit.png\n",
        "munster_000173_000019\n",
        "munster/munster_000173_000019",
    ],
)
def test_lists_of_every_code_base_are_read(cityscapes: Path, tmp_path: Path, lines: str) -> None:
    (tmp_path / "val.txt").write_text(lines)
    report = convert(
        "cityscapes",
        cityscapes,
        tmp_path / "out",
        split="val",
        options=Options(only=tmp_path / "val.txt"),
    )
    data = ShardSet(tmp_path / "out")
    assert data.sample_ids == ["cityscapes/val/munster/munster_000173_000019"]
    assert data.metadata["split_source"]["list"]["name"] == "val.txt" and report["checks"] == {}


def test_list_of_other_names_is_refused(gta5: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("00001.png\n00099.png")
    with pytest.raises(DataError, match=r"list.txt names 1 images .*\(00099.png\)"):
        convert(
            "gta5",
            gta5,
            tmp_path / "out",
            split="train",
            options=Options(only=tmp_path / "list.txt"),
        )


# --- what the data sets bring besides -------------------------------------------------------------


def test_frame_before_is_stored_with_its_successor(cityscapes: Path, tmp_path: Path) -> None:
    trees.cityscapes_sequences(cityscapes)
    convert("cityscapes", cityscapes, tmp_path / "out", split="val_sequence")
    data = ShardSet(tmp_path / "out")
    before = "leftImg8bit_sequence/val/frankfurt/frankfurt_000000_000293_leftImg8bit.png"
    assert data.previous(0) == (cityscapes / before).read_bytes() != data.image(0)
    row = rows(tmp_path / "out")[0]
    assert row["prev_sample_id"] == "cityscapes/val/frankfurt/frankfurt_000000_000293"
    assert (row["frame_index"], row["prev_frame_index"]) == (294, 293)


def test_frames_before_are_part_of_the_fingerprint(cityscapes: Path, tmp_path: Path) -> None:
    trees.cityscapes_sequences(cityscapes)
    one = convert("cityscapes", cityscapes, tmp_path / "one", split="val_sequence")
    trees.blank(next(cityscapes.glob("leftImg8bit_sequence/val/*/*_000293_*")))
    two = convert("cityscapes", cityscapes, tmp_path / "two", split="val_sequence")
    assert one["fingerprint"] != two["fingerprint"]


def test_facts_about_a_synscapes_frame_are_kept(tmp_path: Path) -> None:
    root = trees.synscapes_tree(tmp_path / "raw", 2)
    (root / "meta/2.json").unlink()
    convert("synscapes", root, tmp_path / "out", split="train")
    first, second = rows(tmp_path / "out")
    assert json.loads(first["extra_json"])["scene"] == {"sun": 1.5}
    assert second["extra_json"] is None


def test_larger_images_of_synscapes_keep_the_labels_own_size(tmp_path: Path) -> None:
    root = trees.synscapes_tree(tmp_path / "raw", 2)
    convert("synscapes", root, tmp_path / "out", split="train_2k")
    row, data = rows(tmp_path / "out")[0], ShardSet(tmp_path / "out")
    assert (row["width"], row["height"]) == (256, 128)
    assert (row["label_width"], row["label_height"]) == (180, 90)
    assert data.metadata["label_size"] == "its own"
