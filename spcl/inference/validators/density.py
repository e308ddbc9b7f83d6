"""Soft neighbourhood density: has every pixel many others that are predicted alike?

Source: Saito et al. 2021, arXiv:2108.10860: softmax outputs of unit length, temperature 0.05, and
100 pixels of each image.  That neighbours are sought within an image is recalled, not read.
Highest where all predictions are equal, so it must not be used without a floor on the source.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.data.sampling import stream_seed

TEMPERATURE = 0.05
PIXELS = 100  # of an image


def density_pixels(sample_id: str, count: int) -> np.ndarray:
    """(at most 100,) of the places 0 .. count-1 of an image, the same for every network."""
    rng = np.random.default_rng(stream_seed(0, f"validation/density/{sample_id}"))
    return rng.choice(count, min(PIXELS, count), replace=False)


def soft_neighborhood_density(probabilities: Tensor) -> Tensor:
    """(B,) mean over pixels of the entropy of a softmax over similarities to the others; in nats.

    probabilities (B, n, K) of n > 1 pixels of each image; 0 .. log(n - 1)
    """
    unit = F.normalize(probabilities.double(), dim=2)
    similarity = unit @ unit.mT / TEMPERATURE
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # nobody is their own neighbour
    return torch.special.entr(similarity.softmax(2)).sum(2).mean(1)
