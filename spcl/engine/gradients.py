"""How a step's terms and their gradient come about: at once, or with the network run in parts.

Both give the same terms, the same gradient and the same state; parts need less memory and take one
more forward.  A method knows nothing of them: it calls the network by `Method.segment`.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spcl import distributed
from spcl.configuration.sections import Train
from spcl.data.batch import Batch
from spcl.errors import ConfigError
from spcl.methods.base import Method, Term
from spcl.models.normalization import BATCH_NORMS
from spcl.models.segmentor import Output
from spcl.randomness import Step

BUCKET = 25 * 2**20  # bytes of gradients in one all-reduce, as in DDP

Autocast = Callable[[], contextlib.AbstractContextManager]


class AtOnce:
    """One forward and one backward for the whole share of a rank, in one DDP wrapper."""

    def __init__(self, method: Method, autocast: Autocast = contextlib.nullcontext):
        self.wrapped, self.autocast = wrap(method), autocast

    def terms(self, batch: Batch, step: Step) -> dict[str, Term]:
        with self.autocast():
            return self.wrapped(batch, step)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss, its mean over ranks, to that of the parameters."""
        loss.backward()


class _Call(NamedTuple):
    """One run of the network over all images of a stream, made in parts."""

    image: Tensor
    domain: str
    keys: Tensor
    leaves: tuple[Tensor, ...]  # the different tensors of the output, over all images


