"""How classes lie in feature space: class centre distance, and pictures by PCA and t-SNE.

All from a sample of pixels that depends on the data and the seed only, not on who read which image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from spcl.data.export import write_png
from spcl.data.labels import IGNORE_INDEX
from spcl.errors import DataError
from spcl.scoring.metrics import class_center_distance
from spcl.store import atomic

SEED = 0
PIXELS_PER_CLASS = 500  # for the distances and the PCA
TSNE_PIXELS_PER_CLASS = 150  # its time grows faster than the number of points
TSNE_DIMENSIONS = 50  # it reads principal components
PERPLEXITY = 30
MIN_PIXELS = 8  # t-SNE's perplexity must be below their number
PICTURE, MARGIN, LEGEND, ROW = 800, 20, 180, 20  # pixels
RADIUS = 2  # pixels of a dot


@dataclass(frozen=True)
class PixelSample:
    """Pixels with their features, ordered by class and then by rank.

    features  (N, D) float32        labels  (N,) uint8 trainIds
    ranks     (N,) float64 random numbers; a class keeps the pixels of the lowest
    places    (N, 2) int64: image, pixel of the feature grid
    """

    features: np.ndarray
    labels: np.ndarray
    ranks: np.ndarray
    places: np.ndarray


def sample_pixels(
    features: np.ndarray, labels: np.ndarray, image: int, per_class: int = PIXELS_PER_CLASS
) -> PixelSample:
    """At most `per_class` pixels of each class of one image.

    features (D, h, w), labels (h, w) trainIds, 255 is left out; image: its number in the split
    """
    labels = labels.reshape(-1)
    ranks = np.random.default_rng([SEED, image]).random(len(labels))
    pixels = np.flatnonzero(labels != IGNORE_INDEX)
    chosen = pixels[_lowest(labels[pixels], ranks[pixels], pixels, per_class)]
    places = np.stack([np.full_like(chosen, image), chosen], 1)
    rows = features.reshape(len(features), -1).T[chosen].astype(np.float32)
    return PixelSample(rows, labels[chosen], ranks[chosen], places)


def merge(samples: Sequence[PixelSample], per_class: int = PIXELS_PER_CLASS) -> PixelSample:
    """The sample of several images: the same however they were grouped before."""
    features, labels, ranks, places = (
        np.concatenate([getattr(s, name) for s in samples])
        for name in ("features", "labels", "ranks", "places")
    )
    keep = _lowest(labels, ranks, places[:, 0], per_class)
    return PixelSample(features[keep], labels[keep], ranks[keep], places[keep])


def _lowest(labels: np.ndarray, ranks: np.ndarray, tie: np.ndarray, per_class: int) -> np.ndarray:
    """Where the `per_class` lowest ranks of each class are, by class and rank."""
    order = np.lexsort((tie, ranks, labels))
    first = np.searchsorted(labels[order], labels[order])  # where each one's class begins
    return order[np.arange(len(order)) - first < per_class]


def class_means(sample: PixelSample, classes: int) -> np.ndarray:
    """(K, D) float64; NaN for a class without pixels."""
    means = np.full((classes, sample.features.shape[1]), np.nan)
    for k in np.unique(sample.labels):
        means[k] = sample.features[sample.labels == k].mean(0, dtype=np.float64)
    return means


def write_analysis(
    folder: Path, sample: PixelSample, class_names: Sequence[str], palette: np.ndarray
) -> dict[str, float | None]:
    """ccd.json, pca.png and tsne.png; returns the class centre distances by class name.

    Of features as the network gives them, at the centres of the sample.
    """
    if len(sample.labels) < MIN_PIXELS:
        raise DataError(f"the analysis needs labelled pixels, found {len(sample.labels)}")
    means = class_means(sample, len(class_names))
    values = class_center_distance(sample.features.astype(np.float64), sample.labels, means)
    distances = {
        name: None if np.isnan(v) else float(v) for name, v in zip(class_names, values, strict=True)
    }
    counts = np.bincount(sample.labels, minlength=len(class_names)).tolist()
    atomic.write_json(
        folder / "ccd.json",
        {
            "ccd": distances,
            "mean": None if np.isnan(values).all() else float(np.nanmean(values)),
            "pixels": dict(zip(class_names, counts, strict=True)),
            "seed": SEED,
        },
    )
    write_png(folder / "pca.png", scatter(pca(sample), sample.labels, class_names, palette))
    few = merge([sample], TSNE_PIXELS_PER_CLASS)
    write_png(folder / "tsne.png", scatter(tsne(few), few.labels, class_names, palette))
    return distances


def pca(sample: PixelSample, dimensions: int = 2) -> np.ndarray:
    """(N, dimensions): the first principal components."""
    from sklearn.decomposition import PCA  # seconds, for who asks for pictures

    dimensions = min(dimensions, *sample.features.shape)
    points = PCA(dimensions, random_state=SEED).fit_transform(sample.features)
    return points


def tsne(sample: PixelSample) -> np.ndarray:
    """(N, 2), from the principal components."""
    from sklearn.manifold import TSNE

    points = pca(sample, TSNE_DIMENSIONS)
    perplexity = min(PERPLEXITY, max(1, (len(points) - 1) // 3))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(points)


def scatter(
    points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], palette: np.ndarray
) -> np.ndarray:
    """Points (N, 2) as dots in class colours with a legend of the classes: (H, W, 3) uint8."""
    height = max(PICTURE, 2 * MARGIN + ROW * len(class_names))
    picture = Image.new("RGB", (PICTURE + LEGEND, height), "white")
    draw = ImageDraw.Draw(picture)
    low, high = points.min(0), points.max(0)
    places = MARGIN + (points - low) / np.maximum(high - low, 1e-12) * (PICTURE - 2 * MARGIN)
    colors = [tuple(color) for color in palette.tolist()]
    # Classes take turns, so that the last one does not hide the others.
    for n in np.random.default_rng(SEED).permutation(len(points)):
        draw.circle(tuple(places[n]), RADIUS, fill=colors[labels[n]])
    top = MARGIN
    for k in np.unique(labels):
        draw.rectangle((PICTURE, top, PICTURE + ROW // 2, top + ROW // 2), fill=colors[k])
        draw.text((PICTURE + ROW, top), class_names[k], fill="black")
        top += ROW
    return np.array(picture)
