"""What each part of the recipe is worth on `streets`: the README's table.

    python benchmarks/streets.py [--seeds 0..4] [--data DIR] [--storage DIR]

Runs what is not stored yet (stages are shared, a killed run continues) and prints means over seeds
with 95 % t intervals, and paired differences.  Same network, data, normalisation and batch in every
row; baselines get as many steps as the whole recipe.  `--rows adversarial` is adversarial training
for that long, the slowest row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spcl import cli
from spcl.train import main as train

if TYPE_CHECKING:
    from spcl.store.run_folder import RunFolder

#: run -> (method, settings)
RUNS = {
    "spcl": ("spcl", []),
    "lambda0": ("spcl", ["spcl.contrast_weight=0"]),
    "adabn": ("source_only", ["model.target_statistics=estimated"]),
    "source": ("source_only", []),
    "adversarial": ("adversarial", ["adversarial.steps=3600", "adversarial.horizon=3700"]),
    "sdca": ("sdca", []),
    "asanet": ("asanet", []),
    "asanet_asc": ("asanet_asc", []),
    "official": ("spcl", ["compat=official"]),
}
#: row -> (run, stage)
ROWS = {
    "source-only": ("source", "source_only"),
    "source-only + AdaBN": ("adabn", "source_only"),
    "adversarial": ("adversarial", "adversarial"),
    "adversarial, the recipe's warm-up": ("spcl", "adversarial"),
    "SPCL without self-training": ("spcl", "spcl"),
    "SPCL, λ = 0": ("lambda0", "self_training"),
    "SPCL": ("spcl", "self_training"),
    "SPCL, compat=official": ("official", "self_training"),
    "SDCA without self-training": ("sdca", "sdca"),
    "SDCA": ("sdca", "self_training"),
    "ASANet, affinity cleaning": ("asanet_asc", "asanet_asc"),
    "ASANet, adversarial": ("asanet", "asanet"),
}
FIXED = ["train.threads=1", "train.loader_workers=0"]  # the bits depend on the first alone
REFERENCE = "SPCL"
COMPARED = (
    "source-only",
    "source-only + AdaBN",
    "adversarial",
    "SPCL, λ = 0",
    "SPCL, compat=official",
    "SDCA",
    "ASANet, affinity cleaning",
    "ASANet, adversarial",
)


def run(name: str, seed: int, arguments: argparse.Namespace) -> RunFolder:
    """The finished run of a seed."""
    from spcl.store.run_folder import RunFolder

    method, settings = RUNS[name]
    storage = cli.storage_root(arguments.storage)
    folder = RunFolder(storage / f"{name}-s{seed}")
    if not folder.done:
        options = ["--data", arguments.data] if arguments.data else []
        options += ["--storage", str(storage), "--name", folder.name, "--method", method]
        code = train(["--benchmark", "streets", *options, f"seed={seed}", *FIXED, *settings])
        if code:
            sys.exit(code)
    return folder


def value(folder: RunFolder, stage: str, mean: str) -> float:
    (row,) = [row for row in folder.done["table"] if row["stage"] == stage]
    return 100 * row["means"][mean]["value"]


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0..4")
    parser.add_argument("--data")
    parser.add_argument("--storage")
    usual = [row for row in ROWS if row != "adversarial"]
    parser.add_argument("--rows", nargs="*", default=usual, choices=list(ROWS))
    arguments = parser.parse_args()
    from spcl.boards.tables import with_spread

    if arguments.data:
        arguments.data = str(Path(arguments.data).resolve())
    seeds = cli.parse_seeds(arguments.seeds)
    scores: dict[str, dict[str, list[float]]] = {}
    for row in arguments.rows:
        name, stage = ROWS[row]
        folders = [run(name, seed, arguments) for seed in seeds]
        scores[row] = {m: [value(f, stage, m) for f in folders] for m in ("mIoU", "mIoU-tail")}

    print("\n| | mIoU | mIoU-tail | each seed's mIoU |\n|---|---|---|---|")
    for row, means in scores.items():
        each = " ".join(f"{v:.1f}" for v in means["mIoU"])
        print(
            f"| {row} | {with_spread(means['mIoU'])} | {with_spread(means['mIoU-tail'])} | {each} |"
        )
    print("\n| SPCL against | mIoU, paired over seeds |\n|---|---|")
    for row in COMPARED:
        if row in scores and REFERENCE in scores:
            pairs = zip(scores[REFERENCE]["mIoU"], scores[row]["mIoU"], strict=True)
            print(f"| {row} | {with_spread([a - b for a, b in pairs], '+')} |")


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda _: main() or 0))
