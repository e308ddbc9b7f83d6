"""How good is a checkpoint on the target, without its labels?  Numbers to select by.

`validate` measures, `objective` makes one number of what was measured.  `few_label` is the honest
alternative: a few target images with labels.  No target label is opened but by `few_label`.
Letters: K classes, N images.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spcl.configuration.config import Config
from spcl.configuration.sections import Evaluation
from spcl.data.labels import IGNORE_INDEX
from spcl.data.sampling import hash_chosen, stream_seed
from spcl.data.shards import ShardSet
from spcl.errors import UserError
from spcl.inference.passes import statistics_pass
from spcl.inference.predict import Predict, count_pixels, evaluate
from spcl.inference.reader import groups, read
from spcl.inference.validators import LABEL_FREE, OBJECTIVES
from spcl.inference.validators.consistency import agreement, disturbed
from spcl.inference.validators.density import density_pixels, soft_neighborhood_density
from spcl.inference.validators.infomax import class_prior, infomax, infomax_statistics
from spcl.inference.validators.nuclear import class_grams, nuclear_norm
from spcl.inference.validators.temperature import fit_temperature, fitting_pixels
from spcl.losses.segmentation import by_class, most_likely, upsample
from spcl.models.normalization import DomainNorm
from spcl.models.segmentor import Segmentor
from spcl.scoring import protocols
from spcl.scoring.metrics import mean_iou
from spcl.settings import choose

TARGET_IMAGES = 256  # chosen by hash; all, if there are fewer
TEMPERATURE_PIXELS = 256  # of each source image
SOURCE_FLOOR = 0.9  # of the reference network's source-val mIoU
CLASS_FLOOR = 0.8  # of the classes must be predicted somewhere
LEAST_DEVIATION = 1e-6  # a single image has none to divide by

RESAMPLES = 1000  # of the few-label interval
CONFIDENCE = 0.95


@torch.no_grad()
def validate(
    segmentor: Segmentor,
    source_val: ShardSet,
    target: ShardSet,
    config: Config,
    device: torch.device,
    *,
    bootstrap: int = 0,
) -> dict[str, Any]:
    """A checkpoint's numbers, as plain JSON values; of the four label-free ones higher is better.

    source_val  labelled source images that were not trained on
    target      the target's training images; 256 are read, their labels never
    bootstrap   resamples of the target images, for the standard deviation of the four (`sd`)

    temperature, source_val (mIoU over the classes that these images show), infomax, nuclear,
    consistency, density, classes_predicted (share of those the network has outputs for), finite:
    where it is False, the numbers are None.

    Every rank of a process group must call it.
    """
    threads = config.train.loader_workers
    segmentor.to(device).eval()
    if any(isinstance(layer, DomainNorm) for layer in segmentor.modules()):
        # A stage that reads no source image leaves the source's statistics behind the weights.
        segmentor = copy.deepcopy(segmentor)
        size = config.source.size
        statistics_pass(segmentor, source_val, size, device, domain="source", threads=threads)

    def predict(domain: str) -> Predict:
        return lambda images: segmentor(images.to(device), domain).logits

    chosen = target.subset(hash_chosen(target.sample_ids, TARGET_IMAGES, "validation"))
    present = [k for k in range(segmentor.num_classes) if k not in segmentor.absent]
    try:
        source_miou, temperature = _read_source(
            predict("source"), source_val, config.source.size, device, threads
        )
        found = _read_target(
            predict("target"), chosen, config.target.size, temperature, device, threads
        )
    except FloatingPointError:
        names = ("temperature", "source_val", *LABEL_FREE, "classes_predicted")
        return dict.fromkeys(names) | {"finite": False}

    prior = class_prior(source_val)

    def scores(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {
            "infomax": infomax(sums["entropy"], sums["probability"], sums["pixels"], prior),
            "nuclear": nuclear_norm(
                sums["grams"][np.ix_(present, present, present)], sums["pixels"][present]
            ),
            "consistency": mean_iou(sums["agreement"])[0],
            "density": float(sums["density"] / len(chosen)),
        }

    sums = {name: values.sum(0) for name, values in found.items()}
    numbers: dict[str, Any] = {
        "temperature": temperature,
        "source_val": source_miou,
        **scores(sums),
        "classes_predicted": float((sums["pixels"][present] > 0).mean()),
        "finite": True,
    }
    if bootstrap:
        numbers["sd"] = bootstrap_deviation(found, scores, bootstrap)
    return numbers


def _checked(logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise FloatingPointError("logits are not finite")
    return logits


def _read_source(
    predict: Predict, shards: ShardSet, size: tuple[int, int], device: torch.device, threads: int
) -> tuple[float, float]:
    """mIoU over the classes that the images show, at the labels' size, and the temperature."""
    confusion = torch.tensor(0)
    logits, truth = [], []
    whole, doing = groups(len(shards), size), "the validation on the source"
    for group in read(doing, shards, whole, [size], labelled=True, threads=threads):
        coarse = _checked(predict(group.inputs(device)[0]))
        for index, scores, label in zip(group.indices, coarse, group.labels, strict=True):
            label = label.to(scores.device)
            predicted, _ = most_likely(scores[None], tuple(label.shape))
            confusion = confusion + count_pixels(label[None], predicted, len(scores))
            entropy = stream_seed(0, f"validation/temperature/{shards.sample_ids[index]}")
            places = fitting_pixels(
                label.flatten(), TEMPERATURE_PIXELS, IGNORE_INDEX, np.random.default_rng(entropy)
            )
            fine = by_class(scores[None], tuple(label.shape))
            logits.append(torch.stack([own.flatten()[places] for own in fine], 1))
            truth.append(label.flatten()[places].long())
    matrix = confusion[0].cpu().numpy()
    miou, _ = mean_iou(matrix, np.flatnonzero(matrix.sum(1)).tolist())
    return miou, fit_temperature(torch.cat(logits), torch.cat(truth))


