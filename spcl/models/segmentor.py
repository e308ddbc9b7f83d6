"""Backbone and head behind one interface, and the factory that knows their names."""

from typing import NamedTuple

from torch import Tensor, nn

from spcl.errors import ConfigError
from spcl.models.deeplab import DilatedClassifier
from spcl.models.normalization import NORMS, set_domain
from spcl.models.resnet import ResNet, load_weights
from spcl.models.tiny import Tiny
from spcl.settings import choose

#: name -> backbone
MODELS = {
    "tiny": "tiny",
    "deeplabv2_resnet50": "resnet50",
    "deeplabv2_resnet101": "resnet101",
}


class Output(NamedTuple):
    features: Tensor  # (B, D, h, w)
    logits: Tensor  # (B, K, h, w)


class Segmentor(nn.Module):
    """A network that segments images of two domains; the domain chooses normalisation statistics.

    The backbone has an attribute `feature_dimension`.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, num_classes: int):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.num_classes = num_classes
        self.feature_dimension: int = backbone.feature_dimension

    def forward(self, image: Tensor, domain: str) -> Output:
        """image (B, 3, H, W) normalised; domain "source" or "target"."""
        set_domain(self, domain)
        features = self.backbone(image)
        return Output(features, self.head(features))

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
    aspp_branches: int = 4,
) -> Segmentor:
    """A new network; its initialisation follows torch's global RNG and nothing else.

    norm     "frozen" or "domain"
    weights  of the backbone: "none", "imagenet" or a state dict's path; tiny has none

    Raises ConfigError on an unknown name, UserError on weights that are missing or do not fit.
    """
    backbone_name = MODELS[choose(name, MODELS, "model")]
    layer = NORMS[choose(norm, NORMS, "norm")]
    if name == "tiny":
        if weights != "none":
            raise ConfigError(
                f"tiny starts from scratch: model.weights must be none, not {weights}"
            )
        tiny = Tiny(norm=layer)
        return Segmentor(tiny, nn.Conv2d(tiny.feature_dimension, num_classes, 1), num_classes)
    backbone = ResNet(backbone_name, layer)
    head = DilatedClassifier(backbone.feature_dimension, num_classes, aspp_branches)
    load_weights(backbone, backbone_name, weights)
    return Segmentor(backbone, head, num_classes)
