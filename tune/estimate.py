"""What a search would cost: its jobs, the stages they share, device-hours from a timed step."""

import time

import torch

from spcl.artefacts import ArtefactStore
from spcl.config import Config
from spcl.data.batch import Batch
from spcl.data.catalog import open_data
from spcl.dry_run import memory
from spcl.methods import METHODS
from spcl.recipe import choose_device, new_segmentor, set_up_torch
from spcl.stages import plan
from spcl.trainer import total
from tune.jobs import touched
from tune.request import Search
from tune.rungs import added_steps, at_rung, expected_jobs

HOUR = 3600
CPU_MEMORY = 2 * 2**30  # bytes; a step that needs more is timed with one image
TIMED_STEPS = 4


def describe(search: Search) -> str:
    """Space, rungs, jobs, shared stages, device-hours; trains a few steps on random numbers."""
    config = search.config
    lines = [
        f"search {search.name} in {search.folder}",
        f"objective {search.objective}, "
        f"{search.label_budget} labelled target images; {search.trials} configurations, "
        f"sampler {search.sampler}, seed {search.seed}",
        "",
    ]
    lines.append(f"{'parameter':<34}{'default':>12}   searched")
    defaults = search.space.defaults(config)
    for p in search.space.parameters:
        span = list(p.choices) or f"[{p.low:g}, {p.high:g}]{' log' if p.log else ''}"
        note = f" when {dict(p.when)}" if p.when else ""
        value = defaults.get(p.name, "-")
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"{p.name:<34}{shown:>12}   {span}{note}")

    closed = at_rung(config, search.rungs[-1])
    shards = open_data(closed, search.data)
    stages = plan(closed, {role: s.fingerprint for role, s in shards.items()})
    store = ArtefactStore(search.storage)
    lines += ["", f"{'shared stage':<34}{'key':<18}{'stored':<8}"]
    for stage in stages:
        if not touched(stage, search.shared):
            stored = "yes" if store.has(stage) else "no"
            lines.append(f"{stage.title:<34}{stage.key[:16]:<18}{stored:<8}")

    set_up_torch(config.train)
    classes = len(shards["source"].class_names)
    seconds = {name: step_seconds(closed, name, classes, search.devices) for name in closed.stages}
    lines += ["", f"{'rung':<24}{'jobs':>6}{'steps a job':>13}{'device-hours':>14}"]
    whole = 0.0
    jobs = expected_jobs(search.trials, len(search.rungs), search.eta)
    for index, (rung, count) in enumerate(zip(search.rungs, jobs, strict=True)):
        steps = added_steps(search.rungs, index, search.shared)
        each = sum(steps[name] * seconds[name] for name in steps)
        hours = count * each * search.devices / HOUR
        whole += hours
        lines.append(f"{rung.name:<24}{count:>6}{sum(steps.values()):>13}{hours:>14.2f}")
    shared = sum(
        config.of(stage.method).steps * seconds[stage.method]
        for stage in stages
        if stage.method in search.shared and not store.has(stage)
    )
    hours = shared * search.devices / HOUR
    lines.append(f"{'shared':<24}{'':>6}{'':>13}{hours:>14.2f}")
    lines.append(
        f"{sum(jobs)} jobs, {whole + hours:.2f} device-hours of training on this machine's "
        f"{choose_device(config.train, 0).type} (a step was timed on random numbers; loading and "
        "validation come on top); nothing was started"
    )
    return "\n".join(lines)


def step_seconds(config: Config, name: str, classes: int, devices: int) -> float:
    """Seconds of one step of a stage on this machine's device, its share of the batch."""
    device = choose_device(config.train, 0)
    batch = max(1, config.batch_of(name) // devices)
    if device.type == "cpu" and memory(config, name, batch, classes) > CPU_MEMORY:
        return batch * _timed(config, name, classes, 1, device)
    return _timed(config, name, classes, batch, device)


def _timed(config: Config, name: str, classes: int, batch: int, device: torch.device) -> float:
    segmentor = new_segmentor(config, classes, weights="none")
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    method = METHODS[name](segmentor, config.of(name)).to(device, memory_format=layout).train()
    optimizers = method.optimizers()
    tensors = {}
    for role in METHODS[name].domains:
        size = getattr(config, role).size
        tensors[f"{role}_image"] = torch.randn(batch, 3, *size)
        tensors[f"{role}_label"] = torch.randint(0, classes, (batch, *size), dtype=torch.uint8)
    data = Batch(**tensors).to(device, config.train.channels_last)
    seconds = []
    for step in range(TIMED_STEPS):  # the first one sets things up, and others may be disturbed
        started = time.perf_counter()
        loss, _ = total(method(data, step))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
