"""Output-space adversarial adaptation (AdaptSegNet, single level): SPCL's warm-up.

Source: Tsai et al. 2018, arXiv:1802.10349; weight and discriminator rate as in SPCL's warm-up.
"""

from dataclasses import dataclass

from spcl.data.batch import Batch
from spcl.losses.segmentation import cross_entropy, upsample
from spcl.methods.base import Outputs, Seen, Term
from spcl.methods.parts import AdversarialMethod, DiscriminatorConfig
from spcl.models.discriminator import Discriminator
from spcl.models.segmentor import Segmentor
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(DiscriminatorConfig):
    # Switches; what the code of SPCL's warm-up does is 1.8 and source_only.
    seg_temperature: float = setting(
        1.0, "AdaptSegNet: none; divides source logits before cross-entropy", low=1e-3
    )
    discriminator_temperature: str = setting(
        "none",
        "AdaptSegNet; source_only: the discriminator too sees source logits divided by "
        "seg_temperature, and can tell domains by their sharpness alone",
        choices=("none", "source_only"),
    )


class Adversarial(AdversarialMethod):
    """A discriminator tells domains by predictions; the segmentor makes target's like source's."""

    Config = AdversarialConfig
    title = "warm-up"
    config: AdversarialConfig

    def __init__(self, segmentor: Segmentor, config: AdversarialConfig):
        width = config.discriminator_width
        super().__init__(segmentor, config, Discriminator(segmentor.num_classes, width=width))

    def losses(self, batch: Batch, step: Step) -> Outputs:
        source = self.segment(batch.source, "source", step)
        target = self.segment(batch.target, "target", step)
        softened = source.logits / self.config.seg_temperature
        shown = (
            softened if self.config.discriminator_temperature == "source_only" else source.logits
        )
        source_map = upsample(shown, batch.source.image.shape[-2:]).softmax(1)
        target_map = upsample(target.logits, batch.target.image.shape[-2:]).softmax(1)
        terms = {
            "segmentation": Term(*cross_entropy(softened, batch.source.label)),
            **self.game(source_map, target_map),
        }
        seen = {
            "source": Seen(batch.source, source, batch.source.label),
            "target": Seen(batch.target, target),
        }
        return Outputs(terms, seen)
