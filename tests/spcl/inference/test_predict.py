import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spcl.configuration.config import load
from spcl.configuration.sections import Evaluation
from spcl.data.transforms import normalize, resize_image
from spcl.errors import ConfigError
from spcl.inference import reader
from spcl.inference.predict import count_pixels, predict_labels, view_sizes, window_starts
from spcl.losses.segmentation import upsample

SIZE = (24, 40)
SHAPE = (48, 80)  # of the labels
CLASSES = 5


@pytest.fixture(scope="module")
def image():
    """A smooth picture, so that no two classes tie."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 3, 6, 10), generator=rng)
    return (F.interpolate(coarse, SHAPE, mode="bicubic")[0].clamp(0, 1) * 255).byte()


def weights(*size):
    return torch.randn((CLASSES, 3, *size), generator=torch.Generator().manual_seed(1))


def pointwise(view):
    """A network that looks at single pixels: mirrored input, mirrored output."""
    return F.conv2d(view, weights(1, 1))


def lopsided(view):
    """A network that sees further to the left than to the right, at half the resolution."""
    return F.conv2d(F.pad(view, (4, 0, 1, 1)), weights(3, 5), stride=2)


def predict(network, image, **settings):
    settings = Evaluation(size=SIZE, **settings)
    views = [normalize(reader.view([image], size)) for size in view_sizes(settings)]
    return predict_labels(network, views, [SHAPE], settings)[0]


def view(image, scale=1.0):
    size = (round(SIZE[0] * scale), round(SIZE[1] * scale))
    return normalize(resize_image(image, size))[None]


def probabilities(logits):
    return F.interpolate(logits, SHAPE, mode="bilinear", align_corners=True).softmax(1)


def test_by_default_the_upsampled_logits_decide(image):
    assert torch.equal(
        predict(lopsided, image), upsample(lopsided(view(image)), SHAPE)[0].argmax(0)
    )


def test_flipping_changes_nothing_for_a_network_that_mirrors(image):
    assert torch.equal(predict(pointwise, image, flip=True), predict(pointwise, image))


def test_a_flip_is_undone_before_the_mean(image):
    mirrored = lopsided(view(image).flip(-1)).flip(-1)
    mean = (probabilities(lopsided(view(image))) + probabilities(mirrored)) / 2
    got = predict(lopsided, image, flip=True)
    assert torch.equal(got, mean[0].argmax(0))
    assert not torch.equal(got, predict(lopsided, image))


def test_scales_are_averaged_as_probabilities_at_label_resolution(image):
    scales = (0.5, 1.0, 1.75)
    mean = sum(probabilities(lopsided(view(image, scale))) for scale in scales) / 3
    got = predict(lopsided, image, scales=scales)
    assert torch.equal(got, mean[0].argmax(0))
    assert not torch.equal(got, predict(lopsided, image))


@pytest.mark.parametrize("window", [SIZE, (500, 500), (24, 500)])
def test_a_window_of_the_whole_image_is_no_window(image, window):
    assert torch.equal(predict(lopsided, image, window=window), predict(lopsided, image))


@pytest.mark.parametrize(("window", "stride"), [((10, 16), (0, 0)), ((11, 13), (7, 5))])
def test_windows_are_averaged_by_how_often_they_cover_a_pixel(image, window, stride):
    whole = view(image)
    total, count = np.zeros((CLASSES, *SIZE)), np.zeros(SIZE)
    steps = [s or w // 2 for s, w in zip(stride, window, strict=True)]
    corners = [
        (min(top, SIZE[0] - window[0]), min(left, SIZE[1] - window[1]))
        for top in range(0, SIZE[0] - window[0] + steps[0], steps[0])
        for left in range(0, SIZE[1] - window[1] + steps[1], steps[1])
    ]
    for top, left in corners:
        part = whole[:, :, top : top + window[0], left : left + window[1]]
        each = F.interpolate(lopsided(part), window, mode="bilinear", align_corners=True).softmax(1)
        for y in range(window[0]):
            for x in range(window[1]):
                total[:, top + y, left + x] += each[0, :, y, x].numpy()
                count[top + y, left + x] += 1
    assert count.min() >= 1 and count.max() >= 4
    mean = upsample(torch.from_numpy(total / count)[None].log(), SHAPE)[0]
    got = predict(lopsided, image, window=window, stride=stride)
    top_two = mean.topk(2, 0).values
    clear = top_two[0] - top_two[1] > 1e-4  # where single precision cannot tip the balance
    assert clear.float().mean() > 0.99 and torch.equal(got[clear], mean.argmax(0)[clear].byte())


def test_windows_reach_both_ends_and_leave_no_gap():
    assert list(window_starts(10, 4, 3)) == [0, 3, 6]
    assert list(window_starts(11, 4, 3)) == [0, 3, 6, 7]
    assert list(window_starts(4, 4, 2)) == [0]


@pytest.mark.parametrize("settings", [{}, {"flip": True, "scales": (0.5, 1.0)}])
def test_images_together_get_the_labels_of_each_alone_at_shapes_of_their_own(image, settings):
    settings = Evaluation(size=SIZE, **settings)
    images = [image, image.flip(-1), image.flip(1), image.transpose(1, 2)]
    shapes = [SHAPE, SHAPE, (30, 31), SHAPE]

    def labels(images, shapes):
        views = [normalize(reader.view(images, size)) for size in view_sizes(settings)]
        return predict_labels(lopsided, views, shapes, settings)

    together = labels(images, shapes)
    for one, shape, got in zip(images, shapes, together, strict=True):
        assert torch.equal(got, labels([one], [shape])[0])


def test_pixels_are_counted_image_by_image_and_void_is_left_out():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, CLASSES, (2, 3, 7, 9), np.uint8)
    truth[0, :2], truth[1] = 255, 255
    want = np.zeros((3, CLASSES, CLASSES), int)
    for n, *place in np.argwhere(truth != 255):
        want[n, truth[n, *place], guess[n, *place]] += 1
    for kind in (torch.uint8, torch.int64):
        pair = torch.from_numpy(truth).to(kind), torch.from_numpy(guess).to(kind)
        got = count_pixels(*pair, CLASSES)
        assert got.dtype == torch.int64 and np.array_equal(got, want)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.scales=[]", "evaluation.scales must name at least one factor"),
        ("evaluation.scales=[0.0]", "evaluation.scales must be at least 0.1, got 0.0"),
        ("evaluation.window=[0,64]", r"must be \[height, width\]"),
        ("evaluation.stride=[9,9]", "must not pass the window"),
        ("evaluation.flip=1", "evaluation.flip must be true or false"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load("streets", "spcl", None, [override])
