"""Backbone and head behind one interface, the table of networks and the factory that reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from spcl.errors import ConfigError
from spcl.models.backbone import Backbone
from spcl.models.deeplab import DilatedClassifier
from spcl.models.normalization import NORMS, set_domain
from spcl.models.resnet import ResNet
from spcl.models.stochastic import random_layers, replace_random_layers, set_keys
from spcl.models.tiny import Tiny
from spcl.models.vgg import INPUTS, VGG16
from spcl.models.weights import Pretrained, check_fits, load_weights
from spcl.settings import choose

MEAN_ORDERS = ("right", "mixed")

# The logit of a class that the network has no output for.  Finite, since interpolation would make
# infinity NaN; in every float type its softmax is exactly 0.
ABSENT_LOGIT = -1e4

NO_DECAY = "/no_decay"  # behind the name of a group of parameters, see `parameter_groups`


class Output(NamedTuple):
    """What a network says of images, on its own grid (h, w): losses and scores upsample it."""

    features: Tensor  # (B, D, h, w), the last of the levels
    logits: Tensor  # (B, K, h, w)
    levels: tuple[Tensor, ...] = ()  # what the backbone gives, from fine to coarse


class Segmentor(nn.Module):
    """A network that segments images of two domains; the domain chooses normalisation statistics.

    The backbone gives features (B, D, h, w), or a tuple of levels from fine to coarse of which the
    last are the features; its attribute `feature_dimension` is D.  The head takes what it gives.
    absent      trainIds that are never predicted: the network is that without these outputs
    mean_order  "mixed" is an image from which the mean was taken with its channels reversed, as in
                ASANet's code: blue minus the mean of red
    no_decay    parts of the names of parameters that are trained without weight decay
    mixed       normalisation of images that are of both domains: the domain whose running
                statistics they get, and whether they move these
    """

    _absent: Tensor
    _shift: Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        num_classes: int,
        absent: tuple[int, ...] = (),
        mean_order: str = "right",
        no_decay: tuple[str, ...] = (),
        mixed: tuple[str, bool] = ("target", False),
    ):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.mixed = mixed
        self._build: Callable[..., Segmentor] | None = None
        replace_random_layers(self)
        self._random = dict(random_layers(self))
        self.no_decay = no_decay
        self.num_classes = num_classes
        self.absent = absent
        self.feature_dimension = backbone.feature_dimension
        if not set(absent) < set(range(num_classes)):
            raise ConfigError(
                f"model.absent must name some, not all, of the trainIds 0..{num_classes - 1}, "
                f"got {list(absent)}"
            )
        if absent:
            mask = torch.tensor([k in absent for k in range(num_classes)])
            self.register_buffer("_absent", mask[:, None, None], persistent=False)  # (K, 1, 1)
        self.mean_order = mean_order
        if mean_order == "mixed":
            mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
            shift = (mean - mean.flip(0)) / deviation
            self.register_buffer("_shift", shift[:, None, None], persistent=False)  # (3, 1, 1)

    def forward(self, image: Tensor, domain: str, keys: Tensor | None = None) -> Output:
        """image (B, 3, H, W) normalised; domain "source", "target", "mixed" or "styled".

        "styled" images have the statistics of "mixed" ones and never move them.
        keys  (B,) int64, what random layers draw by in training: see `Method.segment`
        """
        statistics, moves = self.mixed if domain in ("mixed", "styled") else (domain, True)
        moves = moves and domain != "styled"
        set_domain(self, statistics, moves)
        set_keys(self._random, keys)
        if self.mean_order == "mixed":
            image = image + self._shift
        given = self.backbone(image)
        logits = self.head(given)
        if self.absent:
            logits = logits.masked_fill(self._absent, ABSENT_LOGIT)
        levels = given if isinstance(given, tuple) else (given,)
        return Output(levels[-1], logits, levels)

    def predict(self, image: Tensor) -> Tensor:
        """Logits (B, K, h, w) of target images (B, 3, H, W), with the target's statistics."""
        return self(image, "target").logits

    def new(self, weights: str) -> "Segmentor":
        """Another network of this kind, e.g. with "imagenet" weights as a fixed reference.

        Built from torch's global RNG, which a stage seeds: the same on all ranks.
        """
        if self._build is None:
            raise ValueError("a network can make another only if build_segmentor has made it")
        return self._build(weights=weights)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """ "backbone" and "head"; with NO_DECAY behind it what either trains without weight decay.

        A group without parameters is left out, these two apart.
        """
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "head": []}
        for part in tuple(groups):
            for name, parameter in getattr(self, part).named_parameters():
                free = any(piece in name for piece in self.no_decay)
                groups.setdefault(part + NO_DECAY if free else part, []).append(parameter)
        return groups


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that the rest of the code knows of a network: a new one is one row of MODELS.

    backbone    (layer of NORMS, one of `inputs`) -> the first half of a `Segmentor`
    head        (its feature_dimension, classes, aspp_branches) -> the second half
    stride      pixels of the image, per side, in a cell of features and logits
    pretrained  weights of the backbone; None: it starts from scratch
    inputs      what `spcl.models.vgg.INPUTS` it can make of an image; the first without weights
    norms       what `model.norm` may be; (): it has no layer whose statistics could be chosen
    no_decay    see `Segmentor`
    """

    backbone: Callable[[type[nn.Module], str], Backbone]
    head: Callable[[int, int, int], nn.Module]
    stride: int
    pretrained: Pretrained | None = None
    inputs: tuple[str, ...] = ("imagenet",)
    norms: tuple[str, ...] = tuple(NORMS)
    no_decay: tuple[str, ...] = ()


# The weights are those that the papers of this family start from: torchvision's V2 ones of the
# ResNets are later, and its V1 ones of VGG-16 are not those of VGG's authors.
MODELS: dict[str, ModelSpec] = {
    "tiny": ModelSpec(
        backbone=lambda norm, input: Tiny(norm),
        head=lambda dimension, classes, branches: nn.Conv2d(dimension, classes, 1),
        stride=2,
    ),
    "deeplabv2_resnet50": ModelSpec(
        backbone=lambda norm, input: ResNet("resnet50", norm),
        head=DilatedClassifier,
        stride=8,
        pretrained=Pretrained("ResNet50_Weights.IMAGENET1K_V1", "imagenet", "fc."),
    ),
    "deeplabv2_resnet101": ModelSpec(
        backbone=lambda norm, input: ResNet("resnet101", norm),
        head=DilatedClassifier,
        stride=8,
        pretrained=Pretrained("ResNet101_Weights.IMAGENET1K_V1", "imagenet", "fc."),
    ),
    "deeplabv2_vgg16": ModelSpec(
        backbone=lambda norm, input: VGG16(input),
        head=DilatedClassifier,
        stride=8,
        pretrained=Pretrained(
            "VGG16_Weights.IMAGENET1K_FEATURES", "caffe_rgb", "classifier.", ("fc6.", "fc7.")
        ),
        inputs=tuple(INPUTS),
        norms=(),
    ),
}


def build_segmentor(
    name: str,
    num_classes: int = 19,
    *,
    norm: str,
    weights: str = "none",
    input: str = "imagenet",
    aspp_branches: int = 4,
    absent: tuple[int, ...] = (),
    mean_order: str = "right",
    mixed: tuple[str, bool] = ("target", False),
) -> Segmentor:
    """A new network; its initialisation follows torch's global RNG and nothing else.

    norm        of `spcl.models.normalization.NORMS`; read by none of a network without such layers
    weights     of the backbone: "none", "imagenet" or a state dict's path
    input       what the weights expect, of the network's `ModelSpec.inputs`
    absent      trainIds that the network never predicts
    mean_order  of MEAN_ORDERS, see `Segmentor`
    mixed       see `Segmentor`

    Raises ConfigError on an unknown name, UserError on weights that are missing or do not fit.
    """
    spec = MODELS[choose(name, MODELS, "model")]
    layer = NORMS[choose(norm, NORMS, "norm")]
    choose(mean_order, MEAN_ORDERS, "mean_order")
    check_fits(name, spec.pretrained, weights)
    backbone = spec.backbone(layer, input)
    head = spec.head(backbone.feature_dimension, num_classes, aspp_branches)
    load_weights(backbone, name, spec.pretrained, weights)
    segmentor = Segmentor(backbone, head, num_classes, absent, mean_order, spec.no_decay, mixed)
    segmentor._build = partial(
        build_segmentor,
        name,
        num_classes,
        norm=norm,
        input=input,
        aspp_branches=aspp_branches,
        absent=absent,
        mean_order=mean_order,
        mixed=mixed,
    )
    return segmentor
