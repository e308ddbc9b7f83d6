"""How far a search's label-free scores can be trusted: the oracle, computed after the search.

    python -m tune.searching.audit EXPERIMENT      (`python tune/search.py --audit` starts it)

The oracle of a job is the mIoU of its stored checkpoint on the evaluation split, by the protocol of
the benchmark.  No job opens target labels unless the objective is made of them (few_label,
target_oracle); the audit opens them in a process of its own.  Every artefact is evaluated once: its
confusion matrices are kept in <experiment>/audit/, and a stopped audit goes on from there.

    audit.parquet   a row per job: oracle, IoU per class, validators, score
    audit.json      per validator and rung: Spearman, regret, rank of its pick, with intervals
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spcl import cli
from spcl.errors import DataError, UserError
from spcl.store import atomic
from spcl.store.records import read, write

if TYPE_CHECKING:
    import numpy as np

    from spcl.configuration.config import Config
    from spcl.data.shards import ShardSet
    from tune.searching.experiment import Experiment

SCHEMA = 1


# The oracle.


class Oracle:
    """Per-image confusion matrices (N, K, K) of artefacts on the evaluation split, kept on disk."""

    def __init__(self, experiment: Experiment, data: Path, storage: Path):
        from spcl.engine.devices import choose_device, set_up_torch
        from spcl.engine.inputs import open_data, prepare_streets
        from spcl.settings import digest
        from tune.searching.page import AUDIT

        self.config: Config = experiment.config()
        if not self.config.evaluation.wanted:
            raise UserError(
                "an audit needs labels of the target, but this search has evaluation.dataset=none; "
                "search with a benchmark that has a labelled evaluation split"
            )
        prepare_streets(self.config, data, lambda text: print(text, file=sys.stderr, flush=True))
        self.split: ShardSet = open_data(self.config, data)["evaluation"]
        self.artefacts = storage / "artefacts"
        scored = {
            "evaluation": self.config.as_dict()["evaluation"],
            "data": self.split.fingerprint,
        }
        self.cache = experiment.folder / "audit" / digest(scored)[:16]
        self.hashes = self._known(experiment.folder / AUDIT)  # of each artefact's matrices
        self.device = choose_device(self.config.train, 0)
        set_up_torch(self.config.train)

    def __call__(self, artefact: str) -> np.ndarray:
        from spcl.store.run_folder import read_confusions, write_confusions

        path = self.cache / f"{artefact}.parquet"
        known = self.hashes.get(artefact)
        if not path.is_file() or known not in (None, atomic.sha256(path)):
            write_confusions(path, *self._evaluate(artefact))
        self.hashes[artefact] = atomic.sha256(path)
        return read_confusions(path)[1]

    def _known(self, path: Path) -> dict[str, str]:
        """Hashes that an earlier audit of the same kind has noted."""
        try:
            earlier = read(path, "it is made again")
        except DataError:
            return {}
        same = earlier.get("confusions") == self.cache.name
        return earlier.get("matrices", {}) if same else {}

    def _evaluate(self, artefact: str) -> tuple[list[str], np.ndarray]:
        from spcl.engine.artefacts import verify
        from spcl.engine.networks import load_segmentor
        from spcl.inference.predict import evaluate

        folder = self.artefacts / artefact
        if not folder.is_dir():
            raise DataError(
                f"{folder} is missing; remove its record in jobs/ and search again, or restore it"
            )
        verify(folder)
        config, device = self.config, self.device
        segmentor = load_segmentor(config, len(self.split.class_names), folder).to(device)
        segmentor.eval()
        return evaluate(segmentor.predict, self.split, config.evaluation, device)


def miou(matrices: np.ndarray, protocol: str) -> float:
    """The protocol's headline mean of confusion matrices (N, K, K), in [0, 1]."""
    from spcl.scoring.protocols import headline, score

    return headline(score(matrices.sum(0), protocol)["means"])["value"]


# The audit.


