"""What is known of data that are not there yet.  The numbers here are those of the sets' pages."""

from pathlib import Path

import pytest

from spcl.configuration.sections import Streets
from spcl.data.datasets import DATASETS
from spcl.engine.planned import how_to_get, last_lines, plan_split, refuse
from spcl.errors import ConfigError, DataError

NOWHERE = Path("/nowhere")
SMALL = Streets(source_images=5, target_images=4, val_images=3, size=(16, 32))


def planned(name: str):
    dataset, _, split = name.rpartition("/")
    return plan_split(NOWHERE, dataset, split, SMALL)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("gta5/train", "24966 images of 1914x1046 or 1914x1052, not converted yet"),
        ("gta5-1280x720-jpeg95/train", "24966 images of 1280x720, not converted yet"),
        (
            "synthia/train",
            "9400 images of 1280x760, none with terrain or truck or train, not converted yet",
        ),
        ("synscapes/train", "25000 images of 1440x720, not converted yet"),
        ("synscapes/train_2k", "25000 images of 2048x1024, not converted yet"),
        ("cityscapes/train", "2975 images of 2048x1024, not converted yet"),
        ("cityscapes/val", "500 images of 2048x1024, not converted yet"),
        ("cityscapes/test", "1525 images of 2048x1024, not converted yet"),
        ("streets/sim/train", "5 images of 32x16, rendered on first use"),
        ("streets/real/train", "4 images of 32x16, rendered on first use"),
        ("streets/real/val", "3 images of 32x16, rendered on first use"),
        ("my-sim/train", "not converted yet"),
    ],
)
def test_facts_of_the_releases(name, facts):
    assert str(planned(name)) == f"{name}, {facts}"


def test_labels_are_where_the_release_has_them():
    labelled = [f"{d}/{s}" for d, known in DATASETS.items() for s in known.splits]
    labelled = {name for name in labelled if planned(name).labelled}
    assert labelled == {
        "gta5/train",
        "synthia/train",
        "synscapes/train",
        "synscapes/train_2k",
        "cityscapes/val",
        "cityscapes/train_labelled",
        "cityscapes/val_sequence",
    }
    assert planned("streets/sim/train").labelled and not planned("streets/real/train").labelled
    assert planned("my-sim/train").labelled is None


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_says_where_it_is_to_be_had(dataset):
    known = DATASETS[dataset]
    assert "download" in known.download and "https://" in known.download
    assert known.releases.keys() == known.splits.keys()
    asked = {"cityscapes", "synscapes"}  # who must register first
    assert ("register" in known.download) == (dataset in asked)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gta5/trian", "split of gta5 'trian' is unknown; did you mean 'train'?"),
        ("cityscapes/vall", "did you mean 'val'?"),
        ("streets/simm/train", "dataset 'streets/simm' is unknown; did you mean 'streets/sim'?"),
    ],
)
def test_what_can_never_be_there_is_refused(name, message):
    with pytest.raises(ConfigError) as caught:
        planned(name)
    assert message in str(caught.value)


def test_a_line_per_data_set_whatever_its_splits():
    names = ["cityscapes/train", "gta5/train", "cityscapes/val", "cityscapes/train"]
    city, gta = how_to_get(map(planned, names), NOWHERE)
    assert city.startswith("cityscapes/train, cityscapes/val: register ")
    assert city.endswith("python ray_jobs/ingest.py --dataset cityscapes --root DIR --out /nowhere")
    assert gta.startswith("gta5/train: download ") and "--dataset gta5 --split train" in gta


def test_one_data_set_is_refused_in_one_line_and_several_in_one_message():
    refuse([], NOWHERE)
    with pytest.raises(DataError) as caught:
        refuse([planned("synscapes/train")], NOWHERE)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        refuse(map(planned, ["synscapes/train", "my-cars/train", "cityscapes/val"]), NOWHERE)
    head, *lines = str(caught.value).splitlines()
    assert head == "no shards in /nowhere of 3 data sets:"
    assert [line.split(":")[0].strip() for line in lines] == [
        "synscapes/train",
        "my-cars/train",
        "cityscapes/val",
    ]


def test_what_is_rendered_is_not_missing_to_a_plan():
    streets = planned("streets/sim/train")
    assert last_lines([streets], NOWHERE) == []
    last = last_lines([streets, planned("gta5/train")], NOWHERE)[-1]
    assert last == "can't start yet: 1 data set missing"
    with pytest.raises(DataError, match="rendered where a run is started"):
        refuse([streets], NOWHERE)
