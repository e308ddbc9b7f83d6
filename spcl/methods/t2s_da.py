"""T2S-DA: features of source images in the target's style are pulled to source prototypes.

Source: Wang et al. 2023, arXiv:2305.13752, of which the abstract and the captions could be read and
no code: the parts are as these say, forms and values as recalled, or ours where nothing was.  What
comes out is no reproduction; compare it with `daformer`, which it is with `pull_weight` 0.
"""

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl import distributed
from spcl.data.batch import Batch, Images
from spcl.data.fourier import WINDOWS, fda
from spcl.data.labels import IGNORE_INDEX
from spcl.losses import pull
from spcl.losses.contrast import downsample_labels
from spcl.memory.confidence import ClassConfidence, confidence_sums
from spcl.memory.prototypes import class_sums
from spcl.methods import optimization
from spcl.methods.base import Outputs, Term
from spcl.methods.taught import Taught, TaughtConfig
from spcl.methods.teacher import follow, momentum_at
from spcl.models.segmentor import Output, Segmentor
from spcl.precision import at_least_float32, without_autocast
from spcl.randomness import Step
from spcl.settings import RECALLED, setting

WEIGHT_NORMS = ("max", "mean")
ACTIVITY = ("queries", "source_negatives", "target_negatives")


@dataclass(frozen=True, kw_only=True)
class T2SDAConfig(TaughtConfig):
    pull_weight: float = setting(
        0.1, "lambda; 0 leaves the contrast out: daformer", low=0.0, provenance=RECALLED
    )
    temperature: float = setting(0.2, "tau, of the contrast", low=1e-3, provenance=RECALLED)
    queries: int = setting(
        128, "n: K times n in all, by each class's share of pixels", low=1, provenance=RECALLED
    )
    negatives: int = setting(
        1024,
        "m: half of the source, half of the target's unreliable pixels; the halves are the paper's",
        low=2,
        provenance=RECALLED,
    )
    unreliable_share: float = setting(
        0.2,
        "alpha_u: share of the target's pixels, those of the largest entropy",
        low=0.0,
        high=1.0,
        provenance=RECALLED,
    )
    weight_power: float = setting(
        0.5,
        "beta, of ((1 - confidence) / the most of it); that it favours what goes badly is the "
        "paper's; 0 is no re-weighting",
        low=0.0,
        provenance=RECALLED,
    )
    weight_norm: str = setting(
        "max", "ours: the largest weight is 1; mean: their mean is", choices=WEIGHT_NORMS
    )
    confidence_momentum: float = setting(
        0.999, "ours: of a class's confidence over steps", low=0.0, below=1.0
    )
    projection_width: int = setting(
        256, "outputs of the projection head", low=1, provenance=RECALLED
    )
    fda_beta: float = setting(
        0.01,
        "FDA's, of the shorter side of the crop; CISS has it, too",
        low=0.0,
        high=0.5,
        provenance=RECALLED,
    )
    fda_window: str = setting(
        "symmetric",
        "FDA's paper: a real image; corners is its authors' training code, which loses some of it",
        choices=WINDOWS,
    )


class Chosen(NamedTuple):
    """What a step's queries are compared with.  Q queries, M negatives, D channels, K classes."""

    pixels: Tensor  # (Q,) of the whole batch's source images
    kinds: Tensor  # (Q,) their classes
    shares: Tensor  # (Q,) of its class's loss; 0 is no query
    negatives: Tensor  # (M, D) unit length
    weights: Tensor  # (K, M) of negatives for the queries of a class
    prototypes: Tensor  # (K, D) unit length
    found: dict[str, Tensor]  # how many of each kind the whole batch had


