"""The one-class protocol: train on one class, score the test set, measure the AUROC."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ganfast.applications.anomaly.detector import Detector, DetectorOptions, train_detector
from ganfast.applications.labelled import LabelledData
from ganfast.applications.records import mean_and_deviation
from ganfast.training import DataError, ImageData
from ganfast.training.progress import Steps, silent

__all__ = ["MEAN", "Outcome", "evaluate", "table"]

MEAN = "mean"
WORST = 6


@dataclass(frozen=True)
class Outcome:
    """The measurements of one detector on the test set, as records keep them.

    Attributes:
        normal: name of the normal class.
        seed: of the detector.
        auroc: of each method.
        scored: for each method, how many test images it scored.
        seconds: for training and for each method's scores.
        worst: for each method, the test images that mislead it most (indices): normal ones with
            the highest scores and anomalies with the lowest, six each.
    """

    normal: str
    seed: int
    auroc: Mapping[str, float]
    scored: Mapping[str, int]
    seconds: Mapping[str, float]
    worst: Mapping[str, tuple[list[int], list[int]]]


def evaluate(
    data: LabelledData,
    normal: str,
    options: DetectorOptions,
    *,
    methods: Sequence[str],
    search_images: int,
    device: torch.device | str = "cpu",
    progress: Steps = silent,
) -> tuple[Detector, Outcome]:
    """Train a detector on one class and score the test set, each image once, with every method.

    Args:
        data: training and test set.
        normal: name of the normal class; all others are anomalous.
        options: of the detector.
        methods: keys of ``METHODS``.
        search_images: number of test images, always the same, that "latent" scores: it is slow.
        device: to train and score on.
        progress: shows what is done.

    Returns:
        The detector and its measurements.

    Raises:
        DataError: no such class; too few images of it; a test set, or the part of it for "latent",
            without normal or without anomalous images.

    Source:
        The protocol of Ruff et al. 2018, section 4.2, http://proceedings.mlr.press/v80/ruff18a.html
    """
    from sklearn.metrics import roc_auc_score

    if normal not in data.classes:
        raise DataError(f"{data.name} has no class {normal!r}; it has {', '.join(data.classes)}")
    assert data.test.labels is not None
    anomalous = data.test.labels != data.classes.index(normal)
    parts = {method: scored_part(data, method, search_images) for method in methods}
    for method, part in parts.items():
        if anomalous[part].all() or not anomalous[part].any():
            raise DataError(
                f"{data.name}: the {len(part)} test images for {method} need both normal and "
                f"anomalous ones, of class {normal!r} and of others"
            )
    started = time.perf_counter()
    detector = train_detector(
        _images_of(data, normal), options, methods=methods, device=device, progress=progress
    )
    seconds = {"training": time.perf_counter() - started}
    auroc, worst = {}, {}
    for method, part in parts.items():
        started = time.perf_counter()
        scores = detector.score(data.test.images[part], method, progress)
        seconds[method] = time.perf_counter() - started
        auroc[method] = float(roc_auc_score(anomalous[part].numpy(), scores.numpy()))
        order = part[scores.argsort()]
        is_anomaly = anomalous[order]
        most_anomalous = order[~is_anomaly].flip(0)[:WORST].tolist()
        worst[method] = most_anomalous, order[is_anomaly][:WORST].tolist()
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    counts = {method: len(part) for method, part in parts.items()}
    return detector, Outcome(normal, options.seed, auroc, counts, rounded, worst)


def scored_part(data: LabelledData, method: str, search_images: int) -> Tensor:
    """Return the indices of the test images that a method scores, the same for every detector."""
    count = len(data.test)
    if method != "latent" or search_images >= count:
        return torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:search_images].sort().values


def table(outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a class, and a last one with the mean over the classes.

    Each method has the mean and the deviation of its AUROC over the seeds; the last row has those
    of the means over the classes, of seeds that have all classes, if there are any.

    Args:
        outcomes: :class:`Outcome` as dictionaries.
    """
    classes = list(dict.fromkeys(outcome["normal"] for outcome in outcomes))
    seeds = list(dict.fromkeys(outcome["seed"] for outcome in outcomes))
    found = {(outcome["normal"], outcome["seed"]): outcome["auroc"] for outcome in outcomes}
    complete = [seed for seed in seeds if all((name, seed) in found for name in classes)]
    rows = []
    for name in [*classes, MEAN] if complete else classes:
        row: dict[str, Any] = {"normal": name}
        for method in outcomes[0]["auroc"]:
            if name == MEAN:
                values = [
                    sum(found[one, seed][method] for one in classes) / len(classes)
                    for seed in complete
                ]
            else:
                values = [found[name, seed][method] for seed in seeds if (name, seed) in found]
            mean, deviation = mean_and_deviation(values)
            row |= {method: round(mean, 4), f"{method} deviation": round(deviation, 4)}
        rows.append(row | {"seeds": len(values)})
    return rows


def _images_of(data: LabelledData, normal: str) -> ImageData:
    assert data.train.labels is not None
    chosen = data.train.labels == data.classes.index(normal)
    name = f"class {normal} of {data.name}"
    return replace(data.train, name=name, images=data.train.images[chosen], labels=None)
