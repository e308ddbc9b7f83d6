"""What methods with a teacher have in common: DAFormer's self-training, and its settings.

The teacher labels target images as they are; the student learns these labels on strongly changed
images that source pixels are pasted on (ClassMix).
Source: Hoyer et al. 2022, arXiv:2111.14887, after DACS (Tranheden et al. 2021, arXiv:2007.08702).
"""

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from spcl import distributed
from spcl.data.batch import Batch, Images
from spcl.data.mixing import VALUES, classmix, paste
from spcl.data.strong import DRAWS, Strong, strong_view
from spcl.errors import ConfigError
from spcl.losses.segmentation import cross_entropy
from spcl.methods.base import Method, Outputs, Seen, Term
from spcl.methods.stage import StageConfig
from spcl.methods.teacher import (
    CHECK_EVERY,
    Lesson,
    check_equal,
    follow,
    momentum_at,
    new_teacher,
    teach,
)
from spcl.models.normalization import BATCH_NORMS
from spcl.models.segmentor import Segmentor
from spcl.randomness import Step
from spcl.settings import setting

CODE = "DAFormer's code"


@dataclass(frozen=True, kw_only=True)
class TaughtConfig(StageConfig):
    steps: int = setting(40_000, CODE, low=0)
    horizon: int = setting(40_000, CODE, low=1)
    learning_rate: float = setting(6e-5, f"{CODE}: backbone", low=0.0)
    weight_decay: float = setting(0.01, CODE, low=0.0)
    poly_power: float = setting(1.0, f"{CODE}: a linear decay", low=0.0)
    optimizer: str = setting("adamw", CODE, choices=("sgd", "adamw"))
    warm_up_steps: int = setting(1500, f"{CODE}: linear", low=0)
    norm_decay: bool = setting(False, f"{CODE}: no weight decay of scales and shifts")
    batch: int | None = setting(2, f"{CODE}: 2 images of each domain", low=1)
    teacher_momentum: float = setting(
        0.999, f"{CODE}: alpha, reached from below", low=0.0, below=1.0
    )
    confidence: float = setting(
        0.968, f"{CODE}: a target pixel is confident from here on", low=0.0, high=1.0
    )
    mixed_weight: float = setting(1.0, f"{CODE}: of the loss on mixed images", low=0.0)
    ignored_rows: tuple[int, int] = setting(
        (15, 120), f"{CODE}: top and bottom of 512, whose pseudo labels have no weight", low=0
    )
    jitter: tuple[float, float, float, float] = setting(
        (0.2, 0.2, 0.2, 0.2),
        f"{CODE}: brightness, contrast, saturation, hue of mixed images",
        low=0.0,
        high=1.0,
    )
    jitter_probability: float = setting(
        0.8, f"{CODE}: where it says 0.2, which is when not", low=0.0, high=1.0
    )
    blur: tuple[float, float] = setting(
        (0.15, 1.15), f"{CODE}: range of a Gaussian's deviation in pixels", low=0.0
    )
    blur_probability: float = setting(0.5, CODE, low=0.0, high=1.0)
    scored: str = setting(
        "student", f"{CODE}: the network that is evaluated", choices=("student", "teacher")
    )
    # Switches; the second choice is what the authors' code does.
    trust: str = setting(
        "image",
        "ours: the share of confident pixels, the weight of pseudo labels, of each image; batch is "
        "the authors' code: of all images of a worker",
        choices=("image", "batch"),
    )
    mix_classes: str = setting(
        "image",
        "ours: half of the image's classes; batch is the authors' code: of all values in the "
        "labels of a worker, void among them",
        choices=("image", "batch"),
    )
    strong_draws: str = setting(
        "image",
        "ours: each image is changed or not by itself; batch is the authors' code: all or none",
        choices=("image", "batch"),
    )
    denominator: str = setting(
        "labelled",
        "ours: losses are means over pixels with a label; all is the authors' code",
        choices=("labelled", "all"),
    )
    teacher_statistics: str = setting(
        "mean",
        "ours: the running mean of the student's; own is the authors' code: those of its own "
        "batches, as in training",
        choices=("mean", "own"),
    )

    @property
    def by_rank(self) -> tuple[str, ...]:
        return tuple(name for name in ("trust", "mix_classes") if getattr(self, name) == "batch")


