"""What several methods have in common: settings, and a discriminator beside the segmentor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spcl.losses.adversarial import players
from spcl.losses.affinity import BORDERS, NEIGHBOURS
from spcl.methods.base import Method, Term
from spcl.methods.stage import StageConfig
from spcl.models.discriminator import Discriminator
from spcl.models.segmentor import Segmentor
from spcl.settings import setting

EACH_DOMAIN = 0.5  # AdaptSegNet: the discriminator's loss is the mean of those of the two domains


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(StageConfig):
    weight: float = setting(1e-3, "authors' code: lambda_adv", low=0.0)
    discriminator_learning_rate: float = setting(1e-4, "authors' code: Adam", low=0.0)
    discriminator_width: int = setting(64, "AdaptSegNet: channels of the first layer", low=1)


@dataclass(frozen=True, kw_only=True)
class AffinityConfig:
    """Which pixels count as neighbours."""

    neighbours: int = setting(8, "paper; 4 along the axes alone", choices=tuple(NEIGHBOURS))
    border: str = setting(
        "replicate",
        "authors' code: beside the border lies a copy of it; valid, ours: nothing",
        choices=BORDERS,
    )
    affinity_stride: int = setting(1, "paper: every pixel; n: the grid of every n-th", low=1)


class AdversarialMethod(Method):
    """The base of methods whose segmentor plays against a discriminator."""

    config: DiscriminatorConfig

    def __init__(
        self, segmentor: Segmentor, config: DiscriminatorConfig, discriminator: Discriminator
    ):
        super().__init__(segmentor, config)
        # The state's names are part of the stored bytes: renaming it would change every sha256.
        self.critic = discriminator

    @property
    def discriminator(self) -> Discriminator:
        return self.critic

    def game(self, source: Tensor, target: Tensor, damping: float = 1.0) -> dict[str, Term]:
        """The terms of both players; source and target are what the discriminator is shown.

        damping  a factor of the segmentor's weight
        """
        fooling, on_source, on_target = players(self.discriminator, source, target)
        return {
            "adversarial": Term(*fooling, self.config.weight * damping),
            "discriminator_source": Term(*on_source, EACH_DOMAIN),
            "discriminator_target": Term(*on_target, EACH_DOMAIN),
        }

    def optimizers(self) -> list[torch.optim.Optimizer]:
        rate = self.config.discriminator_learning_rate
        return [*super().optimizers(), self.discriminator.optimizer(rate)]