def _read_target(
    predict: Predict,
    shards: ShardSet,
    size: tuple[int, int],
    temperature: float,
    device: torch.device,
    threads: int,
) -> dict[str, np.ndarray]:
    """Per image, (N, ...) each: what the scores are made of, all additive over images."""
    found: dict[str, np.ndarray] = {}
    whole, doing = groups(len(shards), size), "the validation on the target"
    for group in read(doing, shards, whole, [size], threads=threads):
        names = [shards.sample_ids[index] for index in group.indices]
        plain = group.inputs(device)[0]
        logits = upsample(_checked(predict(plain)), size)
        labels = logits.max(1).indices  # (B, H, W)
        logs = (logits / temperature).flatten(2).log_softmax(1)  # (B, K, P)
        part = infomax_statistics(logs, labels.flatten(1))
        pairs = zip(logs.exp(), labels.flatten(1), strict=True)
        part["grams"] = torch.stack([class_grams(*pair) for pair in pairs])
        part["agreement"] = agreement(
            predict, labels, disturbed(plain, group.images, names), logits.shape[1]
        )
        where = np.stack([density_pixels(name, size[0] * size[1]) for name in names])
        places = torch.from_numpy(where).to(logs.device)[:, None].expand(-1, logs.shape[1], -1)
        part["density"] = soft_neighborhood_density(logs.gather(2, places).exp().mT)
        first = group.indices[0]
        for name, values in part.items():
            # In one place from the start: small arrays kept among large ones split the heap.
            store = found.setdefault(name, np.empty((len(shards), *values.shape[1:])))
            store[first : first + len(values)] = values.cpu().numpy()
    return found


def bootstrap_deviation(
    found: Mapping[str, np.ndarray],
    scores: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]],
    resamples: int,
) -> dict[str, float]:
    """Standard deviation of each score over resamples of the images with replacement.

    found   name -> (N, ...) what each image contributes
    scores  of sums over images
    """
    count = len(next(iter(found.values())))
    weights = resampled(count, resamples)
    sums = {
        name: (weights @ values.reshape(count, -1)).reshape(resamples, *values.shape[1:])
        for name, values in found.items()
    }
    drawn = [scores({name: total[r] for name, total in sums.items()}) for r in range(resamples)]
    return {name: float(np.std([one[name] for one in drawn], ddof=1)) for name in drawn[0]}


def resampled(count: int, resamples: int) -> np.ndarray:
    """(resamples, count) float64: how often each of `count` images is in each bootstrap sample."""
    rng = np.random.default_rng(stream_seed(0, "validation/bootstrap"))
    return rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)


