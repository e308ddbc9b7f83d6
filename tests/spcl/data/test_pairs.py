"""Pairs of crops, on an image whose pixels say where they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spcl.data.batch import Sample
from spcl.data.pairs import AugmentPair, PairCrops
from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Augment
from spcl.errors import ConfigError

SCENE = (80, 120)
CROPS = PairCrops((32, 48))
PLAIN = Augment(SCENE)


def places() -> torch.Tensor:
    """(3, H, W) uint8: column, row and 7 at each pixel."""
    rows, columns = np.mgrid[: SCENE[0], : SCENE[1]]
    return torch.from_numpy(np.stack([columns, rows, np.full(SCENE, 7)]).astype(np.uint8))


def pair(position: int, crops: PairCrops = CROPS, augment: Augment = PLAIN):
    return AugmentPair(augment, crops)(Sample(places()), [0, 7, position])


def rows_and_columns(crop: torch.Tensor) -> torch.Tensor:
    """(h, w, 2): where in the image each pixel of a crop is from."""
    std, mean = (torch.tensor(v)[:, None, None] for v in (IMAGENET_STD, IMAGENET_MEAN))
    return ((crop * std + mean) * 255).round().long()[:2].flip(0).permute(1, 2, 0)


def shared(made, number: int) -> torch.Tensor:
    """What the box of one crop cuts out of it, mirrored back."""
    top, left, height, width = made.boxes[number].tolist()
    part = (made.first, made.second)[number][:, top : top + height, left : left + width]
    return part.flip(-1) if made.flips[number] else part


@pytest.mark.parametrize("position", range(20))
def test_the_boxes_hold_what_both_crops_show_and_all_of_it(position):
    made = pair(position)
    assert torch.equal(shared(made, 0), shared(made, 1))
    seen = [set(map(tuple, rows_and_columns(c).flatten(0, 1).tolist())) for c in made[:2]]
    inside = set(map(tuple, rows_and_columns(shared(made, 0)).flatten(0, 1).tolist()))
    assert inside == seen[0] & seen[1] and len(seen[0]) == len(seen[1]) == 32 * 48


def overlaps(count: int, crops: PairCrops) -> np.ndarray:
    area = np.array([pair(p, crops).boxes[0, 2:].prod() for p in range(count)])
    return area / (2 * 32 * 48 - area)


def test_overlaps_fill_the_range_that_is_asked_for():
    found = overlaps(400, CROPS)
    assert found.min() >= 0.1 and found.max() <= 1.0
    thirds = np.histogram(found, bins=[0.1, 0.4, 0.7, 1.001])[0]
    assert thirds.min() > 90 and thirds.max() < 180
    narrow = overlaps(60, replace(CROPS, overlap=(0.3, 0.5), multiple=1))
    assert narrow.min() >= 0.3 and narrow.max() <= 0.5 and np.ptp(narrow) > 0.15


def test_boxes_and_offsets_are_multiples_of_the_stride():
    boxes = torch.stack([pair(p).boxes for p in range(60)])
    assert (boxes % 8 == 0).all() and len(boxes.flatten(1).unique(dim=0)) > 15


def test_crops_lie_anywhere_and_either_may_be_above_or_left():
    corners = torch.stack(
        [
            torch.stack([rows_and_columns(c).flatten(0, 1).min(0).values for c in pair(p)[:2]])
            for p in range(200)
        ]
    )
    assert (corners.amin((0, 1)) < 4).all()
    assert (corners.amax((0, 1)) > torch.tensor([80 - 32, 120 - 48]) - 4).all()
    first_later = (corners[:, 0] > corners[:, 1]).float().mean(0)
    assert ((first_later > 0.25) & (first_later < 0.6)).all()  # at times they are level


def test_each_crop_is_mirrored_by_itself():
    flips = torch.stack([pair(p).flips for p in range(200)]).long()
    counts = torch.bincount(flips[:, 0] * 2 + flips[:, 1], minlength=4)
    assert (counts > 25).all()
    assert not torch.stack([pair(p, replace(CROPS, flip=0.0)).flips for p in range(20)]).any()


def test_each_crop_has_colours_of_its_own_and_the_same_place():
    bright = replace(PLAIN, jitter=(0.5, 0.0, 0.0, 0.0))
    coloured, plain = pair(3, augment=bright), pair(3)
    ratio = [(c[2] - shift) / (p[2] - shift) for c, p, shift in _blue(coloured, plain)]
    assert abs(float(ratio[0].mean() - ratio[1].mean())) > 0.05
    assert torch.equal(coloured.boxes, plain.boxes)


def test_crops_may_have_colours_of_their_own():
    bright = replace(PLAIN, jitter=(0.5, 0.0, 0.0, 0.0))
    asked = replace(CROPS, jitter=(0.5, 0.0, 0.0, 0.0), grayscale=0.0)
    assert torch.equal(pair(3, asked).first, pair(3, augment=bright).first)
    grey = pair(3, replace(CROPS, grayscale=1.0)).first
    std, mean = (torch.tensor(v)[:, None, None] for v in (IMAGENET_STD, IMAGENET_MEAN))
    assert (grey * std + mean).std(0).max() < 1e-6
    off = replace(CROPS, jitter=(0.0,) * 4)
    assert torch.equal(pair(3, off, bright).first, pair(3).first)


def _blue(one, other):
    black = -IMAGENET_MEAN[2] / IMAGENET_STD[2]
    return [(a, b, black) for a, b in zip(one[:2], other[:2], strict=True)]


def test_the_scene_is_scaled_before_it_is_cut():
    made = pair(0, replace(CROPS, scale=(2.0, 2.0), flip=0.0))
    assert made.first.shape == (3, 32, 48)
    seen = rows_and_columns(made.first)
    assert abs(int(seen[-1, 0, 0] - seen[0, 0, 0]) - 15) <= 1  # 32 rows of a doubled scene


@pytest.mark.parametrize(
    ("crops", "scene", "message"),
    [
        (replace(CROPS, overlap=(0.5, 0.2)), SCENE, r"0 < low <= high <= 1, got \[0.5, 0.2\]"),
        (CROPS, (24, 120), "are 32x48 and the images 24x120 at the least"),
        (replace(CROPS, scale=(0.3, 1.0)), SCENE, "the images 24x36 at the least"),
        (replace(CROPS, overlap=(0.1, 0.5)), (32, 52), "must be able to overlap by 0.1 to 0.5"),
    ],
)
def test_crops_that_cannot_be_cut_are_refused(crops, scene, message):
    CROPS.check("target/pair", SCENE)
    with pytest.raises(ConfigError, match=message):
        crops.check("target/pair", scene)
