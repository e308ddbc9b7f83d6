"""The contract between a method and an extra: further loss terms on what the method has seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import nn

from spcl.data.batch import Batch
from spcl.data.reads import Reads
from spcl.methods import optimization
from spcl.methods.base import Method, Seen, Term
from spcl.methods.stage import StageConfig
from spcl.models.segmentor import Segmentor
from spcl.randomness import Step


@dataclass(frozen=True, kw_only=True)
class ExtraConfig:
    """The settings of an extra; a section of the configuration under its name."""

    @property
    def by_rank(self) -> tuple[str, ...]:
        """Settings by which the result depends on the number of workers: `StageConfig.by_rank`."""
        return ()


class Extra(nn.Module):
    """What differs between extras.  Sub-classes set the class attributes and write `forward`.

    `extras: [name]` in a method's section puts it on that method.
    """

    Config: ClassVar[type[ExtraConfig]] = ExtraConfig
    #: Streams that it needs besides the method's own, as `Method.reads`.
    reads: ClassVar[Reads] = {}
    #: What it can't do without: pre-trained weights of the network, a method that `teaches`.
    needs_pretrained: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    #: Activity -> the settings of its section to look at where it is 0 for a whole stage.
    hints: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    #: Raised when the same settings would give other results than before; enters the stage's key.
    version: ClassVar[int] = 1

    def __init__(self, segmentor: Segmentor, config: ExtraConfig):
        """segmentor: the student's, for its sizes; it is the method's and not kept here."""
        super().__init__()
        self.config = config

    @classmethod
    def reads_of(cls, config: ExtraConfig) -> Reads:
        """What it needs under these settings, as `Method.reads_of`."""
        return cls.reads

    def forward(
        self, method: Method, batch: Batch, seen: Mapping[str, Seen], step: Step
    ) -> dict[str, Term]:
        """The terms to add; they are logged as <extra>/<term>.

        One whose name begins with `spcl.methods.base.ACTIVITY` is no loss but an activity.

        seen    what the method's forward gave, so that nothing is computed twice
        method  runs the network on further images: `method.segment`
        """
        raise NotImplementedError

    def optimizers(self, stage: StageConfig) -> list[torch.optim.Optimizer]:
        """Of its own parameters, if it has any: as the segmentor's head, at the head's rate."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [optimization.build_head(parameters, stage)] if parameters else []
