import concurrent.futures
import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trees
from PIL import Image, JpegImagePlugin

from spcl.data import shards
from spcl.data.convert import convert
from spcl.data.loader import StoredLabels, Stream
from spcl.data.manifest import INDEX, read_manifest, write_manifest
from spcl.data.output import REPORT
from spcl.data.request import Options
from spcl.data.shards import ShardSet
from spcl.data.transforms import Augment
from spcl.data.verify import verify
from spcl.data.views import make_view, parse_codec, parse_view
from spcl.errors import DataError
from spcl.store import atomic

SIZE = (40, 26)  # width, height: of neither the shape nor a divisor of the parent's 64x48


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parent")
    raw = trees.gta5_tree(root / "raw", 20, trees.SMALL)
    convert("gta5", raw, root / "gta5/train", split="train")
    return root / "gta5/train"


def view(parent: Path, out: Path, codec: str = "png", **more) -> dict:
    more = {"name": f"gta5-40x26-{codec}", "size": SIZE} | more
    return make_view(parent, out, codec=codec, **more)


def open_(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != REPORT}


def index(folder: Path) -> list[dict]:
    return pq.read_table(folder / INDEX).to_pylist()


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["png", "webp"])
def test_images_are_the_parents_at_the_size_asked_for(parent, tmp_path, codec):
    view(parent, tmp_path / "v/train", codec)
    before, after = ShardSet(parent), ShardSet(tmp_path / "v/train")
    assert after.image_sizes.tolist() == [[26, 40]] * 20
    for n in range(len(before)):
        want = open_(before.image(n)).resize(SIZE, Image.Resampling.BICUBIC)
        got = open_(after.image(n))
        assert (got.format, got.mode) == (codec.upper(), "RGB")
        assert (np.array(got) == np.array(want)).all()


def test_labels_take_the_pixel_whose_middle_is_nearest(parent, tmp_path):
    view(parent, tmp_path / "v/train")
    before, after = ShardSet(parent), ShardSet(tmp_path / "v/train")
    for n in range(len(before)):
        native, label = np.array(open_(before.label(n))), np.array(open_(after.label(n)))
        rows = ((np.arange(26) + 0.5) * native.shape[0] / 26).astype(int)
        columns = ((np.arange(40) + 0.5) * native.shape[1] / 40).astype(int)
        assert (label == native[rows][:, columns]).all()
        assert after.class_pixels[n].tolist() == [(label == k).sum() for k in range(19)]
        assert index(after.folder)[n]["ignore_pixels"] == (label == 255).sum()


def test_a_jpeg_view_has_the_quality_asked_for_and_full_colour(parent, tmp_path):
    view(parent, tmp_path / "v/train", "jpeg95")
    exact = open_(ShardSet(parent).image(0)).resize(SIZE, Image.Resampling.BICUBIC)
    got = open_(ShardSet(tmp_path / "v/train").image(0))
    assert got.format == "JPEG" and JpegImagePlugin.get_sampling(got) == 0
    reference = io.BytesIO()
    exact.save(reference, "JPEG", quality=95)
    assert got.quantization == Image.open(reference).quantization
    error = np.array(got).astype(float) - np.array(exact)
    assert 0 < np.abs(error).mean() < 3


def test_the_frame_before_is_resized_too(parent, tmp_path):
    metadata = ShardSet(parent).metadata
    with pa.ipc.open_file(str(parent / "shard-00000.arrow")) as reader:
        pairs = reader.read_all().to_pylist()[:2]
    first, second = (row["image"] for row in pairs)
    for row, before in zip(pairs, (second, first), strict=True):
        row |= {"prev_sample_id": "x", "prev_image": before, "prev_image_crc32": zlib.crc32(before)}
    (tmp_path / "pairs").mkdir()
    written = shards.write_shard(tmp_path / "pairs/shard-00000.arrow", metadata, pairs)
    write_manifest(tmp_path / "pairs", metadata, {}, [written])
    view(tmp_path / "pairs", tmp_path / "v")
    data = ShardSet(tmp_path / "v")
    assert data.previous(0) == data.image(1) and data.previous(1) == data.image(0)


