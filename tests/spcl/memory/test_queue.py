"""The queue of steps."""

import torch

from spcl.memory.queue import StepQueue


def rows(step: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((count, 2), float(step)), torch.full((count,), step, dtype=torch.int64)


def lengths(queue: StepQueue) -> int:
    return int((queue.labels != 255).any(1).sum())


def test_it_holds_the_last_three_steps_from_new_to_old():
    queue, found = StepQueue(3, 4, 2), []
    for step in range(1, 6):
        queue.push(*rows(step))
        found.append(lengths(queue))
    assert found == [1, 2, 3, 3, 3]
    assert queue.labels[:, 0].tolist() == [5, 4, 3] == queue.rows[:, 0, 0].tolist()


def test_a_step_with_fewer_rows_leaves_empty_places():
    queue = StepQueue(2, 4, 2)
    queue.push(*rows(1))
    queue.push(*rows(2, count=3))
    kept, labels = queue.all()
    assert labels.tolist() == [2, 2, 2, 255, 1, 1, 1, 1] and kept[3].tolist() == [0, 0]
    queue.push(*rows(3))
    assert labels.tolist()[0] == 2  # what was read is as it was


def test_its_state_is_all_of_it_and_without_a_gradient():
    queue, other = StepQueue(3, 4, 2), StepQueue(3, 4, 2)
    values, labels = rows(1)
    queue.push(values.requires_grad_(), labels)
    other.load_state_dict(queue.state_dict())
    queue.push(*rows(2))
    other.push(*rows(2))
    assert not queue.rows.requires_grad
    for name, value in queue.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