class InParts:
    """At most `size` images in a forward of the network, and the gradient that all at once give.

    Three passes: (a) the network runs part by part and keeps nothing for a backward; (b) terms and
    state are computed once, from all outputs together, and differentiated down to these outputs
    and whatever else was used (discriminators, heads); (c) the network runs once more, part by
    part, each followed by its backward from the gradient at its outputs.  So no method, and no
    term that looks at the whole batch, is an approximation, for the price of one more forward.
    Pass (c) makes the outputs of pass (a) again since no image looks at its neighbours in the
    batch (hence no batch statistics) and random layers draw by image: `spcl.randomness`.

    Gradients of ranks are averaged at the end: DDP, which averages during one backward, can not
    know which one is the last here.
    """

    def __init__(self, method: Method, size: int, autocast: Autocast = contextlib.nullcontext):
        refuse_batch_statistics(method.segmentor)
        self.method, self.size, self.autocast = method, size, autocast
        self.calls: list[_Call] = []
        for tensor in (*method.parameters(), *method.buffers()):
            distributed.broadcast(tensor.detach())  # as DDP does when it wraps

    def terms(self, batch: Batch, step: Step) -> dict[str, Term]:
        with self.autocast(), self.method.running_by(self._run):
            return self.method(batch, step)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss, its mean over ranks, to that of the parameters."""
        loss.backward()
        while self.calls:
            image, domain, keys, leaves = self.calls.pop(0)
            gradients = [leaf.grad for leaf in leaves]
            del leaves  # the outputs of pass (a) themselves are needed no more
            if any(gradient is not None for gradient in gradients):
                self._again(image, domain, keys, gradients)
        average(p for p in self.method.parameters() if p.requires_grad)

    def _run(self, image: Tensor, domain: str, keys: Tensor) -> Output:
        """Pass (a), in place of the network."""
        if image.requires_grad:
            raise ConfigError(
                "with train.micro_batch the images that a method segments must be free of "
                "gradients, but these depend on parameters; set train.micro_batch=0"
            )
        with torch.no_grad():
            parts = [self.method.segmentor(*part) for part in self._parts(image, domain, keys)]
        # The whole batch's tensors, each once: features may be one of the levels.
        whole: dict[int, Tensor] = {}
        for tensors in zip(*map(_tensors, parts), strict=True):
            if id(tensors[0]) not in whole:
                leaf = torch.cat(tensors)
                whole[id(tensors[0])] = leaf.requires_grad_(torch.is_grad_enabled())
        if torch.is_grad_enabled():
            self.calls.append(_Call(image, domain, keys, tuple(whole.values())))
        features, logits, *levels = (whole[id(tensor)] for tensor in _tensors(parts[0]))
        return Output(features, logits, tuple(levels))

    def _again(
        self, image: Tensor, domain: str, keys: Tensor, gradients: list[Tensor | None]
    ) -> None:
        """Pass (c) of one call."""
        start = 0
        for part in self._parts(image, domain, keys):
            with self.autocast():
                output = self.method.segmentor(*part)
            made = {id(tensor): tensor for tensor in _tensors(output)}.values()
            stop = start + len(part[0])
            pairs = [
                (tensor, gradient[start:stop])
                for tensor, gradient in zip(made, gradients, strict=True)
                if gradient is not None and tensor.requires_grad
            ]
            if pairs:
                tensors, given = zip(*pairs, strict=True)
                torch.autograd.backward(tensors, given)
            start = stop

    def _parts(
        self, image: Tensor, domain: str, keys: Tensor
    ) -> Iterator[tuple[Tensor, str, Tensor]]:
        for images, own in zip(image.split(self.size), keys.split(self.size), strict=True):
            yield images, domain, own


def _tensors(output: Output) -> tuple[Tensor, ...]:
    return output.features, output.logits, *output.levels


def runner(method: Method, images: int, train: Train, device: str = "cpu") -> AtOnce | InParts:
    """What computes a method's steps on this rank, whose share is `images` of each stream.

    device  its kind, "cpu" or "cuda", on which `train.dtype` is applied
    """
    parts = 0 < train.micro_batch < images
    autocast = partial(
        torch.autocast,
        device,
        torch.bfloat16,
        enabled=train.dtype == "bfloat16",
        # Older torch would find in pass (b) a weight that pass (a) has cast without a gradient.
        cache_enabled=not parts,
    )
    return InParts(method, train.micro_batch, autocast) if parts else AtOnce(method, autocast)


def wrap(method: Method) -> nn.Module:
    """One DDP wrapper around the whole method; the method itself in a single process."""
    if distributed.world_size() == 1:
        return method
    # Buffers are synced once, here, and never again: they are equal by construction.
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if newer else "broadcast_buffers"
    options: dict[str, Any] = {sync: False, "gradient_as_bucket_view": True}
    if next(method.parameters()).is_cuda:
        options["device_ids"] = [torch.cuda.current_device()]
    return DistributedDataParallel(method, **options)


def average(parameters: Iterable[nn.Parameter]) -> None:
    """Make every gradient its mean over ranks, which all call it; a bucket is one all-reduce."""
    world = distributed.world_size()
    if world == 1:
        return
    bucket: list[Tensor] = []
    for gradient in (_gradient(p) for p in parameters):
        full = bucket and sum(g.nbytes for g in bucket) + gradient.nbytes > BUCKET
        if full or (bucket and bucket[0].dtype != gradient.dtype):
            _average(bucket, world)
            bucket = []
        bucket.append(gradient)
    if bucket:
        _average(bucket, world)


def _average(gradients: list[Tensor], world: int) -> None:
    flat = distributed.all_reduce(torch.cat([g.flatten() for g in gradients]) / world)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError(
            f"a parameter of shape {tuple(parameter.shape)} is trained, but no term of this step "
            "depends on it; freeze it, or leave it out of the method"
        )
    return parameter.grad


def refuse_batch_statistics(network: nn.Module) -> None:
    """ConfigError on a layer that normalises an image by its neighbours in the batch."""
    for name, layer in network.named_modules():
        if isinstance(layer, BATCH_NORMS):
            raise ConfigError(
                "train.micro_batch needs a network that treats each image by itself, but its "
                f"layer {name} ({type(layer).__name__}) normalises by statistics of the batch; "
                "choose model.norm=frozen, or train.micro_batch=0"
            )
