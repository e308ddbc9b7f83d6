import pytest
import torch
import torch.nn.functional as F

from spcl.losses.segmentation import cross_entropy, most_likely, probability, upsample


def example(size=(6, 8), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, dtype=dtype, generator=generator, requires_grad=True)
    labels = torch.randint(0, 5, (2, *size), generator=generator)
    labels[0, :2] = 255
    return logits, labels


def test_sum_and_count_are_those_of_the_valid_pixels():
    logits, labels = example()
    large = F.interpolate(logits, (6, 8), mode="bilinear", align_corners=True)
    expected = sum(
        large[b, :, y, x].logsumexp(0) - large[b, labels[b, y, x], y, x]
        for b, y, x in (labels != 255).nonzero().tolist()
    )
    total, count = cross_entropy(logits, labels)
    assert count == (labels != 255).sum() == 80
    assert total.item() == pytest.approx(expected.item(), abs=1e-9)


def test_gradient_is_that_of_the_value():
    logits, labels = example()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels)[0], logits)


def test_ignored_pixels_give_zero_with_an_exact_zero_gradient():
    logits, labels = example()
    total, count = cross_entropy(logits, torch.full_like(labels, 255))
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_void_image_changes_nothing():
    logits, labels = example()
    more = torch.cat([logits, torch.randn(1, 5, 3, 4)])
    void = torch.cat([labels, torch.full((1, 6, 8), 255)])
    assert [x.item() for x in cross_entropy(more, void)] == pytest.approx(
        [x.item() for x in cross_entropy(logits, labels)]
    )


def test_order_of_images_pixels_and_classes_does_not_matter():
    logits, labels = example(size=(3, 4))
    images, pixels, classes = torch.tensor([1, 0]), torch.randperm(12), torch.randperm(5)
    shuffled = logits[images][:, classes].flatten(2)[:, :, pixels].view_as(logits)
    renamed = torch.full((256,), 255)
    renamed[classes] = torch.arange(5)  # class k is now at position renamed[k]
    new = renamed[labels[images]].flatten(1)[:, pixels].view_as(labels)
    before, after = cross_entropy(logits, labels)[0], cross_entropy(shuffled, new)[0]
    assert after.item() == pytest.approx(before.item(), abs=1e-9)


def test_bytes_and_integers_are_the_same_labels():
    logits, labels = example()
    assert torch.equal(cross_entropy(logits, labels.byte())[0], cross_entropy(logits, labels)[0])


def test_half_precision_is_raised_to_float32():
    logits, labels = example(dtype=torch.float32)
    half = cross_entropy(logits.bfloat16(), labels)[0]
    assert half.dtype == upsample(logits.bfloat16(), (9, 9)).dtype == torch.float32
    assert half.item() == pytest.approx(cross_entropy(logits, labels)[0].item(), rel=1e-2)


def test_upsampling_keeps_corners_and_leaves_maps_of_the_right_size_alone():
    logits, _ = example()
    large = upsample(logits, (7, 9))
    assert torch.equal(large[..., [0, -1], :][..., [0, -1]], logits[..., [0, -1], :][..., [0, -1]])
    assert upsample(logits, (3, 4)) is logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(37, 50), (9, 13)])
def test_the_most_likely_class_is_that_of_the_upsampled_logits(dtype, layout, size):
    logits = torch.randn((3, 19, 9, 13), generator=torch.Generator().manual_seed(0))
    logits = logits.to(dtype).to(memory_format=layout)
    before = logits.clone()
    whole = upsample(logits.contiguous(), size)
    labels, best = most_likely(logits, size)
    assert labels.dtype == torch.uint8 and torch.equal(labels.long(), whole.argmax(1))
    assert torch.allclose(best, whole.amax(1), rtol=1e-6, atol=1e-6)
    softmax = whole.softmax(1).amax(1)
    assert torch.allclose(probability(logits, best), softmax, rtol=2e-6, atol=0)
    assert best.dtype == whole.dtype and torch.equal(logits, before)


def test_of_equal_logits_the_first_class_wins_and_nothing_finite_beats_what_is_not_a_number():
    logits = torch.zeros(1, 3, 1, 4)
    logits[0, :, 0] = torch.tensor(
        [[1.0, 0, torch.nan, 0], [1, 2, torch.nan, 0], [0, 2, torch.nan, 0]]
    )
    labels, best = most_likely(logits, (1, 4))
    assert labels.tolist() == [[[0, 1, 0, 0]]] == logits.max(1).indices.tolist()
    assert torch.equal(labels.long(), logits.argmax(1))
    assert best.isnan().tolist() == [[[False, False, True, False]]]


def test_no_picture_of_all_classes_is_made(monkeypatch):
    """19 at 1024x2048 are 160 MB, in and out of memory four times."""
    made = []
    plain = F.interpolate

    def interpolate(*args, **kwargs):
        made.append(plain(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(F, "interpolate", interpolate)
    logits = torch.randn(2, 19, 3, 4)
    probability(logits, most_likely(logits, (12, 16))[1])
    assert {tuple(one.shape) for one in made} == {(2, 1, 12, 16)}
