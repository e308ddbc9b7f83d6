"""What a command would do: stages, keys, what is stored already, steps, memory."""

from spcl.engine.artefacts import ArtefactStore
from spcl.engine.footprint import memory
from spcl.engine.inputs import expect_data, missing_data
from spcl.engine.planned import NOT_CONVERTED, Planned, count_classes, last_lines
from spcl.engine.stages import Stage, plan
from spcl.launch import Request

MIB = 2**20


def describe(request: Request, workers: int) -> str:
    """A table of the stages, in the order they would run; then what data they still miss.

    Every rank of a process group calls it.
    """
    config = request.config
    splits = expect_data(config, request.data)
    stages = plan(config, {role: s.fingerprint for role, s in splits.items()})
    classes = count_classes(splits.values())
    store = ArtefactStore(request.storage)
    lines = [f"run {request.name} in {request.storage / request.name}"]
    if config.compat == "official":
        lines.append(
            f"  compat=official: what the authors' code does, configs/compat/{config.method}.yaml"
        )
    if config.model.spec.licence:
        lines.append(f"  {'network':<11}{config.model.name}: {config.model.spec.licence}")
    for role, split in splits.items():
        if isinstance(split, Planned):
            about = str(split)
        else:
            about = f"{split.name}, {len(split)} images, {split.folder}"
        lines.append(f"  {role:<11}{about}")
    lines.append(f"{'stage':<34}{'key':<18}{'stored':<8}{'steps':>7}{'batch':>7}{'MiB/worker':>12}")
    for stage in stages:
        row = f"{stage.title:<34}{key_columns(stage, store)}"
        if stage.method:
            section = config.of(stage.method)
            batch = config.batch_of(stage.method)
            need = classes and memory(config, stage.method, batch // workers, classes, workers)
            row += f"{section.steps:>7}{batch:>7}{mebibytes(need):>12}"
        lines.append(row)
    lines.append(f"{workers} worker(s), {config.train.threads} thread(s) each; nothing was started")
    return "\n".join([*lines, *last_lines(missing_data(config, request.data), request.data)])


def key_columns(stage: Stage, store: ArtefactStore) -> str:
    """The beginning of a stage's key, and whether it is stored, in 26 columns."""
    if not stage.has_key:
        return f"{NOT_CONVERTED:<18}{'?':<8}"
    stored = "yes" if store.has(stage) else "no"
    return f"{stage.key[:16]:<18}{stored:<8}"


def mebibytes(count: int | None) -> str:
    """Bytes in MiB; "?" if unknown, since the number of classes is."""
    return "?" if count is None else f"{count / MIB:.0f}"
