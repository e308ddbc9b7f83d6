"""DAFormer: self-training with a teacher on mixed images; ImageNet's features are an extra.

Source: Hoyer et al. 2022, arXiv:2111.14887.  All of it is what methods with a teacher share.
"""

from dataclasses import dataclass

from spcl.methods.taught import Taught, TaughtConfig


@dataclass(frozen=True, kw_only=True)
class DAFormerConfig(TaughtConfig):
    pass


class DAFormer(Taught):
    Config = DAFormerConfig
    config: DAFormerConfig
