"""The classifier of DeepLab-v2 (Chen et al. 2017, arXiv:1606.00915): a sum of dilated branches."""

from torch import Tensor, nn

DILATIONS = (6, 12, 18, 24)


class DilatedClassifier(nn.Module):
    """Features (B, D, h, w) -> logits (B, K, h, w), the sum of 3x3 convolutions.

    branches  how many of the dilations 6, 12, 18, 24 there are; the code of the AdaptSegNet lineage
              sums the first two only
    """

    def __init__(self, dimension: int, num_classes: int, branches: int = 4):
        super().__init__()
        if branches not in (2, 4):
            raise ValueError(f"branches must be 2 or 4, not {branches}")
        made = [
            nn.Conv2d(dimension, num_classes, 3, padding=d, dilation=d)
            for d in DILATIONS[:branches]
        ]
        for branch in made:
            nn.init.normal_(branch.weight, std=0.01)
        self.branches = nn.ModuleList(made)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) -> logits (B, K, h, w)."""
        # One after the other, in the order of the authors' code: a sum's rounding is part of it.
        logits = self.branches[0](features)
        for branch in self.branches[1:]:
            logits = logits + branch(features)
        return logits