def test_training_reads_from_a_view_what_it_reads_from_the_parent(parent, tmp_path):
    view(parent, tmp_path / "v/train")
    augment = Augment((26, 40), flip=0.5)
    before, after = (
        Stream("x/source", data, augment, StoredLabels(data), 0)
        for data in (ShardSet(parent), ShardSet(tmp_path / "v/train"))
    )
    for position in range(8):
        assert before.sample_id(position) == after.sample_id(position)
        (image, label, *_), (small, small_label, *_) = map(
            lambda stream, at=position: stream.sample(at), (before, after)
        )
        assert (label == small_label).all()
        assert (image - small).abs().max() <= 1.01 / 255 / 0.224  # one grey level, normalised


# --- what is written -----------------------------------------------------------------------------


def test_a_view_says_what_it_was_made_of_and_how(parent, tmp_path):
    view(parent, tmp_path / "v/train", "jpeg90")
    before, after = ShardSet(parent), ShardSet(tmp_path / "v/train")
    assert after.name == "gta5-40x26-jpeg90/train" and after.sample_ids == before.sample_ids
    assert after.metadata.pop("view") == {
        "size": "40x26",
        "codec": "jpeg90",
        "kernel": "bicubic",
        "label_kernel": "nearest",
        "library": f"Pillow {Image.__version__}",
        "parent": "gta5/train",
        "parent_fingerprint": before.fingerprint,
        "parent_manifest_sha256": atomic.sha256(parent / "manifest.json"),
    }
    changed = {k for k, v in after.metadata.items() if v != before.metadata[k]}
    assert changed == {"name", "dataset"}


def test_all_other_columns_are_the_parents(parent, tmp_path):
    view(parent, tmp_path / "v/train")
    with pa.ipc.open_file(str(tmp_path / "v/train/shard-00001.arrow")) as reader:
        row = reader.read_all().to_pylist()[0]
    before = next(r for r in index(parent) if r["sample_id"] == row["sample_id"])
    assert {k for k in before if before[k] != row.get(k)} - {"shard", "batch", "row"} == {
        "dataset",
        "height",
        "width",
        "label_height",
        "label_width",
        "class_pixels",
        "ignore_pixels",
        "source_image_sha256",
        "label_sha256",
        "image_crc32",
        "label_crc32",
    }


def test_a_view_is_a_split_that_verifies(parent, tmp_path):
    report = view(parent, tmp_path / "v/train")
    manifest = verify(tmp_path / "v/train")
    assert manifest["rows"] == report["converted"] == 20
    assert manifest["image_sizes"] == {"40x26": 20}
    assert json.loads((tmp_path / f"v/train/{REPORT}").read_text()) == report


def test_shards_hold_the_samples_of_the_parents_shards(parent, tmp_path):
    view(parent, tmp_path / "v/train")
    rows = [[e["rows"] for e in read_manifest(f)["shards"]] for f in (parent, tmp_path / "v/train")]
    assert rows[0] == rows[1] and len(rows[0]) == 8


@pytest.mark.parametrize("split", ["train", "train_labelled"])
def test_the_fingerprint_is_of_the_views_pixels(tmp_path, split):
    raw = trees.cityscapes_tree(tmp_path / "raw", size=trees.SMALL)
    before = convert("cityscapes", raw, tmp_path / "cityscapes" / split, split=split)
    sizes = {"a": SIZE, "b": SIZE, "c": (40, 27)}
    found = {
        n: view(tmp_path / "cityscapes" / split, tmp_path / n / split, size=size)["fingerprint"]
        for n, size in sizes.items()
    }
    assert found["a"] == found["b"] != found["c"]
    assert before["fingerprint"] not in found.values()
    assert ShardSet(tmp_path / "a" / split).labelled == (split == "train_labelled")


def test_output_is_the_same_for_any_number_and_order_of_workers(parent, tmp_path):
    def backwards(function: Callable, tasks: list) -> list:
        return [function(task) for task in reversed(tasks)]

    seen = []
    view(parent, tmp_path / "one", progress=lambda *pair: seen.append(pair))
    view(parent, tmp_path / "two", map_tasks=backwards)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        view(parent, tmp_path / "three", map_tasks=pool.map)
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")
    assert len(seen) == 8 and seen[-1] == (20, 20)


def test_a_task_survives_pickling(parent, tmp_path):
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        view(parent, tmp_path / "v", map_tasks=pool.map)
    assert len(ShardSet(tmp_path / "v")) == 20


# --- again, otherwise, and mistakes --------------------------------------------------------------


def test_second_request_does_nothing(parent, tmp_path):
    first = view(parent, tmp_path / "v")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "v").iterdir()}
    second = view(parent, tmp_path / "v")
    assert (first["status"], second["status"]) == ("done", "unchanged")
    assert second["fingerprint"] == first["fingerprint"]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "v").iterdir()} == before


