"""ASANet's other strategy: neighbouring pixels of a target image should be predicted alike.

Source: Zhou et al. 2020, arXiv:2009.12559, affinity space cleaning.  The repository has the loss,
and neither a script that trains with it nor its weight.
"""

from dataclasses import dataclass

from spcl.data.batch import Batch
from spcl.losses.affinity import affinity_cleaning, probabilities
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.methods.parts import AffinityConfig
from spcl.methods.stage import StageConfig
from spcl.randomness import Step
from spcl.settings import setting


@dataclass(frozen=True, kw_only=True)
class _Recipe(StageConfig):
    # A base, so that these come before the affinities' settings in config.yaml, as ever.
    steps: int = setting(80_000, "ours: as asanet", low=0)
    horizon: int = setting(100_000, "ours: as asanet", low=1)
    batch: int | None = setting(1, "ours: as asanet", low=1)
    augment: str = setting("none", "ours: as asanet", choices=("both", "source", "none"))
    weight: float = setting(
        0.01,
        "ours: not published; the middle, in orders of magnitude, of what is searched",
        low=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class ASANetASCConfig(AffinityConfig, _Recipe):
    pass


class ASANetASC(Method):
    Config = ASANetASCConfig
    title = "adapted"
    starts_trained = True
    config: ASANetASCConfig

    def losses(self, batch: Batch, step: Step) -> Outputs:
        c = self.config
        source = self.segment(batch.source, "source", step)
        target = self.segment(batch.target, "target", step)
        on_target = probabilities(target.logits, batch.target.image.shape[-2:], c.affinity_stride)
        cleaning = affinity_cleaning(on_target, c.neighbours, c.border)
        terms = {
            "segmentation": Term(*cross_entropy(source.logits, batch.source.label)),
            "cleaning": Term(*cleaning, c.weight),
        }
        seen = {
            "source": Seen(batch.source, source, batch.source.label),
            "target": Seen(batch.target, target),
        }
        return Outputs(terms, seen)
