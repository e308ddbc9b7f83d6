"""ResNet-50 and -101 with stride 8."""

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class ResNet(TorchvisionResNet):
    """Image (B, 3, H, W) -> features (B, 2048, H / 8, W / 8), rounded up.

    torchvision's network without its classifier; layers 3 and 4 are dilated (2, 4) instead of
    strided, and the first block of a dilated layer keeps the dilation before it.
    """

    feature_dimension = 2048

    def __init__(self, name: str, norm: type[nn.Module]):
        super().__init__(
            Bottleneck,
            list(BLOCKS[name]),
            norm_layer=norm,
            replace_stride_with_dilation=[False, True, True],
        )
        del self.fc, self.avgpool

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) -> features (B, 2048, H / 8, W / 8)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
