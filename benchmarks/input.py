"""Decode, resize and augment one training sample: our shards and loader against loose files.

    python benchmarks/input.py [--rounds 7] [--sizes 100 1000 10000]

Loose files are read as reference code reads them: Pillow opens, converts and resizes, a loop over
classes maps ids, torchvision jitters the Pillow image.  Frames are synthetic, of the size of GTA5's
(1914x1052, trained on at 1280x720), with texture so that a PNG takes as large a share of its raw
pixels as one of a driving scene, 0.43 to 0.52.  Both ways give the same label, and the same image
but for rounding, before jitter and flip (checked).  One thread; times are medians, taken in turn in
one process.  Memory is each one's peak above what its imports take, in a process of its own.

Then the peak memory of a process that converts small samples, of the one that hands out that work,
and of one that reads them, as their number grows.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import alone, peak_mib, seconds
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import functional as F

from spcl.data.convert import convert
from spcl.data.labels import GTA5_IDS, GTA5_PALETTE, IGNORE_INDEX
from spcl.data.loader import StoredLabels, Stream
from spcl.data.shards import ShardSet
from spcl.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    decode,
    decode_label,
    resize_image,
    resize_label,
)
from spcl.data.views import make_view

NATIVE, WORKING = (1914, 1052), (1280, 720)  # width, height
FRAMES = 4
JITTER, FLIP = (0.5, 0.5, 0.5, 0.2), 0.5
IDS = tuple(raw for raw, to in GTA5_IDS.items() if to != IGNORE_INDEX)
OCTAVES = {256: 30, 64: 15, 16: 8, 4: 4}  # cell in pixels: standard deviation in grey levels
NOISE = 1.5  # standard deviation in grey levels; sets the size of the PNG
RARELY = 1e-5  # share of values where two resizings may differ by two grey levels
BLOB = 96  # pixels; about the size of a region of one class
SMALL = (64, 48)  # width, height where only the number of samples counts
VARIANTS = {"loose files": None, "native PNG": "native", "JPEG view": "jpeg95", "PNG view": "png"}


# --- frames --------------------------------------------------------------------------------------


def smooth(rng: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray:
    """(H, W) float32 of unit variance at its nodes, varying over `cell` pixels."""
    nodes = rng.standard_normal((size[1] // cell + 2, size[0] // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(nodes).resize(size, Image.Resampling.BICUBIC))


def write_frame(root: Path, number: int, size: tuple[int, int]) -> float:
    """images/ and labels/ of one frame as GTA5 has them; the PNG's share of the raw pixels."""
    rng = np.random.default_rng(number)
    raw = np.zeros(size[::-1], np.uint8)
    highest = np.full(size[::-1], -np.inf, np.float32)
    for label in IDS:
        field = smooth(rng, size, BLOB)
        raw[field > highest] = label
        highest = np.maximum(highest, field)
    pixels = GTA5_PALETTE[raw].astype(np.float32) * 0.5 + 60
    for cell, deviation in OCTAVES.items():
        pixels += deviation * smooth(rng, size, cell)[..., None]
    pixels += NOISE * rng.standard_normal(raw.shape)[..., None]
    pixels += 0.3 * NOISE * rng.standard_normal(pixels.shape)
    path = root / f"images/{number:05d}.png"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    label = Image.fromarray(raw)
    label.putpalette(GTA5_PALETTE.tobytes())
    label.save(root / f"labels/{path.name}")
    return path.stat().st_size / pixels.size


def prepare(root: Path) -> float:
    """Loose files, their shards and both views; the mean share of a PNG."""
    shares = [write_frame(root / "raw", n, NATIVE) for n in range(1, FRAMES + 1)]
    convert("gta5", root / "raw", root / "native", split="train")
    for codec in ("jpeg95", "png"):
        make_view(root / "native", root / codec, name=f"gta5-{codec}", size=WORKING, codec=codec)
    return statistics.mean(shares)


# --- two ways to read ----------------------------------------------------------------------------


def load_loose(raw: Path, name: str) -> tuple[Image.Image, np.ndarray]:
    """Image and trainIds at the working size."""
    image = Image.open(raw / "images" / name).convert("RGB")
    image = image.resize(WORKING, Image.Resampling.BICUBIC)
    label = Image.open(raw / "labels" / name).resize(WORKING, Image.Resampling.NEAREST)
    label = np.asarray(label, np.float32)
    label_copy = IGNORE_INDEX * np.ones(label.shape, np.float32)
    for k, v in GTA5_IDS.items():
        if v != IGNORE_INDEX:
            label_copy[label == k] = v
    return image, label_copy


