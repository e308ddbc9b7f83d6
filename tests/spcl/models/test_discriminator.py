import pytest
import torch
from torch import nn
from torch.func import functional_call

from spcl.models.discriminator import Discriminator


@pytest.mark.parametrize(
    ("image", "cells"),
    [
        ((512, 1024), (16, 32)),
        ((720, 1280), (22, 40)),
        ((64, 128), (2, 4)),
        ((32, 40), (1, 1)),
        ((16, 128), (1, 4)),
        ((8, 8), (1, 1)),
    ],
)
def test_one_logit_per_32_pixels(image, cells):
    with torch.device("meta"):
        assert Discriminator(19)(torch.empty(2, 19, *image)).shape == (2, 1, *cells)


def test_channels_are_those_of_the_paper_times_the_width():
    def channels(discriminator):
        return [m.out_channels for m in discriminator.modules() if isinstance(m, nn.Conv2d)]

    assert channels(Discriminator(19)) == [64, 128, 256, 512, 1]
    assert channels(Discriminator(19, width=8)) == [8, 16, 32, 64, 1]


def test_judging_with_detached_parameters_trains_the_judged_only():
    discriminator, judged = Discriminator(4, width=2), torch.rand(1, 4, 32, 32, requires_grad=True)
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    functional_call(discriminator, frozen, judged).sum().backward()
    assert judged.grad.abs().sum() > 0
    assert all(p.grad is None for p in discriminator.parameters())


def test_training_on_detached_maps_trains_the_discriminator_only():
    discriminator, judged = Discriminator(4, width=2), torch.rand(1, 4, 32, 32, requires_grad=True)
    discriminator(judged.detach()).sum().backward()
    assert judged.grad is None
    assert all(p.grad is not None for p in discriminator.parameters())
