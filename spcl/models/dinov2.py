"""DINOv2's vision transformers (Oquab et al. 2023, arXiv:2304.07193), through timm."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.models.backbone import Backbone
from spcl.models.stochastic import RatesAsNumbers

LICENCE = "Apache-2.0, code and weights of DINOv2"
PATCH = 14
BLOCKS = 12  # of the small and the base network
LEVELS = (2, 5, 8, 11)  # blocks whose outputs are levels
HEAD_WIDTH = 256  # ours, and the next
# Of the grid, in the head.  Logits are upsampled as if the centres of the outer cells lay on the
# outer pixels: cells of 3.5 pixels nearly do, those of 14 would be half a patch away.
DOUBLINGS = 2
DROP_PATH = 0.1  # ours: as MiT's
#: From the last to the first: what layer-wise rates go by, see `spcl.methods.optimization`.
LAYERS = ("vit.norm", *(f"vit.blocks.{block}" for block in reversed(range(BLOCKS))))
NO_DECAY = ("pos_embed", "cls_token", "norm", "gamma", "bias")  # as timm: none of vectors


class DINOv2(Backbone):
    """Image (B, 3, H, W) -> four levels (B, D, h, w) of one grid, at stride 14, rounded up.

    The image is padded at the bottom and on the right by its mean colour, 0, up to whole patches:
    cell (i, j) sees the pixels from (14 i, 14 j) on, those of the last row and column fewer.
    name  timm's, "vit_small_patch14_dinov2" or "vit_base_patch14_dinov2"
    """

    vit: Any  # timm's VisionTransformer

    def __init__(self, name: str):
        super().__init__()
        import timm

        with RatesAsNumbers():
            # `dynamic_img_size`: patches of any number, embedded without positions.
            self.vit = timm.create_model(
                name, num_classes=0, dynamic_img_size=True, drop_path_rate=DROP_PATH
            )
        self.feature_dimension = self.vit.embed_dim
        self.widths = (self.feature_dimension,) * len(LEVELS)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image (B, 3, H, W) -> levels from early to late, each normalised by the last norm."""
        down, right = (-side % PATCH for side in image.shape[-2:])
        patches = self.vit.patch_embed(F.pad(image, (0, right, 0, down)))  # (B, h, w, D)
        class_position, positions = self.vit.pos_embed.split([1, self._grid**2], dim=1)
        patches = patches + self._resized(positions, patches.shape[1:3])
        first = (self.vit.cls_token + class_position).expand(len(image), -1, -1)
        x = torch.cat([first, patches.flatten(1, 2)], 1)  # (B, 1 + h w, D)
        levels = []
        for number, block in enumerate(self.vit.blocks):
            x = block(x)
            if number in LEVELS:
                cells = self.vit.norm(x)[:, 1:]
                levels.append(cells.transpose(1, 2).unflatten(2, patches.shape[1:3]))
        return tuple(levels)

    def _resized(self, positions: Tensor, size: tuple[int, ...]) -> Tensor:
        """(1, g g, D), g of the weights -> (h, w, D), bicubic as timm's.

        As products of matrices, since on CUDA torch's own has no deterministic gradient.
        """
        square = positions.unflatten(1, (self._grid, self._grid))[0]
        rows, columns = (_resizing(self._grid, side, positions) for side in size)
        return torch.einsum("hi,ijd,wj->hwd", rows, square, columns)

    @property
    def _grid(self) -> int:
        return self.vit.patch_embed.grid_size[0]


def _resizing(old: int, new: int, like: Tensor) -> Tensor:
    """(new, old), the matrix that resizes a line of `old` numbers."""
    lines = torch.eye(old, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(lines, (new, old), mode="bicubic", antialias=True)[0, 0]


def timms_names(state: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    """A state dict of Meta's or of timm's names, with positions of any grid -> what `vit` loads."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    return checkpoint_filter_fn(state, vit)
