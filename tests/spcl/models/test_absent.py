"""A network of 19 outputs with three absent classes is the network of the other 16."""

import pytest
import torch
from toys import batch_of

from spcl.configuration.config import load
from spcl.engine.stages import plan
from spcl.errors import ConfigError
from spcl.losses.segmentation import cross_entropy, upsample
from spcl.methods import METHODS
from spcl.models.segmentor import build_segmentor
from spcl.randomness import Step

ABSENT = (9, 14, 16)
KEPT = [k for k in range(19) if k not in ABSENT]
TO_16 = torch.full((256,), 255, dtype=torch.uint8)
TO_16[KEPT] = torch.arange(16, dtype=torch.uint8)


def network(absent=ABSENT, num_classes=19):
    torch.manual_seed(0)
    return build_segmentor("tiny", num_classes, norm="frozen", absent=absent)


def reference():
    """Sixteen outputs and no masking: the rows that are left."""
    wide, narrow = network(), network((), 16)
    state = wide.state_dict()
    for name in ("head.weight", "head.bias"):
        state[name] = state[name][KEPT]
    narrow.load_state_dict(state)
    return narrow


def images(batch=2, seed=1):
    torch.manual_seed(seed)
    return torch.randn(batch, 3, 32, 48)


def labels(seed=2):
    torch.manual_seed(seed)
    return torch.tensor([*KEPT, 255], dtype=torch.uint8)[torch.randint(17, (2, 32, 48))]


def methods(name):
    """The method on both networks, in double precision, and in the same state."""
    options = {"discriminator_width": 4} if name in ("adversarial", "asanet") else {}
    if name == "spcl":
        options = {"temperature": 0.1}
    wide, narrow = (
        METHODS[name](segmentor, METHODS[name].Config(**options)).double().train()
        for segmentor in (network(), reference())
    )
    if name in ("adversarial", "asanet"):
        state = wide.discriminator.state_dict()
        first = state["layers.0.weight"].unflatten(1, (-1, 19))  # asanet: of each neighbour
        state["layers.0.weight"] = first[:, :, KEPT].flatten(1, 2)
        narrow.discriminator.load_state_dict(state)
    if name == "spcl":
        mean = torch.randn(19, wide.segmentor.feature_dimension, dtype=torch.float64)
        seen = torch.tensor([k not in ABSENT for k in range(19)])
        wide.prototypes.load(mean, seen)
        narrow.prototypes.load(mean[KEPT], seen[KEPT])
    return wide, narrow


def losses(method, to_label):
    batch = batch_of(
        source=(images().double(), to_label(labels())),
        target=(images(seed=3).double(), to_label(labels(seed=4))),
    )
    terms = method(batch, Step(0))
    sum(term.sum / term.count * term.weight for term in terms.values()).backward()
    return {name: (float(term.sum.detach()), int(term.count)) for name, term in terms.items()}


@pytest.mark.parametrize(
    "name", ["source_only", "adversarial", "spcl", "asanet_asc", "asanet", "self_training"]
)
def test_losses_and_gradients_are_those_of_sixteen_outputs(name):
    wide, narrow = methods(name)
    found = losses(wide, lambda label: label)
    expected = losses(narrow, lambda label: TO_16[label.long()])
    assert found == {k: (pytest.approx(v, rel=1e-12), n) for k, (v, n) in expected.items()}
    gradients = {n: p.grad for n, p in wide.named_parameters()}
    for name, parameter in narrow.named_parameters():
        gradient = gradients[name]
        if name in ("segmentor.head.weight", "segmentor.head.bias"):
            assert (gradient[list(ABSENT)] == 0).all()
            gradient = gradient[KEPT]
        if name == "critic.layers.0.weight":
            gradient = gradient.unflatten(1, (-1, 19))[:, :, KEPT].flatten(1, 2)
        assert torch.allclose(gradient, parameter.grad, rtol=1e-9, atol=1e-15), name
        assert parameter.grad.abs().sum() > 0


def test_they_are_never_predicted_and_have_no_probability():
    segmentor = network()
    with torch.no_grad():
        segmentor.head.bias[list(ABSENT)] = 100.0  # they would win everywhere
        logits = segmentor(images(), "source").logits
    probabilities = upsample(logits, (37, 61)).softmax(1)
    assert (probabilities[:, list(ABSENT)] == 0).all()
    assert torch.isfinite(logits).all() and torch.isfinite(probabilities).all()
    assert set(logits.argmax(1).unique().tolist()) <= set(KEPT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_them_at_exactly_nothing(dtype):
    segmentor = network()
    with torch.autocast("cpu", dtype):
        logits = segmentor(images(), "source").logits
    assert logits.dtype == dtype
    assert (logits.softmax(1)[:, list(ABSENT)] == 0).all()
    loss, count = cross_entropy(logits, labels())
    (loss / count).backward()
    assert torch.isfinite(loss)
    for parameter in (segmentor.head.weight, segmentor.head.bias):
        assert (parameter.grad[list(ABSENT)] == 0).all() and parameter.grad[KEPT].abs().sum() > 0


def test_compiled_it_is_the_same():
    segmentor = network().eval()
    compiled = torch.compile(segmentor, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = segmentor(images(), "source").logits
        assert torch.allclose(compiled(images(), "source").logits, expected, atol=1e-6)


def test_a_checkpoint_does_not_know_of_them():
    assert network().state_dict().keys() == network(()).state_dict().keys()


def test_they_move_with_the_network():
    segmentor = network().to("meta")
    assert segmentor(images().to("meta"), "source").logits.device.type == "meta"


@pytest.mark.parametrize("absent", [(19,), tuple(range(19))])
def test_absent_classes_must_be_some_of_those_there_are(absent):
    with pytest.raises(ConfigError, match=r"some, not all, of the trainIds 0\.\.18"):
        network(absent)


def test_they_enter_the_keys_of_every_stage_where_there_are_any():
    def keys(*overrides):
        data = {"source": "s", "target": "t", "evaluation": "e"}
        return [s.key for s in plan(load("gta5", "spcl", None, overrides), data)]

    assert keys("model.absent=[]") == keys()
    both = zip(keys(), keys("model.absent=[9,14,16]"), strict=True)
    assert all(before != after for before, after in both)
