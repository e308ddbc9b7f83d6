"""Output-space adversarial adaptation (AdaptSegNet, single level): SPCL's warm-up.

Source: Tsai et al. 2018, arXiv:1802.10349; weight and critic rate as in SPCL's warm-up.
"""

from dataclasses import dataclass

import torch

from spcl.data.batch import Batch
from spcl.losses.adversarial import players
from spcl.losses.segmentation import cross_entropy, upsample
from spcl.methods.base import Method, Outputs, Seen, StageConfig, Term
from spcl.models.critic import Critic
from spcl.models.segmentor import Segmentor
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(StageConfig):
    weight: float = setting(1e-3, "authors' code: lambda_adv", low=0.0)
    critic_learning_rate: float = setting(1e-4, "authors' code: Adam", low=0.0)
    critic_width: int = setting(64, "AdaptSegNet: channels of the first layer", low=1)
    # Switches; what the code of SPCL's warm-up does is 1.8 and source_only.
    seg_temperature: float = setting(
        1.0, "AdaptSegNet: none; divides source logits before cross-entropy", low=1e-3
    )
    critic_temperature: str = setting(
        "none",
        "AdaptSegNet; source_only: the critic too sees source logits divided by seg_temperature, "
        "and can tell domains by their sharpness alone",
        choices=("none", "source_only"),
    )


class Adversarial(Method):
    """The critic tells domains by predictions; the segmentor makes target's like source's."""

    Config = AdversarialConfig
    title = "warm-up"

    def __init__(self, segmentor: Segmentor, config: AdversarialConfig):
        super().__init__(segmentor, config)
        self.critic = Critic(segmentor.num_classes, width=config.critic_width)

    def losses(self, batch: Batch, step: Step) -> Outputs:
        source = self.segment(batch.source, "source", step)
        target = self.segment(batch.target, "target", step)
        softened = source.logits / self.config.seg_temperature
        shown = softened if self.config.critic_temperature == "source_only" else source.logits
        source_map = upsample(shown, batch.source.image.shape[-2:]).softmax(1)
        target_map = upsample(target.logits, batch.target.image.shape[-2:]).softmax(1)

        judged, on_source, on_target = players(self.critic, source_map, target_map)
        terms = {
            "segmentation": Term(*cross_entropy(softened, batch.source.label)),
            "adversarial": Term(*judged, self.config.weight),
            "critic_source": Term(*on_source, 0.5),
            "critic_target": Term(*on_target, 0.5),
        }
        seen = {
            "source": Seen(batch.source, source, batch.source.label),
            "target": Seen(batch.target, target),
        }
        return Outputs(terms, seen)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [*super().optimizers(), self.critic.optimizer(self.config.critic_learning_rate)]
