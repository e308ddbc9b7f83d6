import numpy as np
import pytest

from spcl.data.labels import CLASS_NAMES
from spcl.errors import ConfigError
from spcl.scoring.metrics import confusion_matrix
from spcl.scoring.protocols import PROTOCOLS, absence_notes, check_classes, score

ABSENT = (9, 14, 16)
THIN = (3, 4, 5)


@pytest.fixture(scope="module")
def pixels():
    """Truth and prediction with every class, void, and errors in both directions."""
    rng = np.random.default_rng(0)
    truth = rng.choice([*range(19), 255], (60, 80)).astype(np.uint8)
    right = rng.random(truth.shape) < 0.6
    prediction = np.where(right & (truth != 255), truth, rng.integers(0, 19, truth.shape))
    return truth, prediction.astype(np.uint8)


def slow_iou(truth, prediction, k):
    """Counted pixel by pixel; None where the class occurs in neither."""
    both = either = 0
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if t != 255:
            both += t == k and p == k
            either += t == k or p == k
    return both / either if either else None


def slow_mean(truth, prediction, classes):
    values = [slow_iou(truth, prediction, k) for k in classes]
    return sum(values) / len(values)


def means(pixels, protocol):
    found = score(confusion_matrix(*pixels, 19), protocol)["means"]
    return {name: mean["value"] for name, mean in found.items()}


SYN16 = [k for k in range(19) if k not in ABSENT]
SYN13 = [k for k in SYN16 if k not in THIN]


def test_the_19_classes_and_the_tail_are_those_of_the_slow_count(pixels):
    got = means(pixels, "cityscapes19")
    tail = [3, 4, 6, 7, 9, 12, 14, 15, 16, 17, 18]
    assert got["mIoU"] == pytest.approx(slow_mean(*pixels, range(19)), abs=1e-12)
    assert got["mIoU-tail"] == pytest.approx(slow_mean(*pixels, tail), abs=1e-12)


def test_the_full_reduction_scores_all_pixels_and_averages_sixteen_and_thirteen(pixels):
    full, thirteen = means(pixels, "syn16_full"), means(pixels, "syn13")
    assert full["mIoU"] == pytest.approx(slow_mean(*pixels, SYN16), abs=1e-12)
    assert full["mIoU-13"] == pytest.approx(slow_mean(*pixels, SYN13), abs=1e-12)
    assert (thirteen["mIoU"], thirteen["mIoU-16"]) == (full["mIoU-13"], full["mIoU"])


def test_the_masked_reduction_makes_pixels_of_absent_classes_void_and_keeps_the_misses(pixels):
    truth, prediction = pixels
    masked = np.where(np.isin(truth, ABSENT), 255, truth)
    got = means(pixels, "syn16_masked")
    assert got["mIoU"] == pytest.approx(slow_mean(masked, prediction, SYN16), abs=1e-12)
    assert got["mIoU-13"] == pytest.approx(slow_mean(masked, prediction, SYN13), abs=1e-12)
    assert got["mIoU"] > means(pixels, "syn16_full")["mIoU"]
    misses = score(confusion_matrix(np.full(10, 13), np.full(10, 14), 19), "syn16_masked")
    assert misses["iou"][13] == 0.0 and misses["iou"][14] is None


def test_own_classes_of_any_number_are_averaged_where_they_occur():
    truth, prediction = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    got = score(confusion_matrix(truth, prediction, 3), "all")
    assert got["means"] == {"mIoU": {"value": (1 / 2 + 2 / 3) / 2, "classes": 2}}
    assert got["iou"][2] is None


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "all"])
def test_a_protocol_of_cityscapes_is_refused_on_other_classes(protocol):
    check_classes(protocol, CLASS_NAMES, "x/val")
    check_classes("all", ["tool"], "x/val")
    for other in (["tool", "tissue"], [*CLASS_NAMES[::-1]]):
        with pytest.raises(ConfigError, match=f"{protocol} is made for the 19 .* x/val .* `all`"):
            check_classes(protocol, other, "x/val")


def test_the_note_names_what_the_source_lacks_and_what_to_report(pixels):
    confusion = confusion_matrix(*pixels, 19)
    (note,) = absence_notes(confusion, "synthia", ABSENT, CLASS_NAMES)
    values = [100 * slow_mean(*pixels, classes) for classes in (range(19), SYN16, SYN13)]
    assert note == (
        "synthia has no terrain, truck, train. mIoU over 19 = {:.1f}; "
        "report syn16_full = {:.1f}, syn13 = {:.1f}.".format(*values)
    )


def test_there_is_no_note_where_the_source_has_every_class(pixels):
    assert absence_notes(confusion_matrix(*pixels, 19), "gta5", [], CLASS_NAMES) == []


def test_the_note_on_own_classes_averages_those_the_source_has():
    confusion = np.array([[3, 1, 0], [0, 2, 0], [2, 0, 0]])
    (note,) = absence_notes(confusion, "mine", [2], ["a", "b", "c"])
    own = (3 / 6 + 2 / 3) / 2
    expected = f"mine has no c. mIoU over 3 = {100 * 2 * own / 3:.1f}; over the 2 that it has ="
    assert note == f"{expected} {100 * own:.1f}."