def audit(
    folder: Path,
    data: Path | None = None,
    storage: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Evaluate what isn't yet, write audit.parquet and audit.json; returns rows and summary.

    data, storage: where they are now, if not where the search had them
    """
    import numpy as np

    from tune.searching.experiment import ORACLE, Experiment, halves
    from tune.searching.page import AUDIT
    from tune.searching.trust import RESAMPLES, VALIDATORS, validators

    experiment = Experiment(folder)
    if experiment.reference is None or not experiment.done:
        raise UserError(f"nothing to audit: {experiment.name} has no finished job yet")
    oracle = Oracle(
        experiment,
        Path(data or experiment.request["data"]),
        Path(storage or experiment.request["storage"]),
    )
    records = [experiment.reference, *experiment.done]
    confusions: dict[str, np.ndarray] = {}
    for number, record in enumerate(records, 1):
        say(f"audit: {number} of {len(records)} checkpoints ({record['artefact']})")
        if record["artefact"] not in confusions:
            confusions[record["artefact"]] = oracle(record["artefact"])
    protocol = oracle.config.evaluation.protocol
    few = experiment.request["objective"].startswith("few_label")
    names = (*VALIDATORS, "score") if few else VALIDATORS
    rows = [_row(experiment, r, confusions[r["artefact"]], protocol) for r in records]
    uses_labels = experiment.request["objective"] == ORACLE
    parts = halves(oracle.split.sample_ids)
    kept = parts[1] if uses_labels else np.arange(len(oracle.split))
    summary = {
        "experiment": experiment.name,
        "objective": experiment.request["objective"],
        "split": oracle.split.name,
        "fingerprint": oracle.split.fingerprint,
        "confusions": oracle.cache.name,
        "matrices": {name: oracle.hashes[name] for name in confusions},
        "images": len(oracle.split),
        "protocol": protocol,
        "classes": oracle.split.class_names,
        "rungs": experiment.rung_names,
        "resamples": RESAMPLES,
        "validators": validators(rows, experiment.rung_names, names),
        "gain": gain(experiment, {a: m[kept] for a, m in confusions.items()}, protocol),
        "optimism": optimism(experiment, confusions, parts, protocol) if uses_labels else None,
    }
    _write_rows(experiment.folder / "audit.parquet", rows)
    write(experiment.folder / AUDIT, summary)
    return rows, summary


def _row(
    experiment: Experiment, record: dict[str, Any], matrices: np.ndarray, protocol: str
) -> dict[str, Any]:
    from spcl.scoring.protocols import score
    from tune.searching.trust import VALIDATORS

    values = {name: record["validators"].get(name) for name in VALIDATORS[:-1]}
    return {
        "configuration": record["configuration"],
        "rung": record["rung"],
        "artefact": record["artefact"],
        "oracle": miou(matrices, protocol),
        "iou": score(matrices.sum(0), protocol)["iou"],
        **values,
        "label_free": experiment.score(record, "label_free"),
        "score": experiment.score(record),
    }


def gain(
    experiment: Experiment, confusions: dict[str, np.ndarray], protocol: str
) -> dict[str, Any] | None:
    """Oracle of the chosen configuration minus that of the default one, in mIoU.

    At the last rung that both have reached; interval over images, drawn for both alike.
    """
    import numpy as np

    from tune.searching.trust import RESAMPLES, TAILS

    chosen, default = experiment.chosen, experiment.default
    if chosen is None:
        return None
    reached: dict[int, dict[int, str]] = {chosen["configuration"]: {}, default: {}}
    for record in experiment.done:
        if record["configuration"] in reached:
            reached[record["configuration"]][record["rung"]] = record["artefact"]
    shared = set.intersection(*(set(rungs) for rungs in reached.values()))
    if not shared:
        return None
    rung = max(shared)
    mine = confusions[reached[chosen["configuration"]][rung]]
    theirs = confusions[reached[default][rung]]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        images = rng.integers(len(mine), size=len(mine))
        drawn.append(miou(mine[images], protocol) - miou(theirs[images], protocol))
    return {
        "configuration": chosen["configuration"],
        "default": default,
        "rung": experiment.rung_names[rung],
        "chosen_miou": miou(mine, protocol),
        "default_miou": miou(theirs, protocol),
        "gain": miou(mine, protocol) - miou(theirs, protocol),
        "interval": [float(q) for q in np.quantile(drawn, TAILS)],
        "images": len(mine),
    }


def optimism(
    experiment: Experiment,
    confusions: dict[str, np.ndarray],
    parts: tuple[np.ndarray, np.ndarray],
    protocol: str,
) -> dict[str, Any] | None:
    """What choosing by target labels promises too much: choose on one half, report on the other.

    optimism  the choice's mIoU on the half it was chosen on minus that on the other, less the mean
              of that difference over all jobs, which is the halves' and not the choice's
    """
    if experiment.chosen is None:
        return None
    chosen = experiment.chosen["artefact"]
    own, other = (
        {
            record["artefact"]: miou(confusions[record["artefact"]][half], protocol)
            for record in experiment.done
        }
        for half in parts
    )
    difference = {artefact: own[artefact] - other[artefact] for artefact in own}
    return {
        "configuration": experiment.chosen["configuration"],
        "chosen_on": own[chosen],
        "reported": other[chosen],
        "optimism": difference[chosen] - sum(difference.values()) / len(difference),
        "images": [len(half) for half in parts],
    }


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    table = pa.Table.from_pylist(list(rows)).replace_schema_metadata({"schema": str(SCHEMA)})
    pq.write_table(table, buffer, compression="zstd")
    atomic.write_bytes(path, buffer.getvalue().to_pybytes())


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tune.searching.audit",
        description=__doc__,
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--data", type=Path, help="converted data, if moved since the search")
    parser.add_argument("--storage", type=Path, help="results, if moved since the search")
    arguments = parser.parse_args(argv)
    from tune.searching.experiment import Experiment

    Experiment(arguments.experiment)  # is it one?  before the seconds that torch takes to load
    from tune.searching.outputs import write_outputs
    from tune.searching.trust import report_lines

    folder = arguments.experiment.resolve()
    _, summary = audit(
        folder, arguments.data, arguments.storage, lambda t: print(t, file=sys.stderr, flush=True)
    )
    write_outputs(folder)
    print("\n".join(report_lines(summary)))
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
