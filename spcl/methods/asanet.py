"""ASANet: a discriminator sees how neighbouring pixels agree, not the prediction itself.

Source: Zhou et al. 2020, arXiv:2009.12559, affinity space alignment; the repository's script has
the schedule.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from spcl.data.batch import Batch
from spcl.losses.affinity import affinity_convolution, affinity_convolution_apart, probabilities
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Outputs, Seen, Term
from spcl.methods.optimization import poly_factor
from spcl.methods.parts import AdversarialMethod, AffinityConfig, DiscriminatorConfig
from spcl.models.discriminator import Discriminator
from spcl.models.segmentor import Segmentor
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class ASANetConfig(AffinityConfig, DiscriminatorConfig):
    steps: int = setting(80_000, "authors' code", low=0)
    horizon: int = setting(100_000, "authors' code: its script", low=1)
    batch: int | None = setting(1, "authors' code", low=1)
    augment: str = setting("none", "authors' code", choices=("both", "source", "none"))
    eps: float = setting(1e-4, "authors' code: least probability", low=1e-12, below=0.5)
    damping: bool = setting(True, "authors' code: the weight falls linearly over the horizon")


class ASANet(AdversarialMethod):
    """A discriminator tells domains by affinities; the segmentor makes target's like source's."""

    Config = ASANetConfig
    title = "adapted"
    starts_trained = True
    version = 2  # rounds otherwise: affinities of opposite neighbours
    config: ASANetConfig

    def __init__(self, segmentor: Segmentor, config: ASANetConfig):
        shown: dict[str, Any] = {
            name: getattr(config, name) for name in ("neighbours", "border", "eps")
        }
        discriminator = Discriminator(
            config.neighbours * segmentor.num_classes,
            width=config.discriminator_width,
            first=partial(affinity_convolution, **shown),
            first_apart=partial(affinity_convolution_apart, **shown),
        )
        super().__init__(segmentor, config, discriminator)

    def losses(self, batch: Batch, step: Step) -> Outputs:
        c = self.config
        source = self.segment(batch.source, "source", step)
        target = self.segment(batch.target, "target", step)
        source_map, target_map = (
            probabilities(output.logits, images.image.shape[-2:], c.affinity_stride)
            for output, images in ((source, batch.source), (target, batch.target))
        )
        damping = poly_factor(step.number, c.horizon, power=1.0) if c.damping else 1.0
        terms = {
            "segmentation": Term(*cross_entropy(source.logits, batch.source.label)),
            **self.game(source_map, target_map, damping),
        }
        seen = {
            "source": Seen(batch.source, source, batch.source.label),
            "target": Seen(batch.target, target),
        }
        return Outputs(terms, seen)
