import pytest
import torch

from spcl.data.shards import ShardSet
from spcl.data.transforms import decode, decode_label, normalize, resize_image
from spcl.errors import DataError
from spcl.inference import reader

SIZE = (24, 40)


@pytest.fixture
def shards(mini_data):
    return ShardSet(mini_data / "streets/real/val")


@pytest.mark.parametrize(
    ("size", "length"), [((64, 128), 8), ((512, 1024), 1), ((80, 120), 4), ((8, 8), 16)]
)
def test_groups_hold_every_image_once_and_shares_of_16_hold_whole_ones(size, length):
    assert reader.group_length(size) == length and 16 % length == 0
    whole = reader.groups(37, size)
    assert [n for group in whole for n in group] == list(range(37))
    assert {len(group) for group in whole[:-1]} == {length}


@pytest.mark.parametrize("threads", [0, 2])
def test_what_is_read_is_what_is_stored(shards, threads):
    wanted = [[1, 0], [], [2]]
    read = reader.read("a test", shards, wanted, [SIZE, (12, 20)], labelled=True, threads=threads)
    found = list(read)
    assert [list(group.indices) for group in found] == wanted
    for group in found:
        assert len(group.views[0]) == len(group.views[1]) == len(group.labels) == len(group.indices)
        for place, index in enumerate(group.indices):
            image = decode(shards.image(index))
            assert torch.equal(group.images[place], image)
            assert torch.equal(group.labels[place], decode_label(shards.label(index)))
            for view in group.inputs(torch.device("cpu")):
                size = tuple(view.shape[-2:])
                assert torch.equal(view[place], normalize(resize_image(image, size)))


def test_labels_are_opened_only_where_asked_for(shards, monkeypatch):
    monkeypatch.setattr(ShardSet, "label", None)
    (group,) = reader.read("a test", shards, [[0]], [SIZE])
    assert group.labels == [] and group.shapes == [tuple(group.images[0].shape[1:])]


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_image_is_told_of_after_those_before_it(shards, threads):
    shards._crc32["image"] = shards._crc32["image"].copy()
    shards._crc32["image"][2] ^= 1
    found = reader.read("a test", shards, [[0], [1], [2], [3]], [SIZE], threads=threads)
    assert [list(next(found).indices) for _ in range(2)] == [[0], [1]]
    with pytest.raises(DataError, match=f"sample {shards.sample_ids[2]}: image checksum mismatch"):
        next(found)
