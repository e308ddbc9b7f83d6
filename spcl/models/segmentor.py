"""Backbone and head behind one interface, the table of networks and the factory that reads it."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from spcl.errors import ConfigError
from spcl.models import dinov2, mit, tiny_transformer
from spcl.models.backbone import Backbone, FusingHead
from spcl.models.daformer import DAFormerHead
from spcl.models.deeplab import DilatedClassifier
from spcl.models.light import LightHead
from spcl.models.normalization import NORMS, set_domain
from spcl.models.resnet import ResNet
from spcl.models.stochastic import random_layers, replace_random_layers, set_keys
from spcl.models.tiny import Tiny
from spcl.models.vgg import INPUTS, VGG16
from spcl.models.weights import Pretrained, check_fits, load_weights
from spcl.randomness import name_numbers
from spcl.settings import choose

MEAN_ORDERS = ("right", "mixed")

# The logit of a class that the network has no output for.  Finite, since interpolation would make
# infinity NaN; in every float type its softmax is exactly 0.
ABSENT_LOGIT = -1e4

NO_DECAY = "/no_decay"  # behind the name of a group of parameters, see `parameter_groups`


class Output(NamedTuple):
    """What a network says of images, on its own grid (h, w): losses and scores upsample it."""

    features: Tensor  # (B, D, h, w), those of a `FusingHead` or the last of the levels
    logits: Tensor  # (B, K, h, w)
    levels: tuple[Tensor, ...] = ()  # what the backbone gives, from fine to coarse


class Segmentor(nn.Module):
    """A network that segments images of two domains; the domain chooses normalisation statistics.

    The backbone gives features (B, D, h, w), or a tuple of levels from fine to coarse of which the
    last are the features; its attribute `feature_dimension` is D.  The head takes what it gives.
    A `FusingHead` takes levels and makes features of its own.
    absent      trainIds that are never predicted: the network is that without these outputs
    mean_order  "mixed" is an image from which the mean was taken with its channels reversed, as in
                ASANet's code: blue minus the mean of red
    no_decay    parts of the names of parameters that are trained without weight decay
    layers      names of the backbone's layers, from the last to the first, for layer-wise rates
    mixed       normalisation of images that are of both domains: the domain whose running
                statistics they get, and whether they move these
    """

    feature_dimension: int
    _names: Tensor
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
        layers: tuple[str, ...] = (),
    ):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.mixed = mixed
        self._build: Callable[..., Segmentor] | None = None
        replace_random_layers(self)
        self._random = random_layers(self)
        if self._random:
            self.register_buffer("_names", name_numbers(self._random), persistent=False)
        self.no_decay, self.layers = no_decay, layers
        self.num_classes = num_classes
        self.absent = absent
        source = head if isinstance(head, FusingHead) else backbone
        self.feature_dimension = source.feature_dimension
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
        if self._random:
            set_keys(self._random, self._names, keys)
        if self.mean_order == "mixed":
            image = image + self._shift
        given = self.backbone(image)
        levels = given if isinstance(given, tuple) else (given,)
        if isinstance(self.head, FusingHead):
            features, logits = self.head(levels, image.shape[-2:])
        else:
            features, logits = levels[-1], self.head(given)
        if self.absent:
            logits = logits.masked_fill(self._absent, ABSENT_LOGIT)
        return Output(features, logits, levels)

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

    def depths(self) -> dict[int, int]:
        """id of each of the backbone's parameters -> how many `layers` are between it and the head.

        What is in none of them lies before all.
        """
        found = {id(parameter): len(self.layers) for parameter in self.backbone.parameters()}
        for depth, name in enumerate(self.layers):
            layer = self.backbone.get_submodule(name)
            found |= {id(parameter): depth for parameter in layer.parameters()}
        return found


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that the rest of the code knows of a network: a new one is one row of MODELS.

    backbone    (layer of NORMS, one of `inputs`) -> the first half of a `Segmentor`
    head        (the backbone, classes, aspp_branches, layer of NORMS) -> the second half
    stride      pixels of the image, per side, in a cell of features and logits
    pretrained  weights of the backbone; None: it starts from scratch
    inputs      what `spcl.models.vgg.INPUTS` it can make of an image; the first without weights
    norms       what `model.norm` may be; (): it has no layer whose statistics could be chosen
    no_decay    see `Segmentor`
    layers      see `Segmentor`
    licence     terms of code and weights that are not this project's, where they must be known
    package     what has to be installed besides: the name to import, and our extra that brings it
    """

    backbone: Callable[[type[nn.Module], str], Backbone]
    head: Callable[[Any, int, int, type[nn.Module]], nn.Module]
    stride: float
    pretrained: Pretrained | None = None
    inputs: tuple[str, ...] = ("imagenet",)
    norms: tuple[str, ...] = tuple(NORMS)
    no_decay: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    licence: str = ""
    package: tuple[str, str] | None = None


def _deeplab(backbone: Backbone, classes: int, branches: int, norm: type[nn.Module]) -> nn.Module:
    return DilatedClassifier(backbone.feature_dimension, classes, branches)


