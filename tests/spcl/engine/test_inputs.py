import json
import shutil
from pathlib import Path

import pytest
from conftest import MINI

from spcl.configuration.config import load
from spcl.data import shards
from spcl.data.manifest import MANIFEST
from spcl.engine.inputs import check_absent, open_data
from spcl.errors import ConfigError, DataError
from spcl.store import records


@pytest.fixture
def data(mini_data, tmp_path) -> Path:
    """A copy of the data whose manifests a test may change."""
    return Path(shutil.copytree(mini_data / "streets", tmp_path / "data/streets")).parent


def change(folder: Path, **metadata: object) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["metadata"] |= metadata
    records.write(path, manifest)


def opened(data: Path, *overrides: str) -> dict[str, shards.ShardSet]:
    return open_data(load("streets", "spcl", None, [*MINI, *overrides]), data)


def test_a_derived_view_is_no_evaluation_split(data):
    assert set(opened(data)) == {"source", "target", "evaluation"}
    change(data / "streets/real/val", view={"size": [16, 32]})
    with pytest.raises(DataError, match="own resolution, but .*/real/val is a derived view"):
        opened(data)


def test_a_derived_view_may_be_trained_on(data):
    change(data / "streets/sim/train", view={"size": [16, 32]})
    assert set(opened(data)) == {"source", "target", "evaluation"}


def test_sets_of_other_classes_are_refused_naming_the_first_difference(data):
    names = opened(data)["source"].class_names
    change(data / "streets/real/val", class_names=[*names[:5], "mast", *names[6:]])
    with pytest.raises(DataError, match="class 5 is pole in streets/sim/train and mast in"):
        opened(data)
    assert set(opened(data, "evaluation.dataset=none")) == {"source", "target"}


def test_a_protocol_for_other_classes_is_refused(data):
    names = [f"thing {k}" for k in range(19)]
    for split in ("sim/train", "real/train", "real/val"):
        change(data / "streets" / split, class_names=names)
    with pytest.raises(ConfigError, match="protocol cityscapes19 is made for the 19 Cityscapes"):
        opened(data)
    assert opened(data, "evaluation.protocol=all")["source"].class_names == names


def test_a_source_with_labels_of_classes_without_an_output_is_refused(data):
    with pytest.raises(ConfigError, match="no output for terrain, truck, but streets/sim/train"):
        opened(data, "model.absent=[9,14]")
    path = data / "streets/sim/train"
    pixels = shards.ShardSet(path).class_pixels
    assert pixels[:, [9, 14]].any(0).all()  # else the refusal would be wrong


def test_classes_that_the_source_does_not_show_may_be_absent(data):
    split = opened(data)["source"]
    split.class_pixels = split.class_pixels.copy()
    split.class_pixels[:, [9, 14]] = 0
    check_absent(split, (9, 14))
    with pytest.raises(ConfigError, match="no output for train, but"):
        check_absent(split, (9, 14, 16))


def test_without_evaluation_the_target_is_opened_for_the_panel(data):
    without = open_data(
        load("streets", "source_only", None, [*MINI, "evaluation.dataset=none"]), data
    )
    assert set(without) == {"source", "target"}
