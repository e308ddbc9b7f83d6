import torch

from spcl.memory.confidence import ClassConfidence, confidence_sums


def test_sums_are_those_of_a_loop_over_pixels():
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    logits[:, 2] = -9  # never predicted
    sums, counts = torch.zeros(4).double(), torch.zeros(4).double()
    for pixel in logits.permute(0, 2, 3, 1).reshape(-1, 4).double().softmax(1):
        sums[pixel.argmax()] += pixel.max()
        counts[pixel.argmax()] += 1
    torch.testing.assert_close(confidence_sums(logits), (sums, counts))


def test_an_absent_class_keeps_its_confidence():
    bank = ClassConfidence(2, momentum=0.9)
    bank.update(torch.tensor([4.0, 0.0]), torch.tensor([8.0, 0.0]))
    torch.testing.assert_close(bank.mean, torch.tensor([0.05, 0.0]))
    bank.update(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 3.0]))
    torch.testing.assert_close(bank.mean, torch.tensor([0.05, 0.1]))
