"""The ensemble's pick: which of the best configurations agrees most with all of them together."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from spcl.data.shards import ShardSet
from spcl.engine.devices import choose_device, set_up_torch
from spcl.engine.networks import load_segmentor
from spcl.errors import DataError
from spcl.inference.validation import ensemble_predictions
from spcl.inference.validators.ensemble import ensemble_agreement
from spcl.store import records
from tune.searching.experiment import Experiment, read

TOP = 5  # configurations in the ensemble
AGREEMENT = "agreement.json"


def candidates(experiment: Experiment) -> list[dict[str, Any]]:
    """The last records of the best configurations: higher rungs first, then by score."""
    scored = [(r, s) for r in experiment.done if (s := experiment.score(r)) is not None]
    last = {record["configuration"]: (record, score) for record, score in scored}
    ranked = sorted(last.values(), key=lambda one: (-one[0]["rung"], -one[1]))
    return [record for record, _ in ranked[:TOP]]


def write_agreement(
    experiment: Experiment, data: Path, storage: Path, run: Callable[[Callable, list], Iterable]
) -> None:
    """agreement.json: the candidates, how far each agrees, and the pick.

    run  maps a function over tasks, where the devices are
    """
    chosen = candidates(experiment)
    if not chosen:
        return
    artefacts = [record["artefact"] for record in chosen]
    task = {
        "config": experiment.config().as_dict(),
        "data": str(data),
        "artefacts": [str(storage / "artefacts" / name) for name in artefacts],
        "temperatures": [record["validators"]["temperature"] for record in chosen],
    }
    (agreement,) = run(measure, [task])
    numbers = [record["configuration"] for record in chosen]
    best = max(range(len(numbers)), key=agreement.__getitem__)
    records.write(
        experiment.folder / AGREEMENT,
        {
            "configuration": numbers[best],
            "configurations": numbers,
            "rungs": [record["rung"] for record in chosen],
            "agreement": agreement,
            "artefacts": artefacts,
        },
    )


def is_current(experiment: Experiment) -> bool:
    """Does agreement.json speak of the present candidates?"""
    path = experiment.folder / AGREEMENT
    try:
        known = read(path).get("artefacts")
    except records.MissingRecord:
        return not candidates(experiment)
    except DataError:
        return False  # it is made again
    return known == [record["artefact"] for record in candidates(experiment)]


def measure(task: dict[str, Any]) -> list[float]:
    """Each network's agreement with the ensemble, on target training images."""
    from spcl.configuration.config import from_dict

    config = from_dict(task["config"])
    set_up_torch(config.train)
    device = choose_device(config.train, 0)
    source = ShardSet(Path(task["data"]) / config.source.dataset / config.source.split)
    target = ShardSet(Path(task["data"]) / config.target.dataset / config.target.split)
    classes = len(source.class_names)
    networks = [load_segmentor(config, classes, Path(folder)) for folder in task["artefacts"]]
    return ensemble_agreement(
        ensemble_predictions(networks, task["temperatures"], target, config, device)
    )
