"""How long a training step takes on this machine, for dry runs that tell device-hours."""

import sys
import time

import torch

from spcl.configuration.config import Config
from spcl.engine.devices import choose_device
from spcl.engine.footprint import memory
from spcl.engine.gradients import runner
from spcl.engine.networks import new_method, new_segmentor, random_batch
from spcl.engine.trainer import total
from spcl.randomness import Step

HOUR = 3600
CPU_MEMORY = 2 * 2**30  # bytes; a step that needs more is timed with one image
TIMED_STEPS = 4
UNTIMED = "no step was timed (--time tells device-hours of this machine)"


def is_timed(config: Config, asked: bool) -> bool:
    """Whether a dry run times steps: on a GPU always, on a CPU, which takes long, if asked to."""
    return asked or (torch.cuda.is_available() and config.train.device != "cpu")


def timed_on(config: Config) -> str:
    """What the hours of a dry run were made from."""
    device = choose_device(config.train, 0).type
    return f"on this machine's {device} (the fastest of {TIMED_STEPS} steps on random numbers)"


def step_seconds(config: Config, name: str, classes: int, devices: int) -> float:
    """Seconds of one step of a stage on this machine's device, its share of the batch."""
    device = choose_device(config.train, 0)
    batch = max(1, config.batch_of(name) // devices)
    small = device.type == "cpu" and memory(config, name, batch, classes) > CPU_MEMORY
    images = 1 if small else batch
    what = (
        f"{TIMED_STEPS} steps of {name} on this machine's {device.type}, {images} image(s) a domain"
    )
    print(f"timing {what}, random numbers", file=sys.stderr, flush=True)
    return batch / images * _timed(config, name, classes, images, device)


def _timed(config: Config, name: str, classes: int, batch: int, device: torch.device) -> float:
    segmentor = new_segmentor(config, classes, weights="none")
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    method = new_method(config, name, segmentor).to(device).to(memory_format=layout).train()
    running = runner(method, batch, config.train, device.type)
    optimizers = method.all_optimizers()
    data = random_batch(config, name, batch, classes).to(device, config.train.channels_last)
    seconds = []
    for step in range(TIMED_STEPS):  # the first one sets things up, and others may be disturbed
        started = time.perf_counter()
        loss, _ = total(running.terms(data, Step(step)))
        running.backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
