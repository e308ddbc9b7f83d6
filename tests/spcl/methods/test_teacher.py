import copy

import pytest
import torch
from toys import segmentor

from spcl import distributed
from spcl.methods.teacher import check_equal, digest, follow, momentum_at, new_teacher, teach


def test_the_momentum_has_the_published_values():
    found = [momentum_at(t, 0.999) for t in (0, 1, 2, 9, 99, 999, 5000)]
    assert found == pytest.approx([0, 0.5, 2 / 3, 0.9, 0.99, 0.999, 0.999])


def other_student():
    student = segmentor("domain", seed=1)
    for buffer in student.buffers():
        buffer.copy_(torch.rand(buffer.shape).mul(9).to(buffer.dtype))
    return student


def test_a_teacher_is_the_mean_of_parameters_and_statistics_and_counts_are_copied():
    teacher, student = new_teacher(segmentor("domain")), other_student()
    before = copy.deepcopy(teacher.state_dict())
    follow(teacher, student, 0.9, buffers="mean")
    kinds = set()
    for name, its in student.state_dict().items():
        kinds.add(its.is_floating_point())
        want = 0.9 * before[name] + 0.1 * its if its.is_floating_point() else its
        torch.testing.assert_close(teacher.state_dict()[name], want)
    assert kinds == {True, False}
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_at_first_it_is_a_copy_and_its_own_statistics_stay():
    teacher, student = new_teacher(segmentor("domain")), other_student()
    buffers = copy.deepcopy(dict(teacher.named_buffers()))
    follow(teacher, student, momentum_at(0, 0.999), buffers="own")
    for one, other in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(value, buffers[name]) for name, value in teacher.named_buffers())


def test_its_labels_have_no_gradient_and_may_enter_a_loss():
    teacher, student = new_teacher(segmentor("domain")), segmentor("domain")
    lesson = teach(teacher, torch.randn(2, 3, 32, 64))
    assert lesson.label.dtype == torch.uint8 and lesson.label.shape == (2, 32, 64)
    assert 1 / 19 < float(lesson.confidence.min()) and not lesson.confidence.requires_grad
    # An inference tensor could not be kept for a backward.
    (student(torch.randn(2, 3, 32, 64), "target").logits * lesson.output.logits).sum().backward()


def test_a_digest_tells_one_bit():
    network = segmentor("domain")
    before = int(digest(network))
    assert before == int(digest(copy.deepcopy(network)))
    parameter = next(network.parameters())
    with torch.no_grad():
        parameter.view(torch.int32).view(-1)[3] ^= 1
    assert int(digest(network)) != before


def test_ranks_whose_teachers_differ_stop(monkeypatch):
    network = segmentor("domain")
    own = int(digest(network))
    monkeypatch.setattr(distributed, "gather", lambda value: [value, own])
    check_equal(network, "the teacher", 7)
    with torch.no_grad():
        network.head.bias[0] += 1e-6
    with pytest.raises(RuntimeError, match="the teacher must be the same on all ranks, but after"):
        check_equal(network, "the teacher", 7)