def _dinov2(timms: str, metas: str) -> ModelSpec:
    url = f"https://dl.fbaipublicfiles.com/dinov2/{metas}/{metas}_pretrain.pth"
    cell = dinov2.PATCH / 2**dinov2.DOUBLINGS
    return ModelSpec(
        backbone=lambda norm, input: dinov2.DINOv2(timms),
        head=lambda backbone, classes, branches, norm: LightHead(
            backbone.widths, classes, dinov2.HEAD_WIDTH, cell, dinov2.DOUBLINGS
        ),
        stride=cell,
        pretrained=Pretrained(url, "imagenet", "head.", into="vit", names=dinov2.timms_names),
        norms=(),
        no_decay=dinov2.NO_DECAY,
        layers=dinov2.LAYERS,
        licence=dinov2.LICENCE,
    )


def _mit(name: str, revision: str) -> ModelSpec:
    # The authors' own links are dead; this is what segmentation-models-pytorch loads.
    repository = f"https://huggingface.co/smp-hub/{name}.imagenet"
    url = f"{repository}/resolve/{revision}/model.safetensors"
    return ModelSpec(
        backbone=lambda norm, input: mit.MiT(name),
        head=lambda backbone, classes, branches, norm: DAFormerHead(backbone.widths, classes, norm),
        stride=4,
        pretrained=Pretrained(url, "imagenet", "head.", into="mit"),
        norms=("domain",),  # of the head, which nothing has trained: they can't be frozen
        licence=mit.LICENCE,
        package=("segmentation_models_pytorch", "mit"),
    )


# The weights are those that the papers of this family start from: torchvision's V2 ones of the
# ResNets are later, and its V1 ones of VGG-16 are not those of VGG's authors.
MODELS: dict[str, ModelSpec] = {
    "tiny": ModelSpec(
        backbone=lambda norm, input: Tiny(norm),
        head=lambda backbone, classes, *_: nn.Conv2d(backbone.feature_dimension, classes, 1),
        stride=2,
    ),
    "tiny_transformer": ModelSpec(
        backbone=lambda norm, input: tiny_transformer.TinyTransformer(),
        head=lambda backbone, classes, *_: LightHead(
            backbone.widths, classes, tiny_transformer.HEAD_WIDTH, stride=2
        ),
        stride=2,
        norms=(),
        layers=tiny_transformer.LAYERS,
    ),
    "deeplabv2_resnet50": ModelSpec(
        backbone=lambda norm, input: ResNet("resnet50", norm),
        head=_deeplab,
        stride=8,
        pretrained=Pretrained("ResNet50_Weights.IMAGENET1K_V1", "imagenet", "fc."),
    ),
    "deeplabv2_resnet101": ModelSpec(
        backbone=lambda norm, input: ResNet("resnet101", norm),
        head=_deeplab,
        stride=8,
        pretrained=Pretrained("ResNet101_Weights.IMAGENET1K_V1", "imagenet", "fc."),
    ),
    "deeplabv2_vgg16": ModelSpec(
        backbone=lambda norm, input: VGG16(input),
        head=_deeplab,
        stride=8,
        pretrained=Pretrained(
            "VGG16_Weights.IMAGENET1K_FEATURES", "caffe_rgb", "classifier.", ("fc6.", "fc7.")
        ),
        inputs=tuple(INPUTS),
        norms=(),
    ),
    "dinov2_vits14": _dinov2("vit_small_patch14_dinov2", "dinov2_vits14"),
    "dinov2_vitb14": _dinov2("vit_base_patch14_dinov2", "dinov2_vitb14"),
    "mit_b0": _mit("mit_b0", "9ce53d104d92d75aabb00aae70677aaab67e7c84"),
    "mit_b5": _mit("mit_b5", "ced04d96c586b6297fd59a7a1e244fc78fdb6531"),
}


def check_installed(name: str) -> None:
    """ConfigError where a network of MODELS needs a package that is not there."""
    spec = MODELS[name]
    if spec.package and importlib.util.find_spec(spec.package[0]) is None:
        package, extra = spec.package
        raise ConfigError(
            f"{name} needs the package {package}, which is not installed; if its licence suits "
            f"you ({spec.licence}): pip install '.[{extra}]'"
        )


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

    Raises ConfigError on an unknown name or a package that is missing, UserError on weights that
    are missing or do not fit.
    """
    spec = MODELS[choose(name, MODELS, "model")]
    check_installed(name)
    layer = NORMS[choose(norm, NORMS, "norm")]
    choose(mean_order, MEAN_ORDERS, "mean_order")
    check_fits(name, spec.pretrained, weights)
    backbone = spec.backbone(layer, input)
    head = spec.head(backbone, num_classes, aspp_branches, layer)
    load_weights(backbone, name, spec.pretrained, weights)
    segmentor = Segmentor(
        backbone, head, num_classes, absent, mean_order, spec.no_decay, mixed, spec.layers
    )
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
