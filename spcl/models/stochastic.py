"""Random layers whose masks belong to samples, in place of those that draw from a global generator.

Foreign networks come with Dropout, Dropout2d, DropPath.  A global generator would make a result
depend on ranks, micro-batches and on where a run was resumed; here each mask is a function of a key
per sample, which a training step hands in (`spcl.randomness`).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spcl.errors import ConfigError
from spcl.randomness import derived, uniform

#: What one draw covers, by the layer that is replaced: an element, a channel or a whole sample.
COVERS = {
    "Dropout": "element",
    "Dropout1d": "channel",
    "Dropout2d": "channel",
    "Dropout3d": "channel",
    "DropPath": "sample",  # timm's and most others'
    "StochasticDepth": "sample",  # torchvision's
}
#: Random layers of torch that have no counterpart here.
REFUSED = (nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU, nn.FractionalMaxPool2d)


class RatesAsNumbers(TorchFunctionMode):
    """A context for foreign constructors that read the rates of drop path off a tensor.

    A tensor on the meta device or a fake one has no numbers, so they get an array's.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.linspace:
            return np.linspace(*args)
        return func(*args, **(kwargs or {}))


class SampleDropout(nn.Module):
    """Drops, in training, what one draw covers with probability p, and scales the rest up."""

    def __init__(self, p: float, covers: str):
        super().__init__()
        self.p, self.covers = p, covers
        self.keys: Tensor | None = None  # (B,) int64, set before each forward

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...) -> the same; or (B * n, C, ...), a sample's n windows one after another."""
        if not self.training or self.p == 0:
            return x
        if self.keys is None:
            raise RuntimeError(
                "a random layer draws from a training step: call the network by Method.segment, "
                "or put it into eval mode"
            )
        ones = (1,) * (x.dim() - 2)
        shape = {"element": x.shape[1:], "channel": (x.shape[1], *ones), "sample": (1, *ones)}
        windows = len(x) // len(self.keys)
        draws = uniform(self.keys, (windows, *shape[self.covers])).flatten(0, 1)
        # A block of MiT runs one layer behind its attention and again behind its MLP.
        self.keys = self.keys + 1
        return x * ((draws >= self.p).to(x.dtype) / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}, covers={self.covers!r}"


def replace_random_layers(network: nn.Module) -> None:
    """Put a `SampleDropout` where a layer of COVERS is.  ConfigError on one that has none."""
    for name, module in list(network.named_modules()):
        if isinstance(module, REFUSED) or getattr(module, "mode", "row") == "batch":
            raise ConfigError(
                f"every random layer of a network must draw for each sample by itself, but {name} "
                f"is a {type(module).__name__}; use a network without it, or set it to 0"
            )
        covers = COVERS.get(type(module).__name__)
        if covers and name:
            parent, _, child = name.rpartition(".")
            p = getattr(module, "p", getattr(module, "drop_prob", 0.0))
            setattr(network.get_submodule(parent), child, SampleDropout(p or 0.0, covers))


def random_layers(network: nn.Module) -> dict[str, SampleDropout]:
    """The random layers by name; foreign networks have many that never drop, which are left out."""
    found = network.named_modules()
    return {name: m for name, m in found if isinstance(m, SampleDropout) and m.p > 0}


def set_keys(layers: dict[str, SampleDropout], names: Tensor, keys: Tensor | None) -> None:
    """Give each layer its own keys, derived from (B,) int64, one per sample of the next forward.

    names  (L,) of the layers, see `spcl.randomness.name_numbers`: a network may have a hundred
    """
    own = [None] * len(layers) if keys is None else derived(keys, names[:, None])  # (L, B)
    for layer, its in zip(layers.values(), own, strict=True):
        layer.keys = its