def read_loose(root: Path) -> Callable[[int], tuple[Tensor, Tensor]]:
    names = sorted(path.name for path in (root / "raw/images").iterdir())
    jitter = v1.ColorJitter(*JITTER)

    def read(position: int) -> tuple[Tensor, Tensor]:
        image, label = load_loose(root / "raw", names[position % len(names)])
        image = jitter(image)
        if random.random() < FLIP:
            image, label = F.hflip(image), np.flip(label, 1)
        image = F.normalize(F.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)
        return image, torch.from_numpy(label.copy()).long()

    return read


def read_shards(folder: Path, size: tuple[int, int] = WORKING) -> Stream:
    shards = ShardSet(folder)
    augment = Augment(size[::-1], JITTER, FLIP)
    return Stream("benchmark/source", shards, augment, StoredLabels(shards), 0)


def reader(variant: str, root: Path) -> Callable[[int], object]:
    folder = VARIANTS[variant]
    return read_shards(root / folder).sample if folder else read_loose(root)


def check_equal(root: Path) -> float:
    """Both ways agree before jitter and flip; the mean error of the JPEG view in grey levels."""
    errors = []
    for folder in ("native", "png", "jpeg95"):
        shards = ShardSet(root / folder)
        for index, sample_id in enumerate(shards.sample_ids):
            image = resize_image(decode(shards.image(index)), WORKING[::-1])
            image = image.permute(1, 2, 0).numpy()
            label = resize_label(decode_label(shards.label(index)), WORKING[::-1]).numpy()
            want, want_label = load_loose(root / "raw", f"{Path(sample_id).name}.png")
            error = np.abs(image.astype(int) - np.asarray(want))
            assert (label == want_label).all(), f"labels of {sample_id} differ in {folder}"
            if folder == "jpeg95":
                errors.append(error.mean())
            else:
                rounded = error.max() <= 2 and (error > 1).mean() < RARELY
                assert rounded, f"{sample_id} differs in {folder}"
    return statistics.mean(errors)


# --- measuring -----------------------------------------------------------------------------------


def print_peak(variant: str, root: Path) -> None:
    before = peak_mib()
    read = reader(variant, root)
    for position in range(2 * FRAMES):
        read(position)
    print(peak_mib() - before)


def print_growth(count: int, root: Path) -> None:
    """Growth of converting worker, its driver and loader over `count` small samples, MiB."""
    raw = root / "raw"
    for number in range(1, FRAMES + 1):
        write_frame(raw, number, SMALL)
    for number in range(FRAMES + 1, count + 1):
        for folder in ("images", "labels"):
            first = raw / folder / f"{1 + number % FRAMES:05d}.png"
            os.link(first, raw / folder / f"{number:05d}.png")
    spawn = multiprocessing.get_context("spawn")  # a fork would start with the parent's memory
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        imports, here = pool.submit(peak_mib).result(), peak_mib()
        convert("gta5", raw, root / "out", split="train", map_tasks=pool.map)
        worker, driver = pool.submit(peak_mib).result() - imports, peak_mib() - here
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        loader = pool.submit(read_all, root / "out").result()
    print(worker, driver, loader)


def read_all(folder: Path) -> float:
    """Read every sample once; the growth of this process, MiB."""
    before = peak_mib()
    torch.set_num_threads(1)
    stream = read_shards(folder, SMALL)
    for position in range(len(stream.shards)):
        stream.sample(position)
    return peak_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--growth", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print_peak(arguments.peak[0], Path(arguments.peak[1]))
        return
    if arguments.growth:
        print_growth(int(arguments.growth[0]), Path(arguments.growth[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments.rounds)
    if arguments.sizes:
        print("\nsamples   converting worker   its driver   loader   (growth of peak memory, MiB)")
    for count in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            worker, driver, loader = alone("--growth", str(count), folder)
        print(f"{count:7}   {worker:17.0f}   {driver:10.0f}   {loader:6.0f}", flush=True)


def compare(root: Path, rounds: int) -> None:
    share = prepare(root)
    error = check_equal(root)
    print(f"PNG of a frame: {share:.2f} of its raw pixels; the same image and label both ways")
    print(f"JPEG view: {error:.1f} grey levels from the PNG on average")
    readers = {variant: reader(variant, root) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for position in range((rounds + 1) * FRAMES):
        for variant, read in readers.items():
            taken = seconds(read, position)
            if position >= FRAMES:  # the first round warms up
                times[variant].append(taken)
    plain = statistics.median(times["loose files"])
    print("\n             ms/sample   times as fast   peak memory, MiB")
    for variant, taken in times.items():
        (memory,) = alone("--peak", variant, str(root))
        typical = statistics.median(taken)
        print(f"{variant:11}  {1e3 * typical:9.1f}   {plain / typical:13.2f}   {memory:16.0f}")


if __name__ == "__main__":
    main()
