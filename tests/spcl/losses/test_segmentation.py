import pytest
import torch
import torch.nn.functional as F

from spcl.losses.segmentation import cross_entropy, upsample


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