def objective(
    validators: Mapping[str, Any],
    reference: Mapping[str, Any],
    name: str,
    *,
    relative_classes: bool = False,
) -> float | None:
    """What a search maximises: one number, or None where it must not be chosen.

    validators  what `validate` returned, with `few_label` or `target_oracle` where asked for
    reference   the same of the search's reference network, with `sd`
    name        of OBJECTIVES; `few_label:8` is read as `few_label`
    relative_classes  the reference has trained as little as the network, from no trained one, and
                so need not know all classes: those that it predicts count in place of all

    Each label-free validator is its distance from the reference's, in standard deviations of the
    latter; `label_free` is the mean of the four.  These need no target label and so can be fooled:
    None where the source-val mIoU is below 0.9 of the reference's, or where fewer than 80 % of the
    classes are predicted.  None also where a number is not finite.
    """
    name = choose(name.partition(":")[0], OBJECTIVES, "objective")
    if not validators["finite"]:
        return None
    if name == "few_label":
        return _finite(validators["few_label"]["value"])
    if name in ("source_val", "target_oracle"):
        return _finite(validators[name])
    if not reference["finite"]:
        raise UserError(
            "label-free objectives compare with a reference network, whose predictions must be "
            "finite but are not; train it at a smaller learning rate"
        )
    classes = reference["classes_predicted"] if relative_classes else 1.0
    if (
        validators["source_val"] < SOURCE_FLOOR * reference["source_val"]
        or validators["classes_predicted"] < CLASS_FLOOR * classes
    ):
        return None
    names = LABEL_FREE if name == "label_free" else (name,)
    distances = [
        (validators[n] - reference[n]) / max(reference["sd"][n], LEAST_DEVIATION) for n in names
    ]
    return _finite(sum(distances) / len(distances))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def few_label(
    segmentor: Segmentor, labelled: ShardSet, m: int, config: Config, device: torch.device
) -> dict[str, Any]:
    """The protocol's mIoU on `m` labelled target images, chosen by hash: value, low, high, images.

    low and high are the 2.5 and 97.5 percentiles over resamples of the images.
    """
    protocol = config.evaluation.protocol
    protocols.check_classes(protocol, labelled.class_names, labelled.name)
    chosen = labelled.subset(hash_chosen(labelled.sample_ids, m, "few_label"))
    segmentor.to(device).eval()
    _, matrices = evaluate(
        segmentor.predict,
        chosen,
        Evaluation(size=config.target.size),
        device,
        threads=config.train.loader_workers,
    )
    value, low, high = miou_interval(matrices, protocol)
    return {"value": value, "low": low, "high": high, "images": len(chosen)}


def miou_interval(matrices: np.ndarray, protocol: str) -> tuple[float, float, float]:
    """Headline mIoU of confusion matrices (N, K, K) and its 95 % percentile bootstrap interval."""

    def headline(confusion: np.ndarray) -> float:
        return protocols.headline(protocols.score(confusion, protocol)["means"])["value"]

    sums = np.tensordot(resampled(len(matrices), RESAMPLES), matrices, 1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile([headline(confusion) for confusion in sums], [tail, 1 - tail])
    return headline(matrices.sum(0)), float(low), float(high)


@torch.no_grad()
def ensemble_predictions(
    segmentors: Sequence[Segmentor],
    temperatures: Sequence[float],
    target: ShardSet,
    config: Config,
    device: torch.device,
) -> Iterator[Tensor]:
    """Of each validation image, every network's calibrated probabilities (M, K, H, W).

    What `validators.ensemble.ensemble_agreement` reads; temperatures are those of `validate`.
    """
    size = config.target.size
    for segmentor in segmentors:
        segmentor.to(device).eval()
    chosen = [[index] for index in hash_chosen(target.sample_ids, TARGET_IMAGES, "validation")]
    threads = config.train.loader_workers
    for group in read("the ensemble", target, chosen, [size], threads=threads):
        image = group.inputs(device)[0]
        yield torch.cat(
            [
                (upsample(segmentor.predict(image), size) / temperature).softmax(1)
                for segmentor, temperature in zip(segmentors, temperatures, strict=True)
            ]
        )