def test_other_parameters_are_refused_unless_told_to_overwrite(parent, tmp_path):
    view(parent, tmp_path / "v", name="v")
    with pytest.raises(DataError, match="codec png there, jpeg95 here.*--overwrite"):
        view(parent, tmp_path / "v", "jpeg95", name="v")
    with pytest.raises(DataError, match="size 40x26 there, 26x40 here"):
        view(parent, tmp_path / "v", name="v", size=(26, 40))
    view(parent, tmp_path / "v", "jpeg95", name="v", overwrite=True)
    assert ShardSet(tmp_path / "v").metadata["view"]["codec"] == "jpeg95"
    assert os.listdir(tmp_path) == ["v"]


def test_a_parent_converted_anew_from_other_files_is_another_parent(tmp_path):
    raw = trees.gta5_tree(tmp_path / "raw", 3, trees.SMALL)
    convert("gta5", raw, tmp_path / "parent", split="train")
    view(tmp_path / "parent", tmp_path / "v")
    trees.set_pixel(raw / "labels/00002.png", 7)
    convert("gta5", raw, tmp_path / "parent", split="train", options=Options(overwrite=True))
    with pytest.raises(DataError, match="other inputs .*parent_manifest_sha256"):
        view(tmp_path / "parent", tmp_path / "v")


def test_no_view_is_made_of_a_view(parent, tmp_path):
    view(parent, tmp_path / "v")
    with pytest.raises(DataError, match="is a view already; .* gta5/train"):
        view(tmp_path / "v", tmp_path / "w", size=(20, 13))


def test_a_view_never_replaces_its_parent(parent):
    with pytest.raises(DataError, match="a folder of its own"):
        view(parent, parent, overwrite=True)


def test_a_damaged_view_is_mended_by_the_command_that_made_it(parent, tmp_path):
    for name, codec in (("gta5-40x26-png", "png"), ("my/gta-40x26-jpeg95", "jpeg95")):
        out = tmp_path / name / "train"
        view(parent, out, codec, name=name)
        (out / "shard-00003.arrow").unlink()
        with pytest.raises(DataError) as error:
            ShardSet(out)
        assert str(error.value).endswith(
            f"python ray_jobs/ingest.py --dataset gta5 --split train --view 40x26 --codec {codec} "
            f"--out {tmp_path} --overwrite"
        )


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_other_files_is_left_alone(parent, tmp_path, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years")
    with pytest.raises(DataError, match="holds files"):
        view(parent, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out/thesis.tex").exists()


def test_a_damaged_sample_of_the_parent_is_named_and_nothing_is_left(tmp_path):
    raw = trees.gta5_tree(tmp_path / "raw", 3, trees.SMALL)
    convert("gta5", raw, tmp_path / "parent", split="train")
    shard = tmp_path / "parent/shard-00001.arrow"
    trees.flip_byte(shard, shard.read_bytes().index(b"IDAT") + 500)
    with pytest.raises(DataError, match="sample gta5/00002: image checksum mismatch"):
        view(tmp_path / "parent", tmp_path / "out/v")
    assert os.listdir(tmp_path / "out") == []


def test_a_failed_overwrite_keeps_the_old_view(parent, tmp_path):
    def breaking(function: Callable, tasks: list):
        yield function(tasks[0])
        raise OSError("disk full")

    view(parent, tmp_path / "v")
    before = files(tmp_path / "v")
    with pytest.raises(OSError, match="disk full"):
        view(parent, tmp_path / "v", "jpeg95", overwrite=True, map_tasks=breaking)
    assert files(tmp_path / "v") == before and os.listdir(tmp_path) == ["v"]


def test_a_size_is_width_by_height():
    assert parse_view("1280x720") == (1280, 720)


@pytest.mark.parametrize(
    "text", ["1280", "1280x0", "0x720", "1280X720", "-1x2", "1280x720x3", "16384x9", ""]
)
def test_another_size_is_an_error(text):
    with pytest.raises(DataError, match=f"WIDTHxHEIGHT .* as 1280x720; got '{text}'"):
        parse_view(text)


@pytest.mark.parametrize(
    "text", ["jpeg", "jpeg0", "jpeg101", "jpeg095", "JPEG95", "gif", "webp90", ""]
)
def test_another_codec_is_an_error(text):
    with pytest.raises(DataError, match=f"jpeg<quality> .* png or webp; got '{text}'"):
        parse_codec(text)
