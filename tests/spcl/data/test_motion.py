"""The frame before and the flow to it, through every change of geometry and colours."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from spcl.data.batch import Sample
from spcl.data.transforms import NOWHERE, Augment

HEIGHT, WIDTH = 60, 90
ZOOM, MOVED = (1.06, 0.95), (5.3, -3.6)  # x, y: where a pixel lies in the frame before
GREY_LEVEL = 1 / 255 / 0.224  # of an 8-bit picture, normalised


def scene(x: np.ndarray, y: np.ndarray) -> torch.Tensor:
    """(3, H, W) uint8: what a smooth world shows at these places, in pixels."""
    waves = [np.sin(x / 5 + y / 9), np.cos(x / 8 - y / 4), np.sin(x / 6) * np.cos(y / 5)]
    return torch.from_numpy((127.5 + 120 * np.stack(waves)).round().astype(np.uint8))


def moving(coarse: int = 1) -> Sample:
    """A frame, the frame before, and the exact flow between, on a grid `coarse` times as coarse."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    before = scene((x - MOVED[0]) / ZOOM[0], (y - MOVED[1]) / ZOOM[1])
    # Centres of the grid's cells, in the frame's pixels.
    v, u = ((np.mgrid[: HEIGHT // coarse, : WIDTH // coarse] + 0.5) * coarse) - 0.5
    flow = np.stack([(ZOOM[0] - 1) * u + MOVED[0], (ZOOM[1] - 1) * v + MOVED[1]]) / coarse
    label = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    return Sample(scene(x, y), label, before, torch.from_numpy(flow).float())


def warped(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """The frame before as the flow brings it to the frame, and where the flow stays inside."""
    height, width = sample.image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([x, y]) + sample.flow
    sides = torch.tensor([width - 1, height - 1])[:, None, None]
    inside = ((at >= 0) & (at <= sides)).all(0)
    grid = (2 * at / sides - 1).permute(1, 2, 0)[None]
    return functional.grid_sample(sample.previous[None], grid, align_corners=True)[0], inside


def disagreement(sample: Sample) -> float:
    """Mean over what both frames show."""
    previous, inside = warped(sample)
    assert inside.float().mean() > 0.5
    return float((previous - sample.image).abs().mean(0)[inside].mean())


@pytest.mark.parametrize("coarse", [1, 2])
@pytest.mark.parametrize(
    "augment",
    [
        Augment((HEIGHT, WIDTH)),
        Augment((HEIGHT, WIDTH), flip=1.0),
        Augment((80, 100)),
        Augment((48, 81)),
        Augment((48, 81), flip=0.5, scale=(1.2, 1.6)),
    ],
    ids=["as it is", "flip", "enlarge", "shrink", "all and a crop"],
)
def test_the_flow_still_leads_to_the_frame_before(augment, coarse):
    """By the flow that was there before, and no other: warping gives the frame to a grey level."""
    for position in range(4):
        done = augment(moving(coarse), [0, 7, position])
        assert done.previous.shape == done.image.shape and done.flow.shape[1:] == augment.size
        assert disagreement(done) < 2 * GREY_LEVEL
        for axis in (0, 1):
            turned = done.flow.clone()
            turned[axis] *= -1
            assert disagreement(done._replace(flow=turned)) > 10 * GREY_LEVEL


FULL = Augment(
    (30, 45), (0.5, 0.5, 0.5, 0.2), flip=0.5, scale=(0.5, 1.5), grayscale=0.3, blur=(0.1, 2.0)
)


@pytest.mark.parametrize("position", range(8))
def test_both_frames_get_the_same_window_and_colours(position):
    still = moving()._replace(previous=moving().image)
    done = FULL(still, [0, 7, position])
    assert torch.equal(done.image, done.previous)


@pytest.mark.parametrize("position", range(8))
def test_what_else_is_read_changes_neither_image_nor_label(position):
    sample, entropy = moving(2), [0, 7, position]
    alone, together = FULL(Sample(*sample[:2]), entropy), FULL(sample, entropy)
    assert torch.equal(alone.image, together.image) and torch.equal(alone.label, together.label)
    assert alone.previous is None and alone.flow is None


def test_where_a_scene_ends_the_flow_leads_out_of_any_picture():
    done = Augment((HEIGHT, WIDTH), scale=(0.5, 0.5), flip=1.0)(moving(), [0])
    ends = done.label == 255
    assert ends.float().mean() == 0.75
    assert (done.flow[:, ends] == NOWHERE).all() and (done.flow[:, ~ends].abs() < WIDTH).all()
    assert (done.previous[:, ends] == 0).all() and not warped(done)[1][ends].any()
