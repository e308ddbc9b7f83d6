"""What a sweep would cost: its cells, the stages they share, steps, or device-hours if timed."""

from collections.abc import Iterator

from spcl.engine.artefacts import ArtefactStore
from spcl.engine.devices import set_up_torch
from spcl.engine.planned import NOT_CONVERTED, last_lines
from spcl.engine.timing import HOUR, UNTIMED, step_seconds, timed_on
from tune.sweeping.grid import Cell, Sweep


def describe(sweep: Sweep, timed: bool) -> str:
    """Cells, distinct stages, steps, memory; device-hours if `timed`; what data are missing."""
    store = ArtefactStore(sweep.storage)
    cells = sweep.distinct
    distinct = {stage.key: stage for cell in cells for stage in cell.stages}
    stored = {key for key, stage in distinct.items() if stage.has_key and store.has(stage)}
    users = {key: sum(key in cell.keys for cell in cells) for key in distinct}

    lines = [f"sweep {sweep.name} in {sweep.folder}"]
    lines += [*(f"  {split}" for split in sweep.missing), ""]
    width = max(len(row.name) for row in sweep.rows) + 2
    lines.append(f"{'row':<{width}}{'seed':>4}  {'run':<48}{'stages stored':<15}state")
    for (row, seed), cell in sweep.cells.items():
        have = f"{len(cell.keys & stored)} of {len(cell.stages)}"
        state = "done" if cell.run.done else "to do"
        name = cell.name if all(stage.has_key for stage in cell.stages) else NOT_CONVERTED
        lines.append(f"{row:<{width}}{seed:>4}  {name:<48}{have:<15}{state}")

    to_do = list(_to_do([cell for cell in cells if not cell.run.done], set(stored)))
    timed = timed and all(cell.classes for cell in cells)
    seconds = _seconds(to_do) if timed else {}
    steps: dict[str, int] = {}
    for name, cell in to_do:
        steps[name] = steps.get(name, 0) + cell.config.of(name).steps
    lines += ["", f"{'stage':<34}{'distinct':>9}{'used by':>9}{'stored':>8}"]
    lines[-1] += f"{'device-hours':>14}" if timed else f"{'steps to do':>14}"
    for title in dict.fromkeys(stage.title for stage in distinct.values()):
        keys = {key for key, stage in distinct.items() if stage.title == title}
        used = sum(users[key] for key in keys)
        row = f"{title:<34}{len(keys):>9}{used:>9}{len(keys & stored):>8}"
        if title in steps:
            row += f"{seconds[title] / HOUR:>14.2f}" if timed else f"{steps[title]:>14}"
        lines.append(row)
    total = sum(len(cell.stages) for cell in cells)
    spent = f"{sum(steps.values())} steps of training to do; {UNTIMED}"
    if timed:
        spent = (
            f"{sum(seconds.values()) / HOUR:.2f} device-hours of training "
            f"{timed_on(cells[0].config)}; loading, passes and evaluation come on top"
        )
    lines.append(
        f"{len(cells)} distinct runs in {len(sweep.cells)} cells; {len(distinct)} distinct stages "
        f"for {total}, {len(stored)} stored; {spent}; nothing was started"
    )
    return "\n".join([*lines, *last_lines(sweep.missing, sweep.data)])


def _to_do(cells: list[Cell], counted: set[str]) -> Iterator[tuple[str, Cell]]:
    """The training stages whose keys are not in `counted`, each once, with a cell that has it."""
    for cell in cells:
        for stage in cell.stages:
            if stage.method and stage.key not in counted:
                counted.add(stage.key)
                yield stage.method, cell


def _seconds(to_do: list[tuple[str, Cell]]) -> dict[str, float]:
    """Device-seconds of training stages by name."""
    timed: dict[tuple, float] = {}  # by what changes a step's time much
    seconds: dict[str, float] = {}
    for name, cell in to_do:
        config, train = cell.config, cell.config.train
        set_up_torch(train)
        sizes = config.source.shown, config.target.shown
        kind = (name, config.model, config.batch_of(name), *sizes)
        if kind not in timed:
            assert cell.classes is not None, "what is timed has its data"
            timed[kind] = step_seconds(config, name, cell.classes, train.workers)
        steps = config.of(name).steps
        seconds[name] = seconds.get(name, 0.0) + steps * timed[kind] * train.workers
    return seconds