class Pull(nn.Module):
    """The contrast, with a projection head of the student and one of the teacher.

    Whatever it chooses it chooses from the whole batch on all ranks, by draws that belong to
    positions: so N ranks give what one does, for three small all-reduces.
    """

    def __init__(self, dimension: int, num_classes: int, config: T2SDAConfig):
        """dimension: of the features."""
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.head = _projection_head(dimension, config.projection_width)
        # No deepcopy: the tensors that `spcl.plan` counts memory with cannot be copied so.
        self.teacher_head = _projection_head(dimension, config.projection_width)
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False).eval()
        self.confidence = ClassConfidence(num_classes, config.confidence_momentum)

    def forward(
        self, styled: Output, source: Output, target: Output, batch: Batch, step: Step
    ) -> tuple[Term, dict[str, Term]]:
        """The mean over classes of the weighted mean over queries, and how many there were of what.

        styled          the student's, of source images in the target's style
        source, target  the teacher's
        """
        config, positions = self.config, batch.source.position
        with without_autocast(styled.features):
            with torch.no_grad():
                labels = downsample_labels(batch.source.label, styled.features.shape[-2:])
                chosen = self._choose(source, target, labels, batch, step)
                importance = pull.class_weights(
                    self.confidence.mean, config.weight_power, config.weight_norm
                )
            features, here = pull.pick(styled.features, chosen.pixels, positions)
            losses = pull.info_nce(
                _project(self.head, features),
                chosen.prototypes[chosen.kinds],
                chosen.negatives,
                chosen.weights[chosen.kinds],
                config.temperature,
            )
            shares = chosen.shares * here
            total = (losses * shares.to(losses.dtype) * importance[chosen.kinds]).sum()
            found = {k: Term(number, torch.ones_like(number)) for k, number in chosen.found.items()}
            return Term(total, shares.sum(), config.pull_weight), found

    def _choose(
        self, source: Output, target: Output, labels: Tensor, batch: Batch, step: Step
    ) -> Chosen:
        """From the teacher's outputs; labels (B, h, w) of the source on the grid of features."""
        config, classes = self.config, self.num_classes
        prototypes, counts, unreliable = self._look(source, target, labels)
        ours, theirs = _everywhere(labels, unreliable)

        asked = pull.query_counts(counts, config.queries)
        limit = classes * (config.queries + 1)
        draws = _draws("queries", batch.source, ours, step)
        pixels, meant = pull.choose_of_each(ours.flatten(), draws, asked, limit)
        kinds = ours.flatten()[pixels].long().clamp(max=classes - 1)
        shares = meant.double() / torch.minimum(asked, counts)[kinds].clamp(min=1)

        halves = [
            self._negatives("source", source, batch.source, ours, step),
            self._negatives("target", target, batch.target, theirs, step),
        ]
        negatives, weights, numbers = zip(*halves, strict=True)
        found = dict(zip(ACTIVITY, (meant.sum(), *numbers), strict=True))
        return Chosen(
            pixels, kinds, shares, torch.cat(negatives), torch.cat(weights, 1), prototypes, found
        )

    def _look(
        self, source: Output, target: Output, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prototypes (K, D), source pixels of each class (K,), and (B, h, w) what unreliable target
        pixels are predicted as, 255 for the others.  Moves the confidence.
        """
        rows = source.features.movedim(1, -1)
        projected = _project(self.teacher_head, rows).movedim(-1, 1)
        sums, counts = class_sums(projected, labels, self.num_classes)
        levels = pull.entropy_levels(target.logits)
        parts = [sums, counts, *confidence_sums(target.logits), pull.histogram(levels)]
        packed = distributed.all_reduce(torch.cat([part.double().flatten() for part in parts]))
        total, pixels, sure, found, reached = packed.split([part.numel() for part in parts])
        self.confidence.update(sure, found)
        prototypes = F.normalize(total.view_as(sums).to(sums.dtype), dim=1)
        reliable = levels <= pull.quantile_level(reached, 1 - self.config.unreliable_share)
        predicted = target.logits.argmax(1).masked_fill(reliable, IGNORE_INDEX)
        # Logits may be on a finer grid than features.
        return prototypes, pixels.long(), downsample_labels(predicted, target.features.shape[-2:])

    def _negatives(
        self, name: str, output: Output, images: Images, kinds: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Half of the negatives (M / 2, D), from all ranks, their weights (K, M / 2), how many."""
        half = self.config.negatives // 2
        pixels, meant = pull.choose(kinds.flatten(), _draws(name, images, kinds, step), half)
        features, here = pull.pick(output.features, pixels, images.position)
        units = distributed.all_reduce(_project(self.teacher_head, features) * here[:, None])
        labels = kinds.flatten()[pixels]
        return units, pull.negative_weights(labels, meant, self.num_classes, half), meant.sum()


def _everywhere(labels: Tensor, unreliable: Tensor) -> tuple[Tensor, Tensor]:
    """Both for the images of all ranks, (B, h * w) each, in the order of positions."""
    own = [labels.flatten(1).byte(), unreliable.flatten(1).byte()]
    ours, theirs = distributed.in_order(torch.cat(own, 1)).split([o.shape[1] for o in own], 1)
    return ours, theirs


def _projection_head(dimension: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dimension, dimension), nn.ReLU(), nn.Linear(dimension, width))


