"""PiPa: pixels of a class alike on the source, a place alike in two surroundings on the target.

Source: Chen et al. 2023, arXiv:2211.07609, and its code, whose patch term never reaches the network
and whose judge of patches is never trained: here both terms train the student, and the method's
teacher (else the student itself) judges.
Letters: B images, P cells of a crop, S sampled pixels, W ranks, C, D channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl import distributed
from spcl.data.batch import Batch, Pair
from spcl.data.labels import IGNORE_INDEX
from spcl.data.pairs import PairCrops
from spcl.data.reads import Read, Reads
from spcl.errors import ConfigError
from spcl.extras.base import Extra, ExtraConfig
from spcl.losses.contrast import downsample_labels
from spcl.losses.patch_contrast import learners, matching_cells, on_grid, patch_contrast
from spcl.losses.supervised_contrast import (
    DENOMINATORS,
    at_pixels,
    pairs_by_label,
    pixels_of_kinds,
    sample_pixels,
    supervised_contrast,
    views_per_group,
)
from spcl.memory.queue import StepQueue
from spcl.methods.base import ACTIVITY, Method, Seen, Term
from spcl.models.segmentor import Segmentor
from spcl.precision import at_least_float32, without_autocast
from spcl.randomness import Step
from spcl.settings import setting

STREAM = "target/pairs"
#: Losses and activities: anchors in an image, keys of their class and of others for each.
PIXEL = "pixel", *(f"{ACTIVITY}pixel_{name}" for name in ("anchors", "positives", "negatives"))
#: Losses and activities: places of a crop that learn, negatives for each.
PATCH = "patch_first", "patch_second", f"{ACTIVITY}patch_anchors", f"{ACTIVITY}patch_negatives"
POOLING = 2  # authors' code: a patch is 2x2 cells of the network's features
PIXEL_DIMENSION = 256  # authors' code
PATCH_HIDDEN, PATCH_DIMENSION = 256, 128  # authors' code
EPS = 1e-5  # of a batch norm


@dataclass(frozen=True, kw_only=True)
class PiPaConfig(ExtraConfig):
    pixel_weight: float = setting(0.1, "authors' code; 0 leaves the pixel term out", low=0.0)
    pixel_start: int = setting(0, "authors' code: the step from which it counts", low=0)
    pixel_temperature: float = setting(0.1, "authors' code", low=1e-3)
    pixel_samples: int = setting(1024, "authors' code: of a step, over all images", low=2)
    pixel_views: int = setting(100, "authors' code: at most, of a class in an image", low=2)
    pixel_more_than: int = setting(
        100, "authors' code: pixels of a class in an image, on the features' grid", low=0
    )
    denominators: str = setting(
        "all",
        "paper; pos_neg, the authors' code: the other positives are left out",
        choices=DENOMINATORS,
    )
    base_temperature: float = setting(
        0.0, "paper: none; 0.07 in the authors' code: the loss times temperature over it", low=0.0
    )
    patch_weight: float = setting(
        0.1, "authors' code, on DAFormer; 0 leaves the patch term out", low=0.0
    )
    patch_start: int = setting(10_000, "authors' code: the step from which it counts", low=0)
    patch_temperature: float = setting(0.1, "authors' code", low=1e-3)
    patch_samples: int = setting(
        1600,
        "authors' code: negatives of a step from each of the two crops, over all images",
        low=1,
    )
    bank_steps: int = setting(3, "authors' code: steps whose negatives count, with this", low=1)
    confidence: float = setting(0.9, "authors' code: above it a place teaches", low=0.0, high=1.0)
    patch_features: str = setting(
        "student",
        "paper; ref_teacher, the authors' code, trains a head and nothing else: for a test alone",
        choices=("student", "ref_teacher"),
    )
    crop: tuple[int, int] = setting((720, 720), "authors' code", low=1)
    overlap: tuple[float, float] = setting(
        (0.1, 1.0), "authors' code: of two crops, intersection over union", low=0.0, high=1.0
    )
    multiple: int = setting(8, "authors' code: of the pixels between two crops", low=1)
    jitter: tuple[float, float, float, float] = setting(
        (0.2, 0.2, 0.2, 0.2),
        "ours, DAFormer's of mixed images; of each crop, as in the authors' code: brightness, "
        "contrast, saturation, hue",
        low=0.0,
        high=1.0,
    )
    grayscale: float = setting(
        0.2, "ours; of each crop, as in the authors' code: probability", low=0.0, high=1.0
    )
    crop_scale: tuple[float, float] = setting(
        (1.28, 3.2), "authors' code: 0.8 to 2 times 2048 pixels of width, from 1280", low=0.1
    )


class PixelHead(nn.Module):
    """Features (S, C) of sampled pixels -> (S, D): a layer, batch norm, ReLU, a layer.

    Normalised by the pixels that are meant alone; it has no use, and so no statistics, after
    training.  Ours: the authors' code normalises by all pixels, and embeds them, of which it uses
    one in fifty.
    """

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.second = nn.Linear(width, PIXEL_DIMENSION)

    def forward(self, features: Tensor, meant: Tensor) -> Tensor:
        x = at_least_float32(self.first(features))
        with without_autocast(x):
            share = meant.to(x.dtype) / meant.sum().clamp(min=1)
            centred = x - share @ x
            scale = self.weight * (share @ centred.square() + EPS).rsqrt()
        return self.second(F.relu(centred * scale + self.bias))


class PiPa(Extra):
    Config = PiPaConfig
    config: PiPaConfig
    hints = MappingProxyType(
        {
            "pixel_anchors": ("pixel_start", "pixel_more_than"),
            "pixel_positives": ("pixel_start", "pixel_samples"),
            "pixel_negatives": ("pixel_start", "pixel_samples"),
            "patch_anchors": ("patch_start", "confidence"),
            "patch_negatives": ("patch_start", "patch_samples"),
        }
    )

    def __init__(self, segmentor: Segmentor, config: PiPaConfig):
        super().__init__(segmentor, config)
        self.num_classes = segmentor.num_classes
        if config.pixel_weight:
            self.pixel_head = PixelHead(sum(_widths(segmentor)))
        if config.patch_weight:
            width = segmentor.feature_dimension
            self.patch_head = nn.Sequential(
                nn.Linear(width, PATCH_HIDDEN), nn.ReLU(), nn.Linear(PATCH_HIDDEN, PATCH_DIMENSION)
            )
            self.bank = StepQueue(config.bank_steps, 2 * config.patch_samples, PATCH_DIMENSION)

    @classmethod
    def reads_of(cls, config: ExtraConfig) -> Reads:
        assert isinstance(config, PiPaConfig)
        reads: dict[str, Read] = {}
        if config.pixel_weight:
            reads["source"] = frozenset({"image", "label"})
        if config.patch_weight:
            reads[STREAM] = PairCrops(
                config.crop,
                config.overlap,
                config.multiple,
                scale=config.crop_scale,
                jitter=config.jitter,
                grayscale=config.grayscale,
            )
        return reads

    def forward(
        self, method: Method, batch: Batch, seen: Mapping[str, Seen], step: Step
    ) -> dict[str, Term]:
        c = self.config
        terms: dict[str, Term] = {}
        if c.pixel_weight:
            on = step.number >= c.pixel_start
            source = _source(method, batch, seen, step) if on else None
            given = self._pixels(source, step) if source else _idle(self.pixel_head, PIXEL)
            terms |= zip(PIXEL, given, strict=True)
        if c.patch_weight:
            on = step.number >= c.patch_start
            pair = batch.pair(STREAM)
            given = self._patches(method, pair, step) if on else _idle(self.patch_head, PATCH)
            terms |= zip(PATCH, given, strict=True)
        return terms

    def _pixels(self, source: Seen, step: Step) -> list[Term]:
        """PIXEL: the contrast of this rank's sampled pixels with those of all ranks.

        Cost: every rank embeds the samples of all, `pixel_samples` of W ranks.
        """
        c, levels = self.config, source.output.levels or (source.output.features,)
        size = (levels[0].shape[-2], levels[0].shape[-1])
        labels = downsample_labels(_label(source), size)
        guess = downsample_labels(source.output.logits.detach().argmax(1), size)  # "nearest"
        labels, right = labels.flatten(1), (guess == labels).flatten(1)

        counts = pixels_of_kinds(labels, right, self.num_classes).sum(2)
        groups = (counts > c.pixel_more_than).sum()
        views = views_per_group(distributed.all_reduce(groups), c.pixel_samples, c.pixel_views)
        slots = min(labels.numel(), max(c.pixel_samples, counts.numel()))
        draws = step.uniform("pipa/pixels", source.images.position, labels.shape[1:])
        chosen, meant = sample_pixels(
            labels, right, draws, views.expand_as(counts), c.pixel_more_than, slots
        )
        kinds = torch.where(meant, labels.flatten()[chosen].long(), IGNORE_INDEX)

        # Gathered before the head: its norm then is over all ranks by itself.
        features = distributed.gathered(at_pixels(levels, chosen, size)).flatten(0, 1)
        all_kinds = distributed.gathered(kinds).flatten()
        embedded = self.pixel_head(features, all_kinds != IGNORE_INDEX)
        first = distributed.rank() * slots
        loss = supervised_contrast(
            embedded[first : first + slots],
            kinds,
            embedded,
            all_kinds,
            first=first,
            temperature=c.pixel_temperature,
            denominators=c.denominators,
        )
        alike, others = pairs_by_label(kinds, all_kinds, self.num_classes)
        return [
            Term(*loss, self._pixel_weight()),
            Term(loss[1], _number(len(counts), loss[1])),
            Term((alike - 1).clamp(min=0).sum(), loss[1]),
            Term((others * (alike > 1)).sum(), loss[1]),
        ]

    def _pixel_weight(self) -> float:
        c = self.config
        if not c.base_temperature:
            return c.pixel_weight
        return c.pixel_weight * c.pixel_temperature / c.base_temperature

    def _patches(self, method: Method, pair: Pair, step: Step) -> list[Term]:
        """PATCH: the first crop learns from the second, and the second from the first."""
        c = self.config
        features, probabilities = self._crops(method, pair, step)
        grid = (features.shape[-2], features.shape[-1])
        confidence, labels = probabilities.max(2)  # (B, 2, h, w)
        index, shared = matching_cells(pair.boxes, pair.flips, c.crop, grid, c.multiple)
        confidence, labels = confidence.flatten(2), labels.flatten(2)  # (B, 2, P)
        embedded = self.patch_head(features.flatten(3).mT)  # (B, 2, P, D)

        if self.training:
            self._remember(embedded.detach(), labels, pair.position, step)
        negatives = self.bank.all()
        other = confidence.flip(1).gather(2, index)
        wanted = shared & learners(confidence, other, c.confidence)
        rows = index[..., None].expand(-1, -1, -1, embedded.shape[-1])
        positives = embedded.detach().flip(1).gather(2, rows)
        losses = [
            patch_contrast(
                embedded[:, crop].flatten(0, 1),
                positives[:, crop].flatten(0, 1),
                wanted[:, crop].flatten(),
                labels[:, crop].flatten(),
                *negatives,
                c.patch_temperature,
            )
            for crop in (0, 1)
        ]
        anchors = wanted.sum()
        _, others = pairs_by_label(labels, negatives[1], self.num_classes)
        return [
            *(Term(*loss, c.patch_weight) for loss in losses),
            Term(anchors, _number(2 * len(wanted), anchors)),
            Term((others * wanted).sum(), anchors),
        ]

    def _crops(self, method: Method, pair: Pair, step: Step) -> tuple[Tensor, Tensor]:
        """Features (B, 2, C, h, w) and the judge's probabilities (B, 2, K, h, w), by patch."""
        teacher = getattr(method, "teacher", None)
        if teacher is not None:
            both = torch.cat([pair.first.image, pair.second.image])
            with torch.no_grad():
                taught = teacher(both, "target")
        if self.config.patch_features == "student":
            outputs = [
                method.segment(crop, "target", step, draws=f"pipa/{name}")
                for crop, name in ((pair.first, "first"), (pair.second, "second"))
            ]
            features = torch.cat([output.features for output in outputs])
            logits = torch.cat([output.logits.detach() for output in outputs])
            logits = logits if teacher is None else taught.logits
        elif teacher is not None:
            features, logits = taught.features, taught.logits
        else:
            raise ConfigError(
                "pipa.patch_features=ref_teacher needs a method with a teacher, which "
                f"{type(method).__name__} has not; leave pipa.patch_features out"
            )
        grid = (features.shape[-2] // POOLING, features.shape[-1] // POOLING)
        features = on_grid(at_least_float32(features), grid)
        probabilities = on_grid(at_least_float32(logits).softmax(1), grid)
        return _by_image(features), _by_image(probabilities)

    def _remember(self, embedded: Tensor, labels: Tensor, position: Tensor, step: Step) -> None:
        """Put random places of every crop, (B, 2, P, D) and (B, 2, P), of all ranks into the bank.

        As many of each image, so that who reads which image changes nothing.
        """
        each = self.config.patch_samples // (len(embedded) * distributed.world_size())
        if not each:
            raise ConfigError(
                "pipa.patch_samples must be at least the images of a step, got "
                f"{self.config.patch_samples}"
            )
        draws = step.uniform("pipa/bank", position, labels.shape[1:])
        chosen = draws.topk(min(each, draws.shape[2]), largest=False).indices  # (B, 2, n)
        rows = embedded.gather(2, chosen[..., None].expand(-1, -1, -1, embedded.shape[-1]))
        labels = labels.gather(2, chosen)
        rows, labels = (distributed.in_order(x).flatten(0, 2) for x in (rows, labels))
        self.bank.push(rows, labels)


def _by_image(crops: Tensor) -> Tensor:
    """All first crops, then all second ones, (2 B, ...) -> (B, 2, ...)."""
    return crops.unflatten(0, (2, -1)).transpose(0, 1)


def _widths(segmentor: Segmentor) -> tuple[int, ...]:
    """Channels of what the backbone gives."""
    backbone = segmentor.backbone
    return backbone.widths or (backbone.feature_dimension,)


def _source(method: Method, batch: Batch, seen: Mapping[str, Seen], step: Step) -> Seen:
    """Labelled source images: as the method has seen them, or, where it has not, seen for this."""
    if "source" in seen:
        return seen["source"]
    output = method.segment(batch.source, "source", step, draws="pipa/source")
    return Seen(batch.source, output, batch.source.label)


def _label(source: Seen) -> Tensor:
    assert source.label is not None, "a method sees source images with their labels"
    return source.label


def _idle(head: nn.Module, names: tuple[str, ...]) -> list[Term]:
    """Terms of 0 over 0 that depend on every parameter of a head, as DDP asks of a step."""
    total = torch.stack([0 * parameter.sum() for parameter in head.parameters()]).sum()
    return [Term(total, _number(0, total)) for _ in names]


def _number(value: int, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.int64, device=like.device)
