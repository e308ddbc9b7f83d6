import torch

from spcl.data.mixing import VALUES, classmix, paste


def draws_of(first: dict[int, float], images: int = 1) -> torch.Tensor:
    draws = torch.full((images, VALUES), 0.9)
    for value, draw in first.items():
        draws[:, value] = draw
    return draws


def test_the_hand_checked_paste():
    """Class 0 is pasted: labels [0, 1] of the source over [1, 1], weights [1, q]."""
    source, pseudo = torch.tensor([[[0, 1]]], dtype=torch.uint8), torch.ones(1, 1, 2).byte()
    mask = classmix(source, draws_of({0: 0.1}))
    assert paste(mask, source, pseudo).tolist() == [[[0, 1]]]
    assert paste(mask, torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.5)).tolist() == [[[1, 0.5]]]
    image = paste(mask, torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
    assert image[0, :, 0].tolist() == [[1, 0]] * 3


def slow_classmix(label, draws, over_batch):
    """By sets and loops."""
    masks = []
    for one, draw in zip(label, draws, strict=True):
        values = set((label if over_batch else one).flatten().tolist())
        values -= set() if over_batch else {255}
        chosen = sorted(values, key=lambda v: draw[v].item())[: (len(values) + 1) // 2]
        masks.append(
            sum(one == v for v in chosen).bool() if chosen else torch.zeros_like(one).bool()
        )
    return torch.stack(masks)


def test_half_of_the_classes_rounded_up_as_loops_say():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 6, (5, 8, 9), generator=generator).byte()
    label[0] = 255  # nothing to paste
    label[1] = 3  # one class: all of it
    label[2][label[2] == 2] = 255
    draws = torch.rand(5, VALUES, generator=generator)
    for over_batch in (False, True):
        mask = classmix(label, draws, over_batch=over_batch)
        assert torch.equal(mask, slow_classmix(label, draws, over_batch))
    mask = classmix(label, draws)
    assert not mask[0].any() and mask[1].all() and not mask[label == 255].any()


def test_the_authors_choice_is_among_the_whole_batch_and_may_paste_void():
    label = torch.tensor([[[0, 255]], [[1, 1]]], dtype=torch.uint8)
    mask = classmix(label, draws_of({255: 0.1, 1: 0.2}, 2), over_batch=True)  # two of three
    assert mask.tolist() == [[[False, True]], [[True, True]]]
