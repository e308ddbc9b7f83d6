"""Where half precision ends: losses and statistics are computed in float32 or wider."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; wider types pass through."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast does not narrow matrix products on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
