"""Where the weights of a backbone come from: torchvision by name, or a local file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_weight

from spcl.errors import ConfigError, UserError


@dataclass(frozen=True)
class Pretrained:
    """What is known of a backbone's published weights."""

    imagenet: str  # torchvision's name
    input: str  # what they were trained on, see `spcl.models.vgg.INPUTS`
    ignored: str  # prefix of the classifier's entries
    new: tuple[str, ...] = ()  # prefixes of layers that no file has to hold


def check_fits(name: str, known: Pretrained | None, weights: str) -> None:
    """ConfigError where weights are given to a network that has none.

    name  of the network, for the message
    """
    if known is None and weights != "none":
        raise ConfigError(f"{name} starts from scratch: model.weights must be none, got {weights}")


def load_weights(backbone: nn.Module, name: str, known: Pretrained | None, weights: str) -> None:
    """Fill `backbone`: "none" leaves it, "imagenet" is torchvision's, else a state dict's path.

    name  of the network, for messages; the classifier in a state dict is ignored

    Raises ConfigError as `check_fits`, UserError where weights are missing or do not fit.
    """
    check_fits(name, known, weights)
    check_weights(weights)
    if known is None or weights == "none":
        return
    state = _download(known.imagenet) if weights == "imagenet" else _from_file(Path(weights))
    state = {k: v for k, v in state.items() if not k.startswith(known.ignored)}
    try:
        missing, unexpected = backbone.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        raise UserError(f"weights {weights} do not fit {name}: {error}") from error
    missing = [k for k in missing if not k.startswith(known.new)]
    if missing or unexpected:
        raise UserError(
            f"weights {weights} do not fit {name}: missing {_shorten(missing)}; "
            f"unexpected {_shorten(unexpected)}"
        )


def _download(name: str) -> dict[str, Tensor]:
    weights = get_weight(name)
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a hash that differs
        raise UserError(
            f"cannot download {weights.url} ({error}); fetch it elsewhere and give the file: "
            "model.weights=/path/to/file.pth"
        ) from error


def check_weights(weights: str) -> None:
    """UserError where weights are neither known by name nor a file."""
    if weights not in ("none", "imagenet") and not Path(weights).is_file():
        raise UserError(f"model.weights must be imagenet, none or a file; no file at {weights}")


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or foreign file
        raise UserError(
            f"cannot read weights from {path}: it is damaged, or no state dict that torch.save "
            f"has written"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} must hold a state dict (name -> tensor)")
    return state


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
