"""The contract between the trainer and a method, and the schedule every method shares.

A method is one `nn.Module` in one DDP wrapper: one forward, one backward for all players.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from spcl.data.batch import Batch
from spcl.models.segmentor import NO_DECAY, Output, Segmentor
from spcl.settings import setting


class Term(NamedTuple):
    """One named loss on this rank: the trainer turns it into weight * global sum / global count."""

    sum: Tensor
    count: Tensor
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """The optimisation of one training stage.  Defaults: SPCL's authors' code, adaptation stage."""

    steps: int = setting(40_000, "authors' code: stop at 40000", low=0)
    horizon: int = setting(62_500, "authors' code: poly schedule's end, apart from the stop", low=1)
    learning_rate: float = setting(2.5e-4, "authors' code: backbone", low=0.0)
    head_multiplier: float = setting(10.0, "authors' code: classifier at 10x", low=0.0)
    momentum: float = setting(0.9, "authors' code", low=0.0, below=1.0)
    weight_decay: float = setting(5e-4, "authors' code", low=0.0)
    poly_power: float = setting(0.9, "authors' code", low=0.0)
    batch: int | None = setting(None, "ours: train.batch unless a stage says otherwise", low=1)
    scale: tuple[float, float] = setting(
        (1.0, 1.0), "paper: no random scale here; times the size that is cropped", low=0.1
    )
    augment: str = setting(
        "both",
        "paper: jitter and flip on both domains; source is the authors' code: no flip, and the "
        "colours of the source alone",
        choices=("both", "source", "none"),
    )
    start: str = setting(
        "trained",
        "paper: from the stage before; pretrained, from model.weights as the first stage, is "
        "SDCA's code",
        choices=("trained", "pretrained"),
    )

    @property
    def by_rank(self) -> bool:
        """Whether ranks keep a state or a loss of their own, so that their number matters."""
        return False


class SourcePass:
    """What a method learns in one look at the whole source split, before its first step.

    It is a stored stage of its own, made by the network that the method's stage starts from.
    """

    #: Of the stage, and of the file that holds its result.
    name: ClassVar[str]
    #: The method's settings that the result depends on.
    reads: ClassVar[tuple[str, ...]] = ()
    #: Raised when the same settings would give other results than before.
    version: ClassVar[int] = 1

    def __init__(self, segmentor: Segmentor, config: Any, device: torch.device):
        """config: the method's section."""

    def add(self, output: Output, labels: Tensor) -> None:
        """One image as the network sees it, and its labels (1, H, W) trainIds."""
        raise NotImplementedError

    def result(self) -> dict[str, Tensor]:
        """Over all ranks, which call it once each: what `Method.start_from` takes."""
        raise NotImplementedError


class Method(nn.Module):
    """What differs between methods.  Sub-classes set the class attributes and `forward`."""

    Config: ClassVar[type[StageConfig]] = StageConfig
    #: What the network is called in a table after this stage.
    title: ClassVar[str] = ""
    #: What the stage reads besides images: of "checkpoint", "predictions".
    needs: ClassVar[frozenset[str]] = frozenset()
    #: What is computed over the whole source before the stage, and given to `start_from`.
    source_pass: ClassVar[type[SourcePass] | None] = None
    #: The streams the loader must open, of "source" (with labels) and "target" (without).
    domains: ClassVar[tuple[str, ...]] = ("source", "target")
    #: Raised when the same settings would give other results than before; enters the stage's key.
    version: ClassVar[int] = 1

    def __init__(self, segmentor: Segmentor, config: StageConfig):
        super().__init__()
        self.segmentor = segmentor
        self.config = config

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Take over the result of the method's `source_pass`."""
        raise NotImplementedError

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:
        raise NotImplementedError

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """SGD on the segmentor, the head at `head_multiplier` times the backbone's rate."""
        c, groups = self.config, self.segmentor.parameter_groups()
        rates = {"backbone": c.learning_rate, "head": c.learning_rate * c.head_multiplier}
        trained: list[dict[str, Any]] = []
        for name, parameters in groups.items():
            decay = 0.0 if name.endswith(NO_DECAY) else c.weight_decay
            rate = rates[name.removesuffix(NO_DECAY)]
            trained.append({"params": parameters, "lr": rate, "weight_decay": decay})
        return [torch.optim.SGD(trained, momentum=c.momentum, weight_decay=c.weight_decay)]

    def after_step(self, step: int) -> None:
        """Called after the optimizers' step: teachers and the like."""


def poly_factor(step: int, horizon: int, power: float) -> float:
    """(1 - step / horizon) ** power, never negative: what multiplies the learning rate."""
    return max(0.0, 1.0 - step / horizon) ** power
