import pickle

import pytest
import torch

from spcl.data.loader import Steps, StoredLabels, Stream, rank_indices
from spcl.data.shards import ShardSet
from spcl.data.transforms import Augment


@pytest.fixture(scope="module")
def steps(mini_data):
    augment = Augment((32, 64), jitter=(0.4, 0.4, 0.4, 0.1), flip=0.5, scale=(0.8, 1.2))
    source, target = (ShardSet(mini_data / "streets" / n / "train") for n in ("sim", "real"))
    streams = {
        "source": Stream("x/source", source, augment, StoredLabels(source), 0, "class_balanced"),
        "target": Stream("x/target", target, augment, None, 0),
    }
    return lambda rank=0, world=1: Steps(streams, batch=4, rank=rank, world_size=world)


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def tensors(batch) -> list[torch.Tensor]:
    source, target = batch.source, batch.target
    return [source.image, source.label, source.position, target.image, target.position]


def test_the_number_of_loader_workers_changes_nothing(steps):
    alone, helped = (list(steps().batches(0, 6, workers)) for workers in (0, 2))
    assert len(alone) == 6 and all(map(same, alone, helped))


def test_starting_late_is_the_tail_of_starting_early(steps):
    whole, tail = list(steps().batches(0, 6, 0)), list(steps().batches(4, 6, 0))
    assert all(map(same, whole[4:], tail))


def test_two_ranks_read_what_one_reads(steps):
    alone, first, second = steps()[3], steps(0, 2)[3], steps(1, 2)[3]
    for whole, *parts in zip(tensors(alone), tensors(first), tensors(second), strict=True):
        assert torch.equal(whole, torch.stack(parts, 1).flatten(0, 1))


def test_a_target_without_pseudo_labels_has_no_labels(steps):
    assert steps()[0].target.label is None


def test_a_stream_survives_pickling(steps):
    again = pickle.loads(pickle.dumps(steps()))
    assert same(again[5], steps()[5])


def test_an_image_that_comes_again_is_augmented_anew(steps):
    stream = steps().streams["target"]
    size = len(stream.shards)
    first = stream.sample_id(0)
    again = next(p for p in range(size, 2 * size) if stream.sample_id(p) == first)
    assert not torch.equal(stream.sample(0).image, stream.sample(again).image)


def test_sample_ids_name_what_a_step_reads(steps):
    ids = steps(1, 2).sample_ids(2)
    assert len(ids["source"]) == len(ids["target"]) == 4
    assert ids["source"][0].startswith("streets/sim/")


def test_in_order_ids_are_those_of_the_list_in_every_epoch(steps):
    made = steps()
    made.streams["target"].order = "in_order"
    made = pickle.loads(pickle.dumps(made))  # the order is made anew
    count = len(made.streams["target"].shards)
    read = [name for step in range(count // 2) for name in made.sample_ids(step)["target"]]
    assert read == made.streams["target"].shards.sample_ids * 2
    assert steps().sample_ids(0)["target"] != read[:4]


def test_a_batch_that_ranks_cannot_share_is_an_error(steps):
    with pytest.raises(ValueError, match="batch 4 must be divisible by world size 3"):
        steps(0, 3)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_a_pass_reads_each_image_once(world):
    parts = [rank_indices(5, rank, world).tolist() for rank in range(world)]
    assert sorted(i for part in parts for i in part) == list(range(5))