def _project(head: nn.Module, features: Tensor) -> Tensor:
    """(..., D) -> unit vectors (..., projection_width), in float32 or wider."""
    return F.normalize(head(at_least_float32(features)), dim=-1)


def _draws(name: str, images: Images, kinds: Tensor, step: Step) -> Tensor:
    """(B * h * w,) of the whole batch, whose pixels (B, h * w) have these kinds."""
    everywhere = pull.all_positions(images.position)
    return step.uniform(f"pull/{name}", everywhere, kinds.shape[1:]).flatten()


class T2SDA(Taught):
    """DAFormer's self-training, and the contrast between what its teacher makes of the source as it
    is and what the student makes of it in the target's style.
    """

    Config = T2SDAConfig
    config: T2SDAConfig
    spec = True
    hints = MappingProxyType(
        {
            **Taught.hints,
            "queries": "queries",
            "source_negatives": "negatives",
            "target_negatives": "unreliable_share",
            "restyled": "fda_beta",
        }
    )

    def __init__(self, segmentor: Segmentor, config: T2SDAConfig):
        super().__init__(segmentor, config)
        if config.pull_weight:
            self.pull = Pull(segmentor.feature_dimension, segmentor.num_classes, config)

    def losses(self, batch: Batch, step: Step) -> Outputs:
        outputs = super().losses(batch, step)
        if not self.config.pull_weight:
            return outputs
        images = self.in_style(batch)
        styled = self.segment(images, "styled", step)
        with torch.no_grad():
            source = self.teacher(batch.source.image, "source")
        term, found = self.pull(styled, source, outputs.seen["taught"].output, batch, step)
        changed = (images.image - batch.source.image).square().sum()
        found["restyled"] = Term(changed, batch.source.image.square().sum())
        return outputs._replace(
            terms=outputs.terms | {"pull": term}, activity={**outputs.activity, **found}
        )

    def in_style(self, batch: Batch) -> Images:
        """Source images in the style of the target images of the same places in the batch.

        Both as they are cropped: at the size they had before, as the code of CISS does it, every
        sample would cost a transform of its full frame on the processor.
        """
        source, config = batch.source, self.config
        image = fda(source.image, batch.target.image, config.fda_beta, config.fda_window)
        return replace(source, image=image)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        if not self.config.pull_weight:
            return super().optimizers()
        head = optimization.build_head(list(self.pull.head.parameters()), self.config)
        return [*super().optimizers(), head]

    def after_step(self, step: Step) -> None:
        super().after_step(step)
        if self.config.pull_weight:
            momentum = momentum_at(step.number + 1, self.config.teacher_momentum)
            follow(self.pull.teacher_head, self.pull.head, momentum, buffers="keep")
