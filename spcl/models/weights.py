"""Where the weights of a backbone come from: published ones by name, or a local file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_weight

from spcl.errors import ConfigError, UserError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Pretrained:
    """What is known of a backbone's published weights, which `model.weights=imagenet` asks for.

    imagenet  torchvision's name, or a URL (not all of them were trained on ImageNet)
    input     what they were trained on, see `spcl.models.vgg.INPUTS`
    ignored   prefix of the classifier's entries
    new       prefixes of layers that no file has to hold
    into      the part of the backbone that they fill; "" is all of it
    names     (a file's state dict, that part) -> what the part loads, where names may differ
    """

    imagenet: str
    input: str
    ignored: str
    new: tuple[str, ...] = ()
    into: str = ""
    names: Callable[[State, Any], State] = lambda state, part: state


def check_fits(name: str, known: Pretrained | None, weights: str) -> None:
    """ConfigError where weights are given to a network that has none.

    name  of the network, for the message
    """
    if known is None and weights != "none":
        raise ConfigError(f"{name} starts from scratch: model.weights must be none, got {weights}")


def load_weights(backbone: nn.Module, name: str, known: Pretrained | None, weights: str) -> None:
    """Fill `backbone`: "none" leaves it, "imagenet" is what is published, else a file's path.

    name  of the network, for messages; the classifier in a file is ignored

    Raises ConfigError as `check_fits`, UserError where weights are missing or do not fit.
    """
    check_fits(name, known, weights)
    check_weights(weights)
    if known is None or weights == "none":
        return
    state = _download(known.imagenet) if weights == "imagenet" else _from_file(Path(weights))
    part = backbone.get_submodule(known.into)
    try:
        state = known.names(state, part)
        state = {k: v for k, v in state.items() if not k.startswith(known.ignored)}
        # A foreign part may have a `load_state_dict` of its own that takes no `strict`.
        missing, unexpected = nn.Module.load_state_dict(part, state, strict=False)
    except RuntimeError as error:  # shapes: a line on top, then one for each
        told = [line.strip().rstrip(".") for line in str(error).splitlines()]
        raise UserError(
            f"weights {weights} do not fit {name}: {_shorten(told[1:] or told, 1)}"
        ) from error
    missing = [k for k in missing if not k.startswith(known.new)]
    if missing or unexpected:
        raise UserError(
            f"weights {weights} do not fit {name}: missing {_shorten(missing)}; "
            f"unexpected {_shorten(unexpected)}"
        )


def _download(name: str) -> State:
    """Of torchvision's name or of a URL; kept in torch's own cache."""
    is_url = name.startswith("https://")
    url = name if is_url else get_weight(name).url
    try:
        if not is_url:
            return get_weight(name).get_state_dict(progress=False, check_hash=True)
        kept = Path(torch.hub.get_dir()) / "checkpoints" / url.split("//")[1].replace("/", "-")
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(kept), progress=False)  # whole or absent
    except (OSError, RuntimeError) as error:  # no network; a hash that differs
        raise UserError(
            f"cannot download {url} ({error}); fetch it elsewhere and give the file: "
            f"model.weights=/path/to/{url.rpartition('/')[2]}"
        ) from error
    return _from_file(kept)


def check_weights(weights: str) -> None:
    """UserError where weights are neither known by name nor a file."""
    if weights not in ("none", "imagenet") and not Path(weights).is_file():
        raise UserError(f"model.weights must be imagenet, none or a file; no file at {weights}")


def _from_file(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise many types for a damaged or foreign file
        raise UserError(
            f"cannot read weights from {path}: it is damaged, or no state dict that torch.save or "
            "safetensors has written"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} must hold a state dict (name -> tensor)")
    return state


def _shorten(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) or "nothing"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
