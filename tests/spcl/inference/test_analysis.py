import json

import numpy as np
import pytest
from PIL import Image

from spcl.errors import DataError
from spcl.inference.analysis import (
    SEED,
    class_means,
    merge,
    pca,
    sample_pixels,
    scatter,
    write_analysis,
)

IMAGES, SIZE, DIMENSIONS = 6, (7, 9), 5
PALETTE = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)


def scene(image):
    """Features around their class's centre; class 2 is rare."""
    rng = np.random.default_rng([7, image])
    labels = rng.choice([0, 1, 2, 255], SIZE, p=[0.5, 0.35, 0.05, 0.1]).astype(np.uint8)
    centres = np.array([[5.0] + [0.0] * 4, [0.0, 5.0, 0.0, 0.0, 0.0], [0.0] * 5])
    features = centres[np.minimum(labels, 2)] + rng.normal(size=(*SIZE, DIMENSIONS))
    return features.transpose(2, 0, 1), labels


def sample(images, per_class=20):
    return merge([sample_pixels(*scene(i), i, per_class) for i in images], per_class)


def test_the_sample_holds_the_lowest_draws_of_each_class():
    got = sample(range(IMAGES))
    for k in range(3):
        rows = []
        for image in range(IMAGES):  # every pixel, and then a sort
            features, labels = scene(image)
            ranks = np.random.default_rng([SEED, image]).random(labels.size).reshape(SIZE)
            for y, x in zip(*np.nonzero(labels == k), strict=True):
                rows.append((ranks[y, x], features[:, y, x]))
        rows.sort(key=lambda row: row[0])
        assert (got.labels == k).sum() == min(20, len(rows))
        assert np.allclose(got.features[got.labels == k], [f for _, f in rows[:20]], atol=1e-6)


def test_the_sample_does_not_depend_on_who_read_which_image():
    whole = sample(range(IMAGES))
    parts = merge([sample(range(1, IMAGES, 2)), sample(range(0, IMAGES, 2))], 20)
    for name in ("features", "labels", "ranks", "places"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name


def test_means_are_those_of_the_sample_and_a_class_without_pixels_has_none():
    got = sample(range(IMAGES))
    means = class_means(got, 4)
    assert np.allclose(means[1], got.features[got.labels == 1].mean(0), atol=1e-6)
    assert np.isnan(means[3]).all()


def test_the_analysis_is_written_and_its_distances_follow_the_formula(tmp_path):
    got = sample(range(IMAGES))
    distances = write_analysis(tmp_path, got, ["a", "b", "c"], PALETTE)
    groups = [got.features[got.labels == k].astype(float) for k in range(3)]
    centres = [group.mean(0) for group in groups]
    spread = np.mean([((row - centres[0]) ** 2).sum() for row in groups[0]])
    apart = [((centres[0] - centres[j]) ** 2).sum() for j in (1, 2)]
    assert distances["a"] == pytest.approx(np.mean([spread / d for d in apart]), rel=1e-6)
    written = json.loads((tmp_path / "ccd.json").read_text())
    assert written["ccd"] == distances and written["pixels"]["a"] == 20
    for name in ("pca.png", "tsne.png"):
        with Image.open(tmp_path / name) as picture:
            colors = {color for _, color in picture.getcolors(1 << 24)}
            assert {tuple(c) for c in PALETTE.tolist()} <= colors


def test_principal_components_are_those_of_the_singular_values():
    got = sample(range(IMAGES))
    centred = got.features - got.features.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(pca(got)), np.abs(left[:, :2] * values[:2]), atol=1e-4)


def test_dots_lie_where_their_points_do():
    picture = scatter(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0, 2]), "abc", PALETTE)
    assert picture[20, 20].tolist() == [255, 0, 0] and picture[780, 780].tolist() == [0, 0, 255]


def test_too_few_pixels_are_said(tmp_path):
    with pytest.raises(DataError, match="needs labelled pixels, found 3"):
        write_analysis(tmp_path, sample([0], 1), ["a", "b", "c"], PALETTE)