class Taught(Method):
    """The base of methods with a teacher, and all of DAFormer's."""

    Config = TaughtConfig
    config: TaughtConfig
    title = "self-trained online"
    teaches = True
    hints = MappingProxyType({"pasted": "mix_classes", "confident": "confidence"})

    def __init__(self, segmentor: Segmentor, config: TaughtConfig):
        super().__init__(segmentor, config)
        self.teacher = new_teacher(segmentor)
        self.scored = "teacher" if config.scored == "teacher" else Method.scored

    def train(self, mode: bool = True) -> "Taught":
        """As any method; a teacher with statistics of its own has its norms in train mode."""
        super().train(mode)
        if mode and self.config.teacher_statistics == "own":
            for layer in self.teacher.modules():
                if isinstance(layer, BATCH_NORMS):
                    layer.train()
        return self

    def losses(self, batch: Batch, step: Step) -> Outputs:
        check_sizes(batch)
        source = self.segment(batch.source, "source", step)
        lesson = teach(self.teacher, batch.target.image)
        taught = Seen(batch.target, lesson.output, lesson.label, self.trust(lesson))
        pasted, mixed, weights = self.mix(batch.source, taught, step)
        output = self.segment(mixed, "mixed", step)
        mixed_loss = self.term(output.logits, mixed.label, weights)
        terms = {
            "segmentation": self.term(source.logits, batch.source.label),
            "mixed": mixed_loss._replace(weight=self.config.mixed_weight),
        }
        seen = {
            "source": Seen(batch.source, source, batch.source.label),
            "mixed": Seen(mixed, output, mixed.label, weights),
            "taught": taught,
        }
        activity = {"pasted": share(pasted), "confident": share(self.is_confident(lesson))}
        return Outputs(terms, seen, activity)

    def is_confident(self, lesson: Lesson) -> Tensor:
        """(B, H, W) bool"""
        return lesson.confidence >= self.config.confidence

    def trust(self, lesson: Lesson) -> Tensor:
        """(B, H, W) weight of each pseudo label: the share of confident pixels of its image.

        0 in the rows that are ignored.
        """
        over = (0, 1, 2) if self.config.trust == "batch" else (1, 2)
        confident = self.is_confident(lesson).to(lesson.confidence.dtype)
        height = confident.shape[1]
        top, bottom = self.config.ignored_rows
        row = torch.arange(height, device=confident.device)[:, None]
        kept = (row >= top) & (row < height - bottom)
        return confident.mean(over, keepdim=True) * kept.expand_as(confident)

    def mix(self, source: Images, taught: Seen, step: Step) -> tuple[Tensor, Images, Tensor]:
        """Source pixels on target images: where (B, H, W) they are, the images, label weights."""
        draws = step.uniform("classmix", source.position, (VALUES,))
        mask = classmix(source.label, draws, over_batch=self.config.mix_classes == "batch")
        assert taught.label is not None and taught.weights is not None, "a lesson has both"
        image = self.strong(
            paste(mask, source.image, taught.images.image), taught.images.position, step
        )
        mixed = Images(image, taught.images.position, paste(mask, source.label, taught.label))
        return mask, mixed, paste(mask, torch.ones_like(taught.weights), taught.weights)

    def strong(self, image: Tensor, position: Tensor, step: Step) -> Tensor:
        """Images (B, 3, H, W) in other colours, blurred: the student's view."""
        c = self.config
        draws = step.uniform("strong", position, (DRAWS,))
        if c.strong_draws == "batch":
            whether = step.of_step("strong", (2,), draws.device)
            draws = torch.cat([whether.expand(len(draws), 2), draws[:, 2:]], 1)
        how = Strong(c.jitter, c.jitter_probability, c.blur, c.blur_probability)
        return strong_view(image, draws, how)

    def term(self, logits: Tensor, label: Tensor, weights: Tensor | None = None) -> Term:
        """Cross-entropy, over the pixels that `denominator` says."""
        total, count = cross_entropy(logits, label, weights)
        if self.config.denominator == "all":
            count = torch.full_like(count, label.numel())
        return Term(total, count)

    def after_step(self, step: Step) -> None:
        """The teacher follows: before step s + 1 as in DAFormer's code, where it is done there."""
        c, done = self.config, step.number + 1
        momentum = momentum_at(done, c.teacher_momentum)
        follow(self.teacher, self.segmentor, momentum, buffers=c.teacher_statistics)
        if done % CHECK_EVERY == 0 and distributed.world_size() > 1:
            check_equal(self.teacher, "the teacher", done)


def share(mask: Tensor) -> Term:
    """Of a bool tensor that is True: an activity."""
    return Term(mask.sum(), torch.full((), mask.numel(), device=mask.device))


def check_sizes(batch: Batch) -> None:
    """ConfigError unless source and target images can be pasted on each other."""
    source, target = (tuple(batch[domain].image.shape[-2:]) for domain in ("source", "target"))
    if source != target:
        raise ConfigError(
            f"images of both domains must be of one size to be mixed, got {source} of the source "
            f"and {target} of the target; set source.crop and target.crop to the same"
        )
