"""Backbone and head behind one interface, and the factory that knows their names."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from spcl.errors import ConfigError
from spcl.models.deeplab import DilatedClassifier
from spcl.models.normalization import NORMS, set_domain
from spcl.models.resnet import ResNet
from spcl.models.tiny import Tiny
from spcl.models.vgg import VGG16
from spcl.models.weights import load_weights
from spcl.settings import choose

#: name -> backbone
MODELS = {
    "tiny": "tiny",
    "deeplabv2_resnet50": "resnet50",
    "deeplabv2_resnet101": "resnet101",
    "deeplabv2_vgg16": "vgg16",
}

MEAN_ORDERS = ("right", "mixed")

# The logit of a class that the network has no output for.  Finite, since interpolation would make
# infinity NaN; in every float type its softmax is exactly 0.
ABSENT_LOGIT = -1e4


class Output(NamedTuple):
    features: Tensor  # (B, D, h, w)
    logits: Tensor  # (B, K, h, w)


class Segmentor(nn.Module):
    """A network that segments images of two domains; the domain chooses normalisation statistics.

    The backbone has an attribute `feature_dimension`.
    absent      trainIds that are never predicted: the network is that without these outputs
    mean_order  "mixed" is an image from which the mean was taken with its channels reversed, as in
                ASANet's code: blue minus the mean of red
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        num_classes: int,
        absent: tuple[int, ...] = (),
        mean_order: str = "right",
    ):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.num_classes = num_classes
        self.absent = absent
        self.feature_dimension: int = backbone.feature_dimension
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

    def forward(self, image: Tensor, domain: str) -> Output:
        """image (B, 3, H, W) normalised; domain "source" or "target"."""
        set_domain(self, domain)
        if self.mean_order == "mixed":
            image = image + self._shift
        features = self.backbone(image)
        logits = self.head(features)
        if self.absent:
            logits = logits.masked_fill(self._absent, ABSENT_LOGIT)
        return Output(features, logits)

    def predict(self, image: Tensor) -> Tensor:
        """Logits (B, K, h, w) of target images (B, 3, H, W), with the target's statistics."""
        return self(image, "target").logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "backbone": list(self.backbone.parameters()),
            "head": list(self.head.parameters()),
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
) -> Segmentor:
    """A new network; its initialisation follows torch's global RNG and nothing else.

    norm        of `spcl.models.normalization.NORMS`; VGG has no such layer
    weights     of the backbone: "none", "imagenet" or a state dict's path; tiny has none
    input       what VGG's weights expect, of `spcl.models.vgg.INPUTS`
    absent      trainIds that the network never predicts
    mean_order  of MEAN_ORDERS, see `Segmentor`

    Raises ConfigError on an unknown name, UserError on weights that are missing or do not fit.
    """
    backbone_name = MODELS[choose(name, MODELS, "model")]
    layer = NORMS[choose(norm, NORMS, "norm")]
    choose(mean_order, MEAN_ORDERS, "mean_order")
    if name == "tiny":
        if weights != "none":
            raise ConfigError(
                f"tiny starts from scratch: model.weights must be none, not {weights}"
            )
        tiny = Tiny(norm=layer)
        head = nn.Conv2d(tiny.feature_dimension, num_classes, 1)
        return Segmentor(tiny, head, num_classes, absent, mean_order)
    backbone = VGG16(input) if backbone_name == "vgg16" else ResNet(backbone_name, layer)
    head = DilatedClassifier(backbone.feature_dimension, num_classes, aspp_branches)
    load_weights(backbone, backbone_name, weights)
    return Segmentor(backbone, head, num_classes, absent, mean_order)
