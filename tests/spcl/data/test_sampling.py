import numpy as np
import pytest

from spcl.data.sampling import (
    SUB_EPOCH,
    ClassBalanced,
    InOrder,
    RareClass,
    Rarity,
    Uniform,
    class_weights,
    draw_sub_epoch,
    hash_chosen,
    positions,
    rare_class_chances,
)
from spcl.errors import DataError


def test_weights_are_those_of_the_authors_formula():
    assert class_weights(np.array(0.0)) == pytest.approx(100.4991708, abs=1e-6)
    assert class_weights(np.array(1.0)) == pytest.approx(1.43238829, abs=1e-7)


def test_each_epoch_is_a_permutation_and_epochs_differ():
    stream = Uniform(17, seed=3, stream="a")
    first, second = ([stream(p) for p in range(17 * e, 17 * (e + 1))] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(17))
    assert first != second


def test_in_order_every_epoch_is_the_list():
    assert [InOrder(3)(p) for p in range(8)] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_position_reads_the_same_sample_in_any_order():
    one, other = (Uniform(50, seed=1, stream="s") for _ in range(2))
    where = np.random.default_rng(0).integers(0, 5000, 40)
    assert [one(int(p)) for p in where] == [other(int(p)) for p in where[::-1]][::-1]


def test_streams_and_seeds_are_independent():
    runs = [Uniform(100, 0, "a"), Uniform(100, 0, "b"), Uniform(100, 1, "a")]
    orders = [tuple(s(p) for p in range(100)) for s in runs]
    assert len(set(orders)) == 3


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_a_step_without_overlap(world):
    parts = [list(positions(5, 8, rank, world)) for rank in range(world)]
    assert sorted(p for part in parts for p in part) == list(range(40, 48))


def test_class_balanced_draws_rare_classes_far_above_their_share():
    contains = np.zeros((1000, 3), bool)
    contains[:, 0] = True
    contains[::10, 1] = True
    contains[3, 2] = True  # one image in a thousand
    drawn = draw_sub_epoch(contains, np.random.default_rng(0))
    share = contains[drawn].mean(0)
    assert share[0] == 1.0
    assert share[2] > 0.25


def test_class_balanced_agrees_with_a_slow_plain_version():
    rng = np.random.default_rng(5)
    contains = rng.random((40, 6)) < 0.3
    contains[:, 4] = False  # a class nobody shows
    got = draw_sub_epoch(contains, np.random.default_rng(9))

    rng = np.random.default_rng(9)
    classes = [k for k in range(6) if contains[:, k].any()]
    lists = {k: list(rng.permutation([n for n in range(40) if contains[n, k]])) for k in classes}
    uniforms = rng.random(SUB_EPOCH)
    drawn, cursor, expected = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0), []
    for u in uniforms[:500]:
        total = sum(drawn.values())
        weights = [1 / np.log(1.01 + (drawn[k] / total if total else 0.0)) for k in classes]
        edge, k = 0.0, classes[-1]
        for candidate, weight in zip(classes, weights, strict=True):
            edge += weight
            if u * sum(weights) < edge:
                k = candidate
                break
        image = lists[k][cursor[k] % len(lists[k])]
        cursor[k] += 1
        for other in classes:
            drawn[other] += int(contains[image, other])
        expected.append(image)
    assert list(got[:500]) == expected


def test_class_balanced_position_is_pure_across_sub_epochs():
    contains = np.random.default_rng(0).random((30, 4)) < 0.5
    one, other = (ClassBalanced(contains, 2, "s") for _ in range(2))
    far = [7 * SUB_EPOCH + 5, 3, SUB_EPOCH, 2 * SUB_EPOCH - 1]
    assert [one(p) for p in far] == [other(p) for p in reversed(far)][::-1]


def test_no_labelled_pixel_is_an_error():
    with pytest.raises(ValueError, match="at least one labelled pixel"):
        draw_sub_epoch(np.zeros((4, 3), bool), np.random.default_rng(0))


def test_hash_chosen_samples_stay_chosen_when_others_come_and_go() -> None:
    names = [f"gta5/{number:05d}" for number in range(500)]
    chosen = {names[i] for i in hash_chosen(names, 50, "holdout")}
    assert len(chosen) == 50
    assert chosen == {names[::-1][i] for i in hash_chosen(names[::-1], 50, "holdout")}
    without = [name for name in names if name != "gta5/00007"]
    assert len(chosen & {without[i] for i in hash_chosen(without, 50, "holdout")}) >= 49
    assert chosen != {names[i] for i in hash_chosen(names, 50, "validation")}
    assert len(hash_chosen(names, 999, "holdout")) == 500


def test_rare_classes_have_the_published_chances():
    share = np.array([0.7, 0.2, 0.1])
    expected = {0.1: (0.00180884, 0.26845495, 0.72973621), 0.01: (0, 0.0000454, 0.9999546)}
    for temperature, chances in expected.items():
        assert rare_class_chances(share, temperature) == pytest.approx(chances, abs=1e-8)


def test_rare_class_sampling_draws_classes_by_chance_and_their_images_alike():
    # Shares .7, .2, .1; class 2 in images 0 and 3, and in image 1 with too few pixels.
    pixels = np.array([[700, 0, 60], [700, 400, 10], [700, 200, 0], [700, 200, 330]])
    rarity = Rarity(temperature=0.1, pixels=50)
    order = RareClass(pixels, 3, "x/source", rarity)
    drawn = np.bincount([order(position) for position in range(20_000)], minlength=4) / 20_000
    share = pixels.sum(0) / pixels.sum()
    chances = rare_class_chances(share, 0.1)
    shown = pixels > 50
    expected = (shown / shown.sum(0) * chances).sum(1)
    assert np.abs(drawn - expected).max() < 5 * 0.5 / 20_000**0.5
    again = RareClass(pixels, 3, "x/source", rarity)
    assert [again(p) for p in (7, 3)] == [order(p) for p in (7, 3)]  # whatever was asked before
    assert [RareClass(pixels, 4, "x", rarity)(p) for p in range(9)] != [order(p) for p in range(9)]


def test_the_class_that_an_image_was_drawn_for_is_known_and_shown():
    pixels = np.array([[9, 0, 0], [0, 0, 7], [5, 0, 5]])
    order = RareClass(pixels, 0, "s", Rarity(0.5, 1))
    kinds = [order.kind(position) for position in range(50)]
    assert set(kinds) == {0, 2}
    assert all(pixels[order(position), kind] > 1 for position, kind in enumerate(kinds))


def test_rare_class_sampling_says_which_setting_leaves_no_image():
    with pytest.raises(DataError, match="most is 9; lower source.rare_class_pixels"):
        RareClass(np.array([[9, 0]]), 0, "x", Rarity())
