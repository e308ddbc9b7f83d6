import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trees

from spcl.data import shards
from spcl.data.columns import schema
from spcl.data.convert import convert
from spcl.data.manifest import INDEX, MANIFEST, data_fingerprint
from spcl.data.request import Options
from spcl.data.shards import ShardSet
from spcl.errors import DataError
from spcl.store import records

SAMPLES = 20


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.gta5_tree(tmp_path_factory.mktemp("raw"), SAMPLES, trees.SMALL)


@pytest.fixture
def folder(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One shard of two record batches."""
    monkeypatch.setattr("spcl.data.shard_task.MIN_SHARDS", 1)
    convert("gta5", raw, tmp_path / "gta5/train", split="train")
    return tmp_path / "gta5/train"


def flip(path: Path, position: int) -> None:
    trees.flip_byte(path, position)


def edit_manifest(folder: Path, **values: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(records.seal(json.loads(path.read_text()) | values)))


def test_image_bytes_come_back_as_found(folder: Path, raw: Path) -> None:
    data = ShardSet(folder)
    found = [data.image(index) for index in range(len(data))]
    assert found == [path.read_bytes() for path in sorted((raw / "images").iterdir())]


def test_view_agrees_with_the_files(folder: Path, raw: Path) -> None:
    data = ShardSet(folder)
    assert (data.name, data.labelled, len(data)) == ("gta5/train", True, SAMPLES)
    assert data.sample_ids[:2] == ["gta5/00001", "gta5/00002"]
    sizes = [trees.load(path).shape[:2] for path in sorted((raw / "images").iterdir())]
    assert data.image_sizes.dtype == np.int32 and data.image_sizes.tolist() == list(
        map(list, sizes)
    )
    assert data.class_pixels.shape == (SAMPLES, 19) and data.class_pixels.dtype == np.int32
    assert data.metadata["licence"] and data.metadata["class_names"][0] == "road"


def test_shard_file_is_plain_arrow_with_the_schema(folder: Path) -> None:
    with pa.ipc.open_file(pa.memory_map(str(folder / "shard-00000.arrow"))) as reader:
        assert reader.schema.equals(schema(19))
        assert [reader.get_batch(n).num_rows for n in range(2)] == [16, 4]
        described = reader.schema.metadata
    assert json.loads(described[b"seg.schema_version"]) == 1
    assert not {b"seg.created_utc", b"seg.host"} & set(described)


def test_index_has_every_column_but_the_images(folder: Path) -> None:
    names = set(pq.read_schema(folder / INDEX).names)
    assert set(schema(19).names) - names == {"image", "label", "prev_image"}
    assert names - set(schema(19).names) == {"shard", "batch", "row"}


def test_pickled_view_opens_its_own_files(folder: Path) -> None:
    data = ShardSet(folder)
    image = data.image(3)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.image(3) == image and copy.sample_ids == data.sample_ids


def test_a_process_lets_go_of_what_it_has_read(
    folder: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mapped shards count as a process's memory: without this, all it ever read would."""
    image = (raw / "images/00001.png").read_bytes()
    monkeypatch.setattr(shards, "MAPPED_BYTES", 2 * (len(image) + shards.FAULT_BYTES))
    data = ShardSet(folder)
    mapped = []
    for _ in range(6):
        assert data.image(0) == image
        mapped.append(str(folder) in Path("/proc/self/maps").read_text())
    assert mapped == [True, True, False] * 2


@pytest.mark.parametrize("column", ["image", "label"])
def test_flipped_byte_is_an_error_that_names_sample_and_file(folder: Path, column: str) -> None:
    path = folder / "shard-00000.arrow"
    payload = getattr(ShardSet(folder), column)(7)
    flip(path, path.read_bytes().index(payload) + len(payload) // 2)
    data = ShardSet(folder)
    with pytest.raises(
        DataError, match=rf"gta5/00008: {column} checksum .*{path}.*expected \w{{8}}"
    ):
        getattr(data, column)(7)
    assert data.image(6) and data.label(8)  # its neighbours are fine


def test_damage_between_the_images_never_gives_wrong_bytes(folder: Path) -> None:
    path = folder / "shard-00000.arrow"
    whole, data = path.read_bytes(), ShardSet(folder)
    expected = [data.image(0), data.image(SAMPLES - 1)]
    errors = 0
    for position in [*range(0, 4000, 97), *range(len(whole) - 3000, len(whole), 97)]:
        path.write_bytes(whole)
        flip(path, position)
        data = ShardSet(folder)
        try:
            assert [data.image(0), data.image(SAMPLES - 1)] == expected
        except DataError as error:
            assert str(path) in str(error)
            errors += 1
    assert errors


def test_truncated_shard_is_named_when_opened(folder: Path) -> None:
    trees.truncate(folder / "shard-00000.arrow")
    with pytest.raises(
        DataError, match="shard-00000.arrow has .* the manifest says .* --overwrite"
    ):
        ShardSet(folder)


def test_shard_truncated_after_opening_is_an_error_not_a_crash(folder: Path) -> None:
    data = ShardSet(folder)
    trees.truncate(folder / "shard-00000.arrow")
    with pytest.raises(DataError, match="shard-00000.arrow has"):
        data.image(0)


def test_missing_shard_is_named(folder: Path) -> None:
    (folder / "shard-00000.arrow").unlink()
    with pytest.raises(DataError, match="shard-00000.arrow is missing"):
        ShardSet(folder)


def test_altered_index_is_refused(folder: Path) -> None:
    flip(folder / INDEX, 100)
    with pytest.raises(DataError, match="index.parquet was altered"):
        ShardSet(folder)


def test_other_schema_version_is_refused(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 99'))
    with pytest.raises(DataError, match=f"{path} has schema 99, this version of spcl reads 1"):
        ShardSet(folder)


def test_missing_split_gives_the_command_that_writes_it(tmp_path: Path) -> None:
    line = f"ray_jobs/ingest.py --dataset gta5 --split train --root DIR --out {tmp_path}"
    with pytest.raises(DataError, match=f"no shards in .*{line}"):
        ShardSet(tmp_path / "gta5/train")


def test_empty_and_garbled_manifests_are_refused(folder: Path) -> None:
    edit_manifest(folder, rows=0)
    with pytest.raises(DataError, match="holds no samples"):
        ShardSet(folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="manifest.json is not valid JSON, it is cut.*--overwrite"):
        ShardSet(folder)


def test_renamed_set_gives_a_command_with_its_name(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "streets/sim/train"
    convert("gta5", raw, folder, split="train", options=Options(name="streets/sim"))
    (folder / "shard-00001.arrow").unlink()
    line = (
        f"--dataset gta5 --split train --root DIR --out {tmp_path} --name streets/sim --overwrite"
    )
    with pytest.raises(DataError, match=line):
        ShardSet(folder)


def test_labels_of_an_unlabelled_split_cannot_be_read(tmp_path: Path) -> None:
    raw = trees.cityscapes_tree(tmp_path / "raw", size=trees.SMALL)
    convert("cityscapes", raw, tmp_path / "out", split="train")
    data = ShardSet(tmp_path / "out")
    assert not data.labelled and data.class_pixels is None
    with pytest.raises(DataError, match="cityscapes/train .*holds no labels"):
        data.label(0)


def test_fingerprint_depends_on_data_and_not_on_shard_sizes(raw: Path, tmp_path: Path) -> None:
    one = convert("gta5", raw, tmp_path / "a", split="train")
    many = convert("gta5", raw, tmp_path / "b", split="train", options=Options(shard_bytes=4000))
    other = trees.gta5_tree(tmp_path / "raw", SAMPLES, trees.SMALL, seed=1)
    changed = convert("gta5", other, tmp_path / "c", split="train")
    assert one["shards"] < many["shards"]
    assert one["fingerprint"] == many["fingerprint"] != changed["fingerprint"]


def test_fingerprint_does_not_depend_on_the_order_of_rows(folder: Path) -> None:
    rows = pq.read_table(folder / INDEX).to_pylist()
    assert data_fingerprint(rows[::-1]) == ShardSet(folder).fingerprint
