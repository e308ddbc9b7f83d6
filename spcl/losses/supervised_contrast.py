"""Contrast of labelled pixels with each other: which are sampled, and the loss.

Source: PiPa, arXiv:2211.07609, its pixel term.  What is sampled has a fixed size, of which some may
be empty, so that nothing is read on the host.
Letters: B images, P pixels of an image's grid, K classes, D embedding dimension, S sampled pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl.data.labels import IGNORE_INDEX
from spcl.losses.directions import EPSILON
from spcl.precision import at_least_float32, without_autocast

DENOMINATORS = ("all", "pos_neg")
LEAST = -1e4  # a logit that leaves its row's sum as it is; finite, so that no gradient is NaN


def views_per_group(groups: Tensor, samples: int, most: int) -> Tensor:
    """() how many pixels each of () groups gets: `samples` in all, at most `most`, at least one.

    A group is a class in an image.
    """
    return (samples // groups.clamp(min=1)).clamp(1, most)


def pixels_of_kinds(labels: Tensor, right: Tensor, num_classes: int) -> Tensor:
    """(B, K, 2) int64: how many pixels of each class are predicted wrongly, and rightly.

    labels (B, P) trainIds, 255 counts nowhere;  right (B, P) bool
    """
    kinds = _kinds(labels, right, num_classes)
    counts = torch.zeros(len(labels), 2 * num_classes + 1, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(1, kinds, torch.ones_like(kinds))
    return counts[:, :-1].unflatten(1, (num_classes, 2))


def sample_pixels(
    labels: Tensor, right: Tensor, draws: Tensor, views: Tensor, more_than: int, slots: int
) -> tuple[Tensor, Tensor]:
    """Of each group with more than `more_than` pixels `views` of them, or all there are.

    One half of them is predicted wrongly ("hard"), the other rightly; where one half has too few,
    the other gives more.
    labels, right  as in `pixels_of_kinds`, whose K is that of `views`
    draws  (B, P) in [0, 1): in every half those with the smallest are taken
    views  (B, K) int64
    slots  S, which the caller has chosen large enough

    Returns indices (S,) of pixels, counted over all images, and which are meant (S,).
    """
    num_classes = views.shape[1]
    counts = pixels_of_kinds(labels, right, num_classes)
    hard, easy = counts.unbind(2)
    wanted = views.clamp(max=hard + easy) * (hard + easy > more_than)
    of_hard = torch.minimum(hard, torch.maximum(wanted // 2, wanted - easy))
    quotas = torch.stack([of_hard, wanted - of_hard], 2).flatten(1)  # (B, 2 K)
    quotas = F.pad(quotas, (0, 1))  # none of void

    kinds = _kinds(labels, right, num_classes)
    order = (kinds + draws.double()).argsort(1)  # by kind, and in it by draw: exact in float64
    ordered = kinds.gather(1, order)
    starts = F.pad(counts.flatten(1).cumsum(1), (1, 0))
    place = torch.arange(order.shape[1], device=order.device) - starts.gather(1, ordered)
    taken = (place < quotas.gather(1, ordered)).flatten()
    first = torch.arange(len(order), device=order.device)[:, None] * order.shape[1]
    front = (~taken).to(torch.uint8).argsort(stable=True)[:slots]  # those taken come first
    return (order + first).flatten()[front], taken[front]


def _kinds(labels: Tensor, right: Tensor, num_classes: int) -> Tensor:
    """(B, P) int64: twice the class, and one more where it is predicted; 2 K for void."""
    labels = labels.long()
    return torch.where(labels < num_classes, 2 * labels + right.long(), 2 * num_classes)


def at_pixels(levels: tuple[Tensor, ...], indices: Tensor, size: tuple[int, int]) -> Tensor:
    """(S, sum of C) features of some pixels of a grid of `size` (h, w), side by side.

    levels   (B, C, h', w') each; another grid than `size` is interpolated bilinearly, cells being
             areas, at these pixels alone
    indices  (S,), counted over all images of the grid
    """
    image, pixel = indices // (size[0] * size[1]), indices % (size[0] * size[1])
    where = pixel // size[1], pixel % size[1]
    return torch.cat([_interpolated(level, image, where, size) for level in levels], 1)


def _interpolated(
    level: Tensor, image: Tensor, where: tuple[Tensor, Tensor], size: tuple[int, int]
) -> Tensor:
    if level.shape[-2:] == size:
        return at_least_float32(level[image, :, where[0], where[1]])
    low, high, share = zip(
        *(
            _between(at, own, all)
            for at, own, all in zip(where, level.shape[-2:], size, strict=True)
        ),
        strict=True,
    )
    dtype = torch.promote_types(level.dtype, torch.float32)
    parts = [
        at_least_float32(level[image, :, rows, columns]) * (of_row * of_column)[:, None].to(dtype)
        for rows, of_row in ((low[0], 1 - share[0]), (high[0], share[0]))
        for columns, of_column in ((low[1], 1 - share[1]), (high[1], share[1]))
    ]
    return torch.stack(parts).sum(0)


def _between(at: Tensor, own: int, all: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells of `own` that a cell of `all` lies between, and the share of the second."""
    place = ((at.double() + 0.5) * own / all - 0.5).clamp(0, own - 1)
    low = place.long()
    return low, (low + 1).clamp(max=own - 1), place - low


def pairs_by_label(labels: Tensor, key_labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """How many keys are of an anchor's class, and how many of others, in the shape of `labels`.

    key_labels  (M,); 255 is no key, and of an anchor both are 0
    """
    void = num_classes
    kinds, key_kinds = labels.long().clamp(max=void), key_labels.long().clamp(max=void)
    alike = torch.zeros(num_classes + 1, dtype=torch.int64, device=labels.device)
    alike = alike.scatter_add_(0, key_kinds, (key_kinds < void).long())
    others = (alike.sum() - alike) * (torch.arange(len(alike), device=labels.device) < void)
    return alike[kinds], others[kinds]


def supervised_contrast(
    anchors: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    first: int = 0,
    temperature: float,
    denominators: str = "all",
) -> tuple[Tensor, Tensor]:
    """Pull every anchor toward the keys of its class, away from the others.

    anchors  (N, D), keys first .. first + N of the keys; only directions count
    keys     (M, D), with a gradient
    labels, key_labels  (N,) and (M,) trainIds; 255 is no anchor and no key
    temperature  divides the cosine
    denominators  what a positive's share is taken of: "all" other keys, as in the paper, or
                  "pos_neg", itself and the keys of other classes, as in the authors' code

    Returns (sum, count) over the anchors that have a positive; (0, 0) with a graph where none has.
    An anchor's loss is the mean over its positives (ours: the paper gives a sum).
    """
    with without_autocast(anchors):
        a, k = (F.normalize(at_least_float32(x), dim=1, eps=EPSILON) for x in (anchors, keys))
        logits = a @ k.T / temperature
        own = torch.arange(len(a), device=a.device)[:, None] + first
        others = (key_labels != IGNORE_INDEX) & (own != torch.arange(len(k), device=k.device))
        alike = labels[:, None] == key_labels
        positive = others & alike & (labels != IGNORE_INDEX)[:, None]
        pairs = positive.sum(1)
        wanted = pairs > 0
        if denominators == "all":
            total = logits.masked_fill(~others, LEAST).logsumexp(1, keepdim=True)
        else:
            negative = logits.masked_fill(~others | alike, LEAST).logsumexp(1, keepdim=True)
            total = torch.logaddexp(negative, logits)
        means = ((total - logits) * positive).sum(1) / pairs.clamp(min=1)
        return (means * wanted).sum(), wanted.sum()
