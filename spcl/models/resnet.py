"""ResNet-50 and -101 with stride 8, and where their weights come from."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_weight
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from spcl.errors import UserError

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# The weights the papers of this family start from; torchvision's V2 ones are later.
IMAGENET = {
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
    "resnet101": "ResNet101_Weights.IMAGENET1K_V1",
}


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
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def load_weights(backbone: nn.Module, name: str, weights: str) -> None:
    """Fill `backbone`: "none" leaves it, "imagenet" is torchvision's, else a state dict's path.

    The classifier (fc.*) in a state dict is ignored.  Raises UserError where weights are missing or
    do not fit.
    """
    if weights == "none":
        return
    state = _imagenet(name) if weights == "imagenet" else _from_file(Path(weights))
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    try:
        missing, unexpected = backbone.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        raise UserError(f"weights {weights} do not fit {name}: {error}") from error
    if missing or unexpected:
        raise UserError(
            f"weights {weights} do not fit {name}: missing {_shorten(missing)}; "
            f"unexpected {_shorten(unexpected)}"
        )


def _imagenet(name: str) -> dict[str, Tensor]:
    weights = get_weight(IMAGENET[name])
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a hash that differs
        raise UserError(
            f"cannot download {weights.url} ({error}); fetch it elsewhere and give the file: "
            "model.weights=/path/to/file.pth"
        ) from error


def _from_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"model.weights must be imagenet, none or a file; no file at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or foreign file
        raise UserError(f"cannot read weights from {path}: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} must hold a state dict (name -> tensor)")
    return state


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
