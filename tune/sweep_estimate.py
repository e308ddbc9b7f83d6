"""What a sweep would cost: its cells, the stages they share, device-hours from a timed step."""

from spcl.artefacts import ArtefactStore
from spcl.recipe import choose_device, set_up_torch
from tune.estimate import HOUR, step_seconds
from tune.sweep_grid import Cell, Sweep


def describe(sweep: Sweep) -> str:
    """Cells, distinct stages, device-hours; trains a few steps on random numbers."""
    store = ArtefactStore(sweep.storage)
    cells = sweep.distinct
    distinct = {stage.key: stage for cell in cells for stage in cell.stages}
    stored = {key for key, stage in distinct.items() if store.has(stage)}
    users = {key: sum(key in cell.keys for cell in cells) for key in distinct}

    lines = [f"sweep {sweep.name} in {sweep.folder}", ""]
    width = max(len(row.name) for row in sweep.rows) + 2
    lines.append(f"{'row':<{width}}{'seed':>4}  {'run':<48}{'stages stored':<15}state")
    for (row, seed), cell in sweep.cells.items():
        have = f"{len(cell.keys & stored)} of {len(cell.stages)}"
        state = "done" if cell.run.done else "to do"
        lines.append(f"{row:<{width}}{seed:>4}  {cell.name:<48}{have:<15}{state}")

    lines += ["", f"{'stage':<34}{'distinct':>9}{'used by':>9}{'stored':>8}{'device-hours':>14}"]
    seconds = _missing_seconds([cell for cell in cells if not cell.run.done], set(stored))
    for title in dict.fromkeys(stage.title for stage in distinct.values()):
        keys = {key for key, stage in distinct.items() if stage.title == title}
        used = sum(users[key] for key in keys)
        row = f"{title:<34}{len(keys):>9}{used:>9}{len(keys & stored):>8}"
        cost = seconds.get(title)
        lines.append(row if cost is None else row + f"{cost / HOUR:>14.2f}")
    device = choose_device(cells[0].config.train, 0).type
    total = sum(len(cell.stages) for cell in cells)
    lines.append(
        f"{len(cells)} distinct runs in {len(sweep.cells)} cells; {len(distinct)} distinct stages "
        f"for {total}, {len(stored)} stored; {sum(seconds.values()) / HOUR:.2f} device-hours of "
        f"training on this machine's {device} (a step was timed on random numbers; loading, passes "
        "and evaluation come on top); nothing was started"
    )
    return "\n".join(lines)


def _missing_seconds(cells: list[Cell], counted: set[str]) -> dict[str, float]:
    """Device-seconds of the training stages that are not in `counted`, by title."""
    timed: dict[tuple, float] = {}  # by what changes a step's time much
    seconds: dict[str, float] = {}
    for cell in cells:
        train = cell.config.train
        set_up_torch(train)
        for stage in cell.stages:
            if stage.method is None or stage.key in counted:
                continue
            counted.add(stage.key)
            name = stage.method
            config = cell.config
            sizes = config.source.size, config.target.size
            kind = (name, config.model, config.batch_of(name), *sizes)
            if kind not in timed:
                timed[kind] = step_seconds(config, name, cell.classes, train.workers)
            steps = config.of(name).steps
            seconds[name] = seconds.get(name, 0.0) + steps * timed[kind] * train.workers
    return seconds
