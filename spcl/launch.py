"""From a command line to runs: what `spcl.train` and `ray_jobs/train.py` do alike."""

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from spcl import cli, distributed
from spcl.boards.tables import run_table, seeds_table
from spcl.configuration.chosen_by import carry, stored
from spcl.configuration.config import Config, load, result_settings
from spcl.configuration.early import check_name
from spcl.configuration.layers import parse_overrides
from spcl.engine.commit import commit
from spcl.engine.inputs import (
    check_streets,
    data_root,
    expect_data,
    missing_data,
    open_data,
    prepare_streets,
)
from spcl.engine.piece import Piece
from spcl.engine.planned import refuse
from spcl.engine.run_config import find_run, open_run
from spcl.errors import ConfigError
from spcl.models.segmentor import check_installed
from spcl.models.weights import check_weights
from spcl.settings import digest
from spcl.store.run_folder import RunFolder


@dataclass(frozen=True)
class Request:
    """One run that was asked for."""

    config: Config
    data: Path
    storage: Path
    name: str

    def find(self) -> RunFolder:
        """The run's folder; makes nothing, so that a start that is refused uses up no name.

        A finished run is told which search has chosen these settings.
        """
        run = find_run(self.config, self.storage, self.name)
        if run.done:
            carry(run, self.config.chosen_by)
        return run

    def open(self) -> RunFolder:
        return open_run(self.config, self.storage, self.name)

    @property
    def piece(self) -> Piece:
        """The whole run, as work for every rank."""
        return Piece(
            config=self.config.as_dict(),
            data=str(self.data),
            run=str(self.storage / self.name),
            storage=str(self.storage),
            commit=str(commit()),
        )


def requests(arguments: argparse.Namespace) -> list[Request]:
    """The runs a command line asks for, checked as far as possible without starting anything.

    A dry run writes nothing, and what data it lacks is no error.
    """
    if arguments.name is not None:
        check_name(arguments.name)
    config = load(arguments.benchmark, arguments.method, arguments.config, arguments.settings)
    check_batches(config, config.train.workers)
    check_installed(config.model.name)
    check_weights(config.weights)
    data = data_root(arguments.data)
    storage = cli.storage_root(arguments.storage, writes=not arguments.dry_run)
    if arguments.dry_run:
        check_streets(config, data)
        expect_data(config, data)
    else:
        refuse([split for split in missing_data(config, data) if not split.rendered], data)
        prepare_streets(config, data, lambda text: print(text, file=sys.stderr, flush=True))
        open_data(config, data)
    seeds = cli.parse_seeds(arguments.seeds)
    made = []
    for seed in seeds or [config.seed]:
        one = dataclasses.replace(config, seed=seed)
        base = arguments.name or default_name(config)
        name = f"{base}-s{seed}" if seeds or not arguments.name else base
        made.append(Request(one, data, storage, name))
    if distributed.rank() == 0:
        unread = parse_overrides(arguments.settings).keys() & config.unread_sections()
        for section in sorted(unread):
            stages = ", ".join(config.stages)
            print(f"note: what {section}.* says is read by no stage of {stages}", flush=True)
    return made


def default_name(config: Config) -> str:
    """Made of what can change a result and is not at its default: new settings move no name."""
    usual = result_settings(Config())
    chosen = {k: v for k, v in result_settings(config).items() if k != "seed" and v != usual.get(k)}
    return f"{config.benchmark}-{config.method}-{digest(chosen)[:8]}"


def check_batches(config: Config, workers: int) -> None:
    """A global batch is shared evenly by the workers, so that N workers equal one."""
    for stage in config.stages:
        batch = config.batch_of(stage)
        if batch % workers:
            raise ConfigError(
                f"the batch of stage {stage!r} must be divisible by the workers, "
                f"got batch {batch} and {workers} workers"
            )


def show_done(request: Request, run: RunFolder) -> None:
    """The end of a run: its table and where everything is."""
    print(f"\n{run.name}  (seed {request.config.seed})")
    done = run.result
    print(run_table(done, stored(run)))
    evaluations = "evaluations/, " if done["table"] else ""
    print(f"outputs: {run.folder}  (panel.png, {evaluations}tensorboard/, metrics.jsonl)")


def show_seeds(finished: list[RunFolder]) -> None:
    if len(finished) > 1:
        print(f"\nmean over {len(finished)} seeds, 95 % t interval, %")
        print(seeds_table([run.result for run in finished]))
        for said in sorted({str(stored(run)) for run in finished} - {""}):
            print(said)
