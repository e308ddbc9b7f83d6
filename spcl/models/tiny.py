"""A small network for 64x128 scenes, trained from scratch on a CPU."""

import torch.nn.functional as F
from torch import Tensor, nn

from spcl.models.backbone import Backbone

DILATIONS = (1, 2, 4, 8, 2, 1)  # at stride 4: together they see 72 pixels to each side


class Tiny(Backbone):
    """Image (B, 3, H, W) -> features (B, 64, H / 2, W / 2), rounded up.

    A stem at stride 2 keeps thin things, a body of dilated residual convolutions at stride 4 sees
    the scene, and both meet again at stride 2.
    """

    feature_dimension = 64

    def __init__(self, norm: type[nn.Module], width: int = 24):
        super().__init__()
        wide = 2 * width
        self.stem = _convolution(norm, 3, width, stride=2)
        self.detail = _convolution(norm, width, width)
        self.down = _convolution(norm, width, wide, stride=2)
        self.body = nn.ModuleList(_convolution(norm, wide, wide, dilation=d) for d in DILATIONS)
        self.from_detail = nn.Conv2d(width, self.feature_dimension, 1, bias=False)
        self.from_body = nn.Conv2d(wide, self.feature_dimension, 1, bias=False)
        self.norm = norm(self.feature_dimension)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) -> features (B, 64, H / 2, W / 2)."""
        detail = self.stem(image)
        detail = detail + self.detail(detail)
        body = self.down(detail)
        for layer in self.body:
            body = body + layer(body)
        # A 1x1 convolution and the upsampling commute; this order is cheaper.
        context = F.interpolate(
            self.from_body(body), detail.shape[-2:], mode="bilinear", align_corners=True
        )
        return F.relu(self.norm(self.from_detail(detail) + context))


def _convolution(
    norm: type[nn.Module], inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    layer = nn.Conv2d(
        inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(layer, norm(outputs), nn.ReLU(inplace=True))
