"""A small transformer for 64x128 scenes, trained from scratch on a CPU."""

import torch.nn.functional as F
from torch import Tensor, nn

from spcl.models.backbone import Backbone
from spcl.models.light import ChannelNorm
from spcl.models.stochastic import SampleDropout

WIDTHS = (24, 48, 96)
HEADS = 4
BLOCKS = 4
HEAD_WIDTH = 48
MLP_RATIO = 2
DROP_PATH = 0.1  # of the last block, as MiT's; the first has none
LAYERS = tuple(f"blocks.{block}" for block in reversed(range(BLOCKS)))


class TinyTransformer(Backbone):
    """Image (B, 3, H, W) -> levels (B, D, h, w), D 24, 48, 96, at strides 2, 4, 8, rounded up.

    Convolutions keep thin things, at stride 8 a transformer sees the whole scene.  Positions come
    from a depth-wise convolution in each MLP, as in MiT, so that any size will do.
    """

    widths, feature_dimension = WIDTHS, WIDTHS[-1]

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), ChannelNorm(b))
            for a, b in zip(inputs, WIDTHS, strict=False)
        )
        rates = (DROP_PATH * block / (BLOCKS - 1) for block in range(BLOCKS))
        self.blocks = nn.ModuleList(Block(WIDTHS[-1], rate) for rate in rates)
        self.norm = ChannelNorm(WIDTHS[-1])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image (B, 3, H, W) -> levels from fine to coarse."""
        levels = []
        x = image
        for down in self.down:
            x = F.gelu(down(x))
            levels.append(x)
        size = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)  # (B, h w, D)
        for block in self.blocks:
            tokens = block(tokens, size)
        levels[-1] = self.norm(tokens.transpose(1, 2).unflatten(2, size))
        return tuple(levels)


class Block(nn.Module):
    """Attention among all cells, then an MLP that looks at its neighbours; both may be dropped."""

    def __init__(self, width: int, drop_path: float):
        super().__init__()
        wide = MLP_RATIO * width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, wide), nn.Linear(wide, width)
        self.around = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.drop1, self.drop2 = (SampleDropout(drop_path, "sample") for _ in range(2))

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """(B, h w, D) of a grid (h, w) -> the same."""
        x = x + self.drop1(self._attention(self.norm1(x)))
        return x + self.drop2(self._mlp(self.norm2(x), size))

    def _attention(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))

    def _mlp(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        grid = self.up(x).transpose(1, 2).unflatten(2, size)
        return self.down(F.gelu(self.around(grid)).flatten(2).transpose(1, 2))
