"""Find good hyper-parameters for a pair of domains, without target labels unless asked to."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs import cluster, train
from spcl import cli
from spcl.errors import UserError
from spcl.store.lease import Lease

if TYPE_CHECKING:
    from spcl.configuration.config import Config
    from spcl.engine.planned import Planned
    from tune.searching.experiment import Experiment
    from tune.searching.request import Search
    from tune.searching.rungs import Rung

EXAMPLE = """examples:
  python tune/search.py                                        16 configurations of SPCL on streets
  python tune/search.py --benchmark synscapes --trials 32 --dry-run
  python tune/search.py --benchmark gta5 --objective few_label:20 --devices-per-trial 2
  python tune/search.py --audit NAME                           how far its scores can be trusted
The same command continues a search that was stopped.  Watch it with:
  optuna-dashboard runs/searches/NAME/journal.log
"""
AUTO = "auto"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from spcl.inference.validators import OBJECTIVES
    from tune.searching.experiment import SAMPLERS
    from tune.searching.rungs import PROMOTIONS

    parser = cli.Parser(
        prog="python tune/search.py",
        description=__doc__,
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("--benchmark", help="a file of configs/benchmarks (default: streets)")
    add("--method", help="a file of configs/methods (default: spcl)")
    add("--space", help="a file, or a name in configs/search (default: the method's)")
    add("--objective", default="label_free", help=f"{', '.join(OBJECTIVES)}; few_label:M")
    add("--trials", type=int, default=16, help="configurations (default: 16)")
    add("--eta", type=int, default=4, help="one of ETA climbs to the next rung (default: 4)")
    add("--seed", type=int, default=0, help="of the sampler; training has its own, seed=N")
    add("--sampler", choices=SAMPLERS, default="tpe")
    add("--promotion", choices=tuple(PROMOTIONS), default="asha")
    add("--name", help="of the search (default: made of what is asked)")
    add("--devices-per-trial", type=int, default=1, metavar="N", help="GPUs, else CPU processes")
    add("--concurrent", default=AUTO, metavar="N", help="configurations at a time (default: all)")
    add("--max-failures", type=int, default=1, metavar="N", help="retries of a killed job")
    add("--final-seeds", type=int, default=0, metavar="N", help="train the picks with N seeds")
    add("--audit", metavar="EXPERIMENT", help="judge a finished search by the target's labels")
    add("--dry-run", action="store_true", help="say what would run and cost, and stop")
    add("--time", action="store_true", help="with --dry-run: time steps on a CPU, too")
    cli.add_places(parser)
    add("--address", help="Ray cluster (default: $RAY_ADDRESS, else this machine)")
    add("settings", nargs="*", metavar="key=value", help="settings, e.g. train.threads=1")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.time and not arguments.dry_run:
        raise UserError("--time is of a dry run; add --dry-run")
    for name, least in (
        ("trials", 1), ("eta", 2), ("seed", 0), ("devices_per_trial", 1),
        ("max_failures", 0), ("final_seeds", 0),
    ):  # fmt: skip
        if getattr(arguments, name) < least:
            option = name.replace("_", "-")
            raise UserError(f"--{option} must be at least {least}, got {getattr(arguments, name)}")
    if arguments.concurrent != AUTO and not (
        arguments.concurrent.isdigit() and int(arguments.concurrent)
    ):
        raise UserError(f"--concurrent must be auto or a number, got {arguments.concurrent!r}")
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """ConfigError where a name, a key or a value is unknown; told without torch and optuna."""
    from spcl.configuration import early, table
    from spcl.configuration.layers import known
    from spcl.inference.validators import OBJECTIVES
    from spcl.settings import choose

    table.check(arguments.benchmark, arguments.method, None, arguments.settings)
    choose(arguments.objective.partition(":")[0], OBJECTIVES, "objective")
    space = arguments.space
    if space and not space.endswith(".yaml") and space != arguments.method:
        choose(space, known("search"), "space")
    if arguments.name:
        early.check_name(arguments.name)


def resolve(arguments: argparse.Namespace) -> Search:
    """The search that is asked for, checked as far as possible without starting anything.

    A dry run writes nothing, and what data it lacks is no error.
    """
    from spcl.configuration.config import load
    from spcl.configuration.early import check_name
    from spcl.engine.inputs import (
        check_streets,
        data_root,
        expect_data,
        open_data,
        prepare_streets,
    )
    from spcl.engine.planned import refuse
    from spcl.launch import check_batches
    from tune.searching.request import Search, check_objective, few_label_count, with_holdout
    from tune.searching.rungs import at_rung, ladder, references
    from tune.searching.space import load_space

    config = load(arguments.benchmark, arguments.method, None, arguments.settings)
    data = data_root(arguments.data)
    storage = cli.storage_root(arguments.storage, writes=not arguments.dry_run)
    few_label_count(arguments.objective)
    space = load_space(arguments.space or config.method, config)
    rungs = ladder(config, space.keys)
    for recipe in (config, *references(config, space.keys)):
        check_batches(recipe, arguments.devices_per_trial)
    missing = missing_splits(arguments, config, rungs, data)
    if arguments.dry_run:
        check_streets(config, data)
    else:
        refuse([split for split in missing if not split.rendered], data)
        prepare_streets(config, data, _say)
    config = with_holdout(config, data)
    read = expect_data if arguments.dry_run else open_data
    read(at_rung(config, rungs[-1]), data)
    check_objective(arguments.objective, config, data)
    objective = arguments.objective.replace(":", "-")
    name = arguments.name or f"{config.benchmark}-{config.method}-{objective}-s{arguments.seed}"
    check_name(name)
    return Search(
        name=name,
        config=config,
        space=space,
        rungs=rungs,
        objective=arguments.objective,
        trials=arguments.trials,
        eta=arguments.eta,
        seed=arguments.seed,
        sampler=arguments.sampler,
        promotion=arguments.promotion,
        data=data,
        storage=storage,
        devices=arguments.devices_per_trial,
        max_failures=arguments.max_failures,
        settings=tuple(arguments.settings),
    )


def missing_splits(
    arguments: argparse.Namespace, config: Config, rungs: Sequence[Rung], data: Path
) -> list[Planned]:
    """What a search reads and is not there.  Of the evaluation split: only if it is scored on."""
    from spcl.engine.inputs import missing_data
    from tune.searching.jobs import LABELLED_SPLIT
    from tune.searching.request import few_label_count
    from tune.searching.rungs import at_rung

    scored = arguments.final_seeds or _is_audited(arguments.objective, config)
    read = config if scored else at_rung(config, rungs[-1])
    more = [(config.target.dataset, config.target.split)]  # for validators, whatever is trained
    if few_label_count(arguments.objective):
        more.append((config.target.dataset, LABELLED_SPLIT))
    return missing_data(read, data, more)


def _is_audited(objective: str, config: Config) -> bool:
    """Whether a search ends with an audit: it must say how optimistic an oracle is."""
    from spcl.engine.planned import STREETS
    from tune.searching.experiment import ORACLE

    embedded = config.source.dataset.startswith(STREETS) and config.evaluation.wanted
    return embedded or objective == ORACLE


def run(argv: Sequence[str] | None) -> int:
    arguments = parse(argv)
    if arguments.audit:
        return _audit(find_experiment(arguments.audit, arguments.storage))
    cluster.check_job_paths(arguments, "tune/search.py")
    check(arguments)
    from tune.searching.experiment import Experiment

    search = resolve(arguments)
    if arguments.dry_run:
        from spcl.engine.timing import is_timed
        from tune.searching.estimate import describe

        missing = missing_splits(arguments, search.config, search.rungs, search.data)
        print(describe(search, missing, is_timed(search.config, arguments.time)))
        return 0
    with Lease(search.folder):
        if search.is_new:
            _places(search, arguments)  # a start that is refused uses up no name
        search.open()
        _climb(search, arguments)
    experiment = Experiment(search.folder)
    _show(experiment)
    if arguments.final_seeds:
        _train_picks(experiment, arguments)
    if _is_audited(search.objective, search.config):
        return _audit(search.folder)
    return 0


def _climb(search: Search, arguments: argparse.Namespace) -> None:
    """Everything that a search does on the cluster, and its outputs."""
    from tune.searching.agreement import is_current, write_agreement
    from tune.searching.driver import Driver, forget_failed_reference
    from tune.searching.experiment import Experiment
    from tune.searching.outputs import write_outputs
    from tune.searching.study import mend

    for text in mend(search.folder):
        _say(text)
    forget_failed_reference(search.folder)
    driver = Driver(search, _say)
    if driver.is_over and is_current(Experiment(search.folder)):
        _say(f"{search.name} is finished already")
    else:
        from ray_jobs import slots
        from tune.searching import trials

        driver.worker, driver.slots = _places(search, arguments)
        _say(
            f"{search.name}: {search.trials} configurations, {driver.slots} at a time; "
            f"{len(driver.records)} jobs were done before"
        )
        if not driver.is_over:
            trials.climb(driver, search.devices, search.max_failures)
        experiment = Experiment(search.folder)

        def on_device(function, tasks):
            return cluster.ray_map(function, tasks, 1, driver.worker)

        if not is_current(experiment):
            write_agreement(experiment, search.data, search.storage, on_device)
        slots.leave()
    driver.close()
    write_outputs(search.folder)


def _places(search: Search, arguments: argparse.Namespace) -> tuple[dict[str, float], int]:
    """On the cluster, which is joined or started: what a device of a job reserves, and how many
    jobs run at a time.
    """
    from ray_jobs import slots
    from tune.searching import trials

    trials.connect(arguments.address)
    worker = slots.worker_resources(search.config.train)
    concurrent = None if arguments.concurrent == AUTO else int(arguments.concurrent)
    return worker, slots.slots(worker, search.devices, concurrent)


def find_experiment(name: str, storage: str | None) -> Path:
    """The folder of an experiment, given as such or by name."""
    from spcl.settings import choose
    from tune.searching.experiment import SEARCHES

    folder = Path(name)
    if (folder / "search.yaml").exists():
        return folder.resolve()
    root = cli.storage_root(storage, writes=False) / SEARCHES
    found = sorted(path.parent.name for path in root.glob("*/search.yaml"))
    if not found:
        raise UserError(f"there are no searches in {root}; give --storage, or search first")
    return root / choose(name, found, "search")


def _show(experiment: Experiment) -> None:
    """The end of a search: the picks and where everything is."""
    from tune.searching.experiment import ORACLE
    from tune.searching.trust import warning

    chosen = experiment.chosen
    objective = experiment.request["objective"]
    if objective == ORACLE:
        print("TARGET ORACLE: labels of the evaluation split chose this; it is no fair result")
    elif experiment.request["label_budget"]:
        print(f"{experiment.request['label_budget']} labelled target images chose this")
    if chosen is None:
        print("no configuration has a score: all failed or violate a constraint")
    else:
        print(
            f"best: configuration {chosen['configuration']}, score {experiment.score(chosen):.4f} "
            f"after {experiment.rung_names[chosen['rung']]}"
        )
        for key, value in experiment.settings(chosen["configuration"]).items():
            print(f"  {key} = {value:.6g}" if isinstance(value, float) else f"  {key} = {value}")
        print(f"the ensemble (EnsV) picks configuration {experiment.agreement}")
    known = warning(objective)
    if known:
        print(f"note: {known}")
    print(
        f"outputs: {experiment.folder}  (best.yaml, pick-N.yaml, report.html, trials.csv, "
        "trials.parquet)"
    )


def _train_picks(experiment: Experiment, arguments: argparse.Namespace) -> None:
    """The whole recipe with both picks, over seeds, from scratch."""
    if experiment.chosen is None:
        raise UserError("there is nothing to train: no configuration has a score")
    from tune.searching.outputs import pick_path

    seeds = f"0..{arguments.final_seeds - 1}"
    for number in experiment.picks:
        line = ["--config", str(pick_path(experiment, number)), "--seeds", seeds]
        line += ["--name", f"{experiment.name}-c{number}", "--workers"]
        line += [str(arguments.devices_per_trial), "--data", experiment.request["data"]]
        line += ["--storage", experiment.request["storage"]]
        line += ["--address", arguments.address] if arguments.address else []
        _say(f"python ray_jobs/train.py {shlex.join(line)}")
        train.main(line)


def _audit(folder: Path) -> int:
    """In a process of its own: no job opens target labels unless the objective is made of them."""
    return subprocess.run([sys.executable, "-m", "tune.searching.audit", str(folder)]).returncode


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(run, argv)


if __name__ == "__main__":
    cli.treat_sigterm_as_ctrl_c()  # so that a stopped job says how to go on
    sys.exit(main())
