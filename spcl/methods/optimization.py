"""How a stage moves its weights: optimizer and groups, the schedule of the rate, clipping.

Plain functions of a stage's settings, so that a method says what is its own and nothing else: its
players' optimizers.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spcl.methods.stage import StageConfig
from spcl.models.normalization import DomainNorm
from spcl.models.segmentor import NO_DECAY, Segmentor

ADAMW_BETAS = (0.9, 0.999)  # DAFormer's code, torch's default
WARM_UP_RATIO = 1e-6  # DAFormer's code: share of the rate at step 0 of a warm-up
NORMS = (DomainNorm, _BatchNorm, nn.LayerNorm, nn.GroupNorm)


def build(segmentor: Segmentor, stage: StageConfig) -> torch.optim.Optimizer:
    """The segmentor's optimizer: its head at `head_multiplier` times the backbone's rate.

    With `layer_decay` a layer of the backbone has so much of the rate of the layer behind it; the
    last has all.  Weight decay spares what the network's row in MODELS says (`no_decay`), and
    without `norm_decay` the norms.
    """
    rates = {"backbone": stage.learning_rate, "head": stage.learning_rate * stage.head_multiplier}
    free = set() if stage.norm_decay else set(map(id, norm_parameters(segmentor)))
    groups: list[dict[str, Any]] = []
    for name, parameters in segmentor.parameter_groups().items():
        rate = {"lr": rates[name.removesuffix(NO_DECAY)]}
        decayed = [p for p in parameters if id(p) not in free and not name.endswith(NO_DECAY)]
        if decayed:
            groups.append({"params": decayed} | rate)
        if len(decayed) < len(parameters):
            kept = set(map(id, decayed))
            rest = [p for p in parameters if id(p) not in kept]
            groups.append({"params": rest, "weight_decay": 0.0} | rate)
    if stage.layer_decay != 1.0:
        groups = _by_layer(groups, segmentor.depths(), stage.layer_decay)
    return _optimizer(groups, stage)


def _by_layer(groups: list[dict], depths: dict[int, int], decay: float) -> list[dict]:
    """The groups, each split by the depth of its parameters; a head's have none, which is 0."""
    split = []
    for group in groups:
        found: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            found.setdefault(depths.get(id(parameter), 0), []).append(parameter)
        for depth, parameters in sorted(found.items()):
            split.append(group | {"params": parameters, "lr": group["lr"] * decay**depth})
    return split


def build_head(parameters: list[nn.Parameter], stage: StageConfig) -> torch.optim.Optimizer:
    """The optimizer of a further head, an extra's: of the stage's kind, at its head's rate."""
    rate = stage.learning_rate * stage.head_multiplier
    return _optimizer([{"params": parameters, "lr": rate}], stage)


def _optimizer(groups: list[dict], stage: StageConfig) -> torch.optim.Optimizer:
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=ADAMW_BETAS, weight_decay=stage.weight_decay)
    return torch.optim.SGD(groups, momentum=stage.momentum, weight_decay=stage.weight_decay)


def norm_parameters(module: nn.Module) -> Iterable[nn.Parameter]:
    """The scales and shifts of all normalisation layers."""
    for layer in module.modules():
        if isinstance(layer, NORMS):
            yield from layer.parameters(recurse=False)


def factor(stage: StageConfig, step: int) -> float:
    """What multiplies every rate of a stage at a step.

    The poly decay; in the first `warm_up_steps` times a line from WARM_UP_RATIO to 1.  Source: that
    of DAFormer's code, where the decay goes on beneath the warm-up.
    """
    decay = poly_factor(step, stage.horizon, stage.poly_power)
    if step >= stage.warm_up_steps:
        return decay
    return decay * (1 - (1 - step / stage.warm_up_steps) * (1 - WARM_UP_RATIO))


def poly_factor(step: int, horizon: int, power: float) -> float:
    """(1 - step / horizon) ** power, never negative; linear for power 1."""
    return max(0.0, 1.0 - step / horizon) ** power


def rates_of(optimizers: Iterable[torch.optim.Optimizer]) -> list[list[float]]:
    """The rate of each group as it was built, which `schedule` multiplies."""
    return [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]


def schedule(
    optimizers: Iterable[torch.optim.Optimizer], rates: list[list[float]], factor: float
) -> None:
    """Set every group's rate to `factor` times that of `rates_of`."""
    for optimizer, base in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor


def clip(optimizers: Iterable[torch.optim.Optimizer], norm: float) -> None:
    """Limit the gradient's norm, of each optimizer by itself.

    One norm over network and discriminator would let the one's large gradients stop the other.
    """
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, norm)
