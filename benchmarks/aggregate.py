"""What reading and ranking many runs costs: 1 000 runs of 500 images, then one more.

    python benchmarks/aggregate.py [--runs 1000] [--images 500] [--seeds 5] [--folder DIR]

Generates runs (rows of --seeds seeds, on three benchmarks), reads them without a cache and makes
the boards, adds one run and does both again with the cache.  Each of the two is a process of its
own, whose start counts and whose largest memory is reported.  Generating them is not measured.
Writes benchmarks/results/aggregate.json when it is the size above.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spcl.boards.aggregate import read_runs
from spcl.boards.published import published_results
from spcl.boards.ranking import make_boards
from spcl.data.labels import CLASS_NAMES, NUM_CLASSES
from spcl.scoring.protocols import score
from spcl.store import atomic
from spcl.store.run_folder import RunFolder, write_confusions

RESULT = Path(__file__).parent / "results" / "aggregate.json"
RUNS, IMAGES = 1000, 500
MOST_SECONDS, MOST_BYTES, MOST_SECONDS_ONE_MORE = 60.0, 2 * 10**9, 2.0
BENCHMARKS = ("gta5", "synscapes", "streets")
KIB = 1024


def generate(folder: Path, number: int, images: int, seeds: int) -> None:
    """Run `number`, as the recipe leaves it: one stage, one evaluation."""
    row, seed = divmod(number, seeds)
    rng = np.random.default_rng(number)
    strength = 20 + row % 40 + rng.normal()
    matrices = rng.poisson(np.eye(NUM_CLASSES) * 20 * strength + 30, (images, *2 * (NUM_CLASSES,)))
    run = RunFolder(folder / f"run-{number:05d}")
    ids = [f"image-{index:06d}" for index in range(images)]
    write_confusions(run.folder / "evaluations" / "source_only.parquet", ids, matrices)
    run.write(
        "manifest.json",
        {
            "benchmark": BENCHMARKS[row % len(BENCHMARKS)],
            "method": "source_only",
            "backbone": "tiny",
            "evaluation_size": [512, 1024],
            "seed": seed,
            "stages": [
                {"title": "source_only", "kind": "train", "settings": f"{row}"},
                {"title": "evaluation of source_only", "kind": "evaluation", "settings": f"{row}"},
            ],
            "data": {"evaluation": {"name": "cityscapes/val", "fingerprint": "0" * 64}},
            "selection": "last",
            "label_budget": 0,
            "code": "0" * 16,
            "started": 0.0,
        },
    )
    scores = score(matrices.sum(0), "cityscapes19")
    run.finish(
        {
            "classes": CLASS_NAMES,
            "protocol": "cityscapes19",
            "table": [{"stage": "source_only", "title": "source only"} | scores],
            "device_seconds": {"source_only": 1.0},
        }
    )


def measure(folder: Path, cache: Path) -> dict[str, float]:
    """Read and rank in this process."""
    started = time.perf_counter()
    runs, problems = read_runs([folder], cache)
    read = time.perf_counter()
    boards = make_boards(runs, published_results())
    return {
        "read_seconds": read - started,
        "boards_seconds": time.perf_counter() - read,
        "runs": len(runs),
        "rows": sum(len(board.rows) for board in boards),
        "unread": len(problems),
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB,
    }


def measured(folder: Path, cache: Path) -> dict[str, float]:
    """The same in a process of its own; `seconds` are from its start to its end."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--measure", str(folder), str(cache)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"seconds": time.perf_counter() - started} | json.loads(done.stdout)


def benchmark(place: Path, runs: int, images: int, seeds: int) -> dict[str, dict[str, float]]:
    folder, cache = place / "runs", place / "cache.parquet"
    for number in range(runs):
        generate(folder, number, images, seeds)
    first = measured(folder, cache)
    generate(folder, runs, images, seeds)
    return {"all": first, "one_more": measured(folder, cache)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seeds", type=int, default=5, help="of each row")
    parser.add_argument("--folder", type=Path, help="for the runs (default: a temporary one)")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return 0
    place = Path(tempfile.mkdtemp(prefix="aggregate-", dir=arguments.folder))
    try:
        found = benchmark(place, arguments.runs, arguments.images, arguments.seeds)
    finally:
        shutil.rmtree(place)
    for name, values in found.items():
        print(
            f"{name:<10}{values['runs']:>6} runs {values['rows']:>5} rows "
            f"{values['seconds']:7.2f} s, {values['bytes'] / 1e9:.2f} GB "
            f"(reading {values['read_seconds']:.2f} s, boards {values['boards_seconds']:.2f} s)"
        )
    if (arguments.runs, arguments.images) != (RUNS, IMAGES):
        return 0
    atomic.write_json(RESULT, {"schema": 1, "cores": os.cpu_count()} | found)
    most_bytes = max(values["bytes"] for values in found.values())
    within = (
        found["all"]["seconds"] <= MOST_SECONDS
        and found["one_more"]["seconds"] <= MOST_SECONDS_ONE_MORE
        and most_bytes <= MOST_BYTES
    )
    print("within the limits" if within else "over the limits")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
