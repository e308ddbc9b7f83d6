"""ASANet: a critic sees how neighbouring pixels of a prediction agree, not the prediction itself.

Source: Zhou et al. 2020, arXiv:2009.12559, affinity space alignment; the repository's script has
the schedule.
"""

from dataclasses import dataclass
from functools import partial

import torch

from spcl.data.batch import Batch
from spcl.losses.adversarial import players
from spcl.losses.affinity import BORDERS, NEIGHBOURS, affinity_convolution, probabilities
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, Outputs, Seen, StageConfig, Term
from spcl.models.critic import Critic
from spcl.models.segmentor import Segmentor
from spcl.optimization import poly_factor
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class ASANetConfig(StageConfig):
    steps: int = setting(80_000, "authors' code", low=0)
    horizon: int = setting(100_000, "authors' code: its script", low=1)
    batch: int | None = setting(1, "authors' code", low=1)
    augment: str = setting("none", "authors' code", choices=("both", "source", "none"))
    weight: float = setting(1e-3, "authors' code: lambda_adv", low=0.0)
    critic_learning_rate: float = setting(1e-4, "authors' code: Adam", low=0.0)
    critic_width: int = setting(64, "AdaptSegNet: channels of the first layer", low=1)
    neighbours: int = setting(8, "paper; 4 along the axes alone", choices=tuple(NEIGHBOURS))
    border: str = setting(
        "replicate",
        "authors' code: beside the border lies a copy of it; valid, ours: nothing",
        choices=BORDERS,
    )
    affinity_stride: int = setting(1, "paper: every pixel; n: the grid of every n-th", low=1)
    eps: float = setting(1e-4, "authors' code: least probability", low=1e-12, below=0.5)
    damping: bool = setting(True, "authors' code: the weight falls linearly over the horizon")


class ASANet(Method):
    """The critic tells domains by their affinities; the segmentor makes target's like source's."""

    Config = ASANetConfig
    title = "adapted"
    starts_trained = True

    def __init__(self, segmentor: Segmentor, config: ASANetConfig):
        super().__init__(segmentor, config)
        self.critic = Critic(
            config.neighbours * segmentor.num_classes,
            width=config.critic_width,
            first=partial(
                affinity_convolution,
                neighbours=config.neighbours,
                border=config.border,
                eps=config.eps,
            ),
        )

    def losses(self, batch: Batch, step: Step) -> Outputs:
        c = self.config
        source = self.segment(batch.source, "source", step)
        target = self.segment(batch.target, "target", step)
        on_source, on_target = (
            probabilities(output.logits, images.image.shape[-2:], c.affinity_stride)
            for output, images in ((source, batch.source), (target, batch.target))
        )

        judged, by_source, by_target = players(self.critic, on_source, on_target)
        damping = poly_factor(step.number, c.horizon, power=1.0) if c.damping else 1.0
        terms = {
            "segmentation": Term(*cross_entropy(source.logits, batch.source.label)),
            "adversarial": Term(*judged, c.weight * damping),
            "critic_source": Term(*by_source, 0.5),
            "critic_target": Term(*by_target, 0.5),
        }
        seen = {
            "source": Seen(batch.source, source, batch.source.label),
            "target": Seen(batch.target, target),
        }
        return Outputs(terms, seen)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [*super().optimizers(), self.critic.optimizer(self.config.critic_learning_rate)]
