"""Evaluate a network, and store its pseudo labels: ours against the plain way.

    python benchmarks/evaluation.py [--model tiny] [--images 6] [--rounds 3] [--size 1024 2048]

The plain way is what one writes first, one image after the other: read, predict, upsample all
classes, argmax, a confusion matrix by numpy; or softmax, max, two PNGs.  Both read the same images
of 1024x2048 (synthetic, see input.py) with a network of the same random weights, on two threads of
a CPU, and give the same result but for rounding (checked).  Each runs in a process of its own, in
turn; prints the ratio of times, that of the times outside of the network, and the peaks of memory.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from input import write_frame
from measure import alone, peak_mib
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import functional as v1

from spcl.configuration.sections import Evaluation, Train
from spcl.data.convert import convert
from spcl.data.labels import IGNORE_INDEX, NUM_CLASSES
from spcl.data.predictions import PredictionSet
from spcl.data.shards import ShardSet
from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from spcl.engine.devices import set_up_torch
from spcl.inference.passes import run_pass
from spcl.inference.predict import evaluate
from spcl.methods.passes import PseudoLabelPass
from spcl.models.segmentor import Segmentor, build_segmentor

NATIVE = (2048, 1024)  # width, height of the images and labels
THREADS = 2
LEVELS = 65535  # of a stored confidence
RARELY = 1e-4  # share of pixels where rounding may decide
CPU = torch.device("cpu")


class Timed:
    """The network, and the seconds that it took."""

    def __init__(self, model: str):
        torch.manual_seed(0)
        norm = "domain" if model == "tiny" else "frozen"
        self.network = build_segmentor(model, NUM_CLASSES, norm=norm).eval()
        for layer in self.network.modules():
            if isinstance(layer, torch.nn.Conv2d) and norm == "frozen":
                torch.nn.init.kaiming_normal_(layer.weight, a=2)  # without norms it would explode
        self.seconds, self.started = 0.0, 0.0
        self.network.register_forward_pre_hook(self._start)
        self.network.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self.started


# --- the plain way -------------------------------------------------------------------------------


def predict_plainly(
    shards: ShardSet, index: int, size: tuple[int, int], network: Segmentor, shape: tuple[int, int]
) -> torch.Tensor:
    """Logits (1, K, *shape)."""
    image = Image.open(io.BytesIO(shards.image(index))).convert("RGB")
    image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    tensor = v1.normalize(v1.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)[None]
    logits = network(tensor, "target").logits
    return F.interpolate(logits, shape, mode="bilinear", align_corners=True)


def evaluate_plainly(shards: ShardSet, size: tuple[int, int], network: Segmentor) -> np.ndarray:
    matrices = []
    for index in range(len(shards)):
        logits = predict_plainly(shards, index, size, network, NATIVE[::-1])
        guess = logits.argmax(1)[0].numpy()
        truth = np.array(Image.open(io.BytesIO(shards.label(index))))
        valid = truth != IGNORE_INDEX
        cells = NUM_CLASSES * truth[valid].astype(int) + guess[valid]
        counts = np.bincount(cells, minlength=NUM_CLASSES**2)
        matrices.append(counts.reshape(NUM_CLASSES, NUM_CLASSES))
    return np.stack(matrices)


def store_plainly(
    shards: ShardSet, size: tuple[int, int], network: Segmentor, folder: Path
) -> None:
    for index in range(len(shards)):
        logits = predict_plainly(shards, index, size, network, size)
        confidence, guess = logits.softmax(1).max(1)
        levels = np.floor(confidence[0].numpy() * LEVELS).astype(np.uint16)
        for kind, array in (("label", guess[0].byte().numpy()), ("confidence", levels)):
            path = folder / f"{index}-{kind}.png"
            Image.fromarray(array).save(path, compress_level=1)  # as ours


# --- measuring -----------------------------------------------------------------------------------


@torch.no_grad()
def run(way: str, work: str, model: str, size: tuple[int, int], root: Path) -> None:
    """Print seconds per image, those outside of the network, and the peak of memory."""
    if way == "ours":
        set_up_torch(Train(threads=THREADS))
    torch.set_num_threads(THREADS)
    shards, timed = ShardSet(root / "shards"), Timed(model)
    network, out = timed.network, root / f"{way}-{work}"
    out.mkdir(exist_ok=True)

    def read_once(part: ShardSet) -> None:
        if work == "evaluation":
            settings = Evaluation(size=size)
            matrices = (
                evaluate(network.predict, part, settings, CPU, threads=THREADS)[1]
                if way == "ours"
                else evaluate_plainly(part, size, network)
            )
            np.save(out / "matrices.npy", matrices)
        elif way == "ours":
            look = PseudoLabelPass(network, None, CPU, out)
            run_pass(look, network, part, size, CPU, threads=THREADS)
        else:
            store_plainly(part, size, network, out)

    read_once(shards.subset(np.arange(1)))  # warms up
    timed.seconds = 0.0
    started = time.perf_counter()
    read_once(shards)
    taken = time.perf_counter() - started
    count = len(shards)
    print(taken / count, (taken - timed.seconds) / count, peak_mib())


def check(work: str, root: Path) -> None:
    """Both ways came to the same."""
    ours, plain = root / f"ours-{work}", root / f"plain-{work}"
    if work == "evaluation":
        one, other = (np.load(folder / "matrices.npy") for folder in (ours, plain))
        assert abs(one - other).sum() <= 2 * RARELY * one.sum(), "matrices differ"
        return
    stored, names = PredictionSet(ours), ShardSet(root / "shards").sample_ids
    for index, name in enumerate(names):
        label, confidence = stored[name]
        want = np.array(Image.open(plain / f"{index}-label.png"))
        level = np.array(Image.open(plain / f"{index}-confidence.png"), np.int64)
        assert (label != want).sum() <= RARELY * label.size, f"labels of {name} differ"
        off = abs(level - confidence) > 2
        assert off.sum() <= RARELY * label.size, f"confidences of {name} differ"


def compare(work: str, arguments: argparse.Namespace, root: Path) -> None:
    size = [str(length) for length in arguments.size]
    found: dict[str, list[list[float]]] = {"ours": [], "plain": []}
    for _ in range(arguments.rounds):
        for way, rounds in found.items():
            given = ["--run", way, work, "--model", arguments.model, "--size", *size]
            rounds.append(alone(*given, "--root", str(root)))
    check(work, root)

    def ratio(number: int) -> float:
        pairs = zip(found["plain"], found["ours"], strict=True)
        return statistics.median(plain[number] / ours[number] for plain, ours in pairs)

    print(f"{work}: {ratio(0):.2f} times as fast, {ratio(1):.2f} outside of the network")
    for way, rounds in found.items():
        taken, outside, peak = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"  {way:5}  {1 / taken:6.2f} images/s, {1e3 * taken:6.0f} ms, of which "
            f"{1e3 * outside:5.0f} outside of the network; peak memory {peak:.0f} MiB",
            flush=True,
        )


def prepare(root: Path, count: int) -> None:
    for number in range(1, count + 1):
        write_frame(root / "raw", number, NATIVE)
    convert("gta5", root / "raw", root / "shards", split="train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=NATIVE[::-1], help="network input")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run, arguments.model, tuple(arguments.size), arguments.root)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments.images)
        for work in ("evaluation", "predictions"):
            compare(work, arguments, Path(folder))


if __name__ == "__main__":
    main()
