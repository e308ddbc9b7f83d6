"""VGG-16 with stride 8 (DeepLab's large field of view), and the inputs its weights are used to."""

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from spcl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from spcl.models.backbone import Backbone

#: What pre-trained weights expect as input, and whose do.
INPUTS = {
    "imagenet": "RGB minus ImageNet's mean, by its deviation: torchvision's IMAGENET1K_V1",
    "caffe_rgb": "RGB * 255 minus the mean: torchvision's VGG16_Weights.IMAGENET1K_FEATURES",
    "caffe_bgr": "BGR * 255 minus the mean: converted from Caffe, such as AdaptSegNet's",
}

CAFFE_MEAN = (123.68, 116.779, 103.939)  # of VGG's authors, RGB; torchvision rounds it
PIXEL = 255.0

# Places in torchvision's `features`; they stay as they are, so that its state dicts fit.
POOL4, CONV5, POOL5 = 23, (24, 26, 28), 30


class InputConversion(nn.Module):
    """(B, 3, H, W) RGB normalised by ImageNet's mean and deviation -> what the weights expect.

    The constants are no state: a checkpoint holds weights only.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, kind: str):
        super().__init__()
        if kind not in INPUTS:
            raise ValueError(f"input must be one of {', '.join(INPUTS)}, not {kind!r}")
        self.kind = kind
        mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        scale, offset = PIXEL * deviation, PIXEL * mean - torch.tensor(CAFFE_MEAN)
        self.register_buffer("scale", scale[:, None, None], persistent=False)  # (3, 1, 1)
        self.register_buffer("offset", offset[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> the same shape, in the weights' own units and order of channels."""
        if self.kind == "imagenet":
            return image
        image = torch.addcmul(self.offset, image, self.scale)
        return image.flip(1) if self.kind == "caffe_bgr" else image


class VGG16(Backbone):
    """Image (B, 3, H, W) -> features (B, 1024, H / 8, W / 8), rounded down.

    torchvision's convolutions without the last two poolings, the fifth group dilated by 2; then fc6
    and fc7 as 3x3 convolutions dilated by 4.  There is no normalisation layer.
    """

    feature_dimension = 1024

    def __init__(self, input: str = "imagenet"):
        super().__init__()
        self.convert = InputConversion(input)
        self.features = make_layers(cfgs["D"])[:POOL5]
        self.features[POOL4] = nn.Identity()
        for place in CONV5:
            self.features[place].dilation = self.features[place].padding = (2, 2)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):  # as torchvision starts it
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        # They start with torch's own small weights, as in the AdaptSegNet lineage: with larger ones
        # the head would see activations in the hundreds behind weights that read 0..255.
        self.fc6 = nn.Conv2d(512, self.feature_dimension, 3, padding=4, dilation=4)
        self.fc7 = nn.Conv2d(
            self.feature_dimension, self.feature_dimension, 3, padding=4, dilation=4
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W), normalised as everywhere -> features (B, 1024, H / 8, W / 8)."""
        x = self.features(self.convert(image))
        return self.relu(self.fc7(self.relu(self.fc6(x))))
