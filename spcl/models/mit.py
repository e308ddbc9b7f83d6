"""Mix Transformer, the backbone of SegFormer (Xie et al. 2021, arXiv:2105.15203) and DAFormer.

Its code and its weights are under NVIDIA's Source Code License, which allows no commercial use.  So
none of it is here: segmentation-models-pytorch brings it, an optional package (`mit` in
pyproject.toml).  Its LayerNorms have the authors' eps, which the one of `transformers` has not.
"""

import torch
from torch import Tensor, nn

from spcl.models.backbone import Backbone
from spcl.models.stochastic import RatesAsNumbers

LICENCE = (
    "NVIDIA Source Code License, code and weights of MiT: no commercial use; "
    "github.com/NVlabs/SegFormer"
)
LEVELS = 4


class MiT(Backbone):
    """Image (B, 3, H, W) -> four levels (B, D, h, w), at strides 4, 8, 16, 32, rounded up.

    name  "mit_b0" .. "mit_b5"

    Drop path grows from 0 to 0.1 over the blocks, as in the authors' code.
    """

    def __init__(self, name: str):
        super().__init__()
        from segmentation_models_pytorch.encoders import get_encoder

        # Each part of the encoder starts its weights, and so does all that it is part of, which
        # takes long.  Without data it takes no time, and then the whole starts them once.
        device = torch.get_default_device()
        with RatesAsNumbers(), torch.device("meta"):
            encoder = get_encoder(name, weights=None, depth=LEVELS + 1)
        for module in encoder.modules():  # `to_empty` can't do it on fake tensors
            for part, parameter in module.named_parameters(recurse=False):
                module.register_parameter(
                    part, nn.Parameter(torch.empty_like(parameter, device=device))
                )
        encoder.apply(encoder._init_weights)
        self.mit = encoder
        self.widths = tuple(encoder.out_channels[-LEVELS:])
        self.feature_dimension = self.widths[-1]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image (B, 3, H, W) -> levels from fine to coarse."""
        return tuple(self.mit(image)[-LEVELS:])  # before them stand the image and an empty one
