"""Classifiers trained with and without generated images, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ganfast.applications.augment.conditional import (
    GeneratorOptions,
    generate,
    train_conditional,
)
from ganfast.applications.classifier import accuracy, train_classifier
from ganfast.applications.classify import Options, train
from ganfast.applications.labelled import LabelledData, few_labels
from ganfast.applications.records import mean_and_deviation
from ganfast.training import DataError
from ganfast.training.options import NOT_NEGATIVE, POSITIVE, option
from ganfast.training.progress import Steps, silent

__all__ = ["METHODS", "AugmentOptions", "SeedResult", "run_seed", "summarise"]

METHODS = {
    "real": None,
    "real + generated": "real",
    "generated": "real",
    "real, shifted": "real",
    "real + generated, shifted": "real, shifted",
    "pseudo-labels": "real",
}
"""What classifiers are trained on, and which other it is compared with."""
SHIFTED = ", shifted"

CONFIDENCE = 0.95


@dataclass(frozen=True)
class AugmentOptions:
    """Options of the comparison."""

    labels: int  # number of labelled images
    per_class: int = option(500, "generated images of each class", POSITIVE, metavar="IMAGES")
    updates: int = option(400, "updates of each classifier", POSITIVE)
    batch_size: int = 64  # of each classifier; half of it generated images, if there are any
    shift: float = 0.125  # of shifted images at most, as a share of their side
    pseudo_updates: int = option(
        0,
        "updates of an sgan, from whose labels of all training images the conditional DCGAN "
        "learns; 0: it learns from the labelled images alone",
        NOT_NEGATIVE,
    )
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)


@dataclass(frozen=True)
class SeedResult:
    """Result of one seed: ``accuracies`` by method, generated ``images`` (uint8) and ``labels``."""

    seed: int
    accuracies: dict[str, float]
    images: Tensor
    labels: Tensor


def run_seed(
    data: LabelledData,
    options: AugmentOptions,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    progress: Steps = silent,
) -> SeedResult:
    """Draw few labels, train a conditional DCGAN on them, and a classifier by each method.

    With ``pseudo_updates``, an sgan is trained on the labelled images and all the others without
    their labels; the conditional DCGAN learns from all of them with the sgan's labels, and the
    accuracy of the sgan itself is in the result as "pseudo-labels".

    The seed sets the labels, the initial weights and the order of the images. All classifiers have
    the same number of updates and images; the test set is used after the last one.

    Args:
        data: labelled images of the classifier's and the DCGAN's size.
        options: of the comparison.
        seed: of every random number.
        device: to train on.
        progress: shows what is done.

    Raises:
        DataError: there are fewer labels than asked for, or fewer asked for than classes.
        DivergenceError: the DCGAN's losses are not finite.

    Examples:
        >>> from ganfast.applications.augment import AugmentOptions, run_seed
        >>> from ganfast.applications.augment import GeneratorOptions
        >>> from ganfast.applications.labelled import load_labelled
        >>> short = GeneratorOptions(updates=1, width=4)
        >>> options = AugmentOptions(20, per_class=2, updates=1, generator=short)
        >>> result = run_seed(load_labelled("digits", image_size=16), options, 0)
        >>> len(result.images), list(result.accuracies)[-1]
        (20, 'real + generated, shifted')
    """
    if data.train.labels is None or data.test.labels is None:
        raise DataError(f"{data.name} has no labels")
    chosen = few_labels(data.train.labels, options.labels, seed)
    real = data.train.images[chosen], data.train.labels[chosen]
    classes = len(data.classes)
    learned, accuracies = real, {}
    if options.pseudo_updates:
        predict = train(
            "sgan", data.train, chosen, classes, options.pseudo_updates,
            Options(data.train.image_shape[1]), seed=seed, device=device, progress=progress,
        )  # fmt: skip
        learned = data.train.images, predict(data.train.images)
        right = predict(data.test.images) == data.test.labels
        accuracies["pseudo-labels"] = int(right.sum()) / len(right)
    gan = train_conditional(
        *learned, classes, options.generator, seed=seed, device=device, progress=progress
    )
    made = generate(gan, options.per_class, seed)
    sources = {"real": [real], "generated": [made], "real + generated": [real, made]}
    for method in METHODS:
        if method != "pseudo-labels":
            model = train_classifier(
                sources[method.removesuffix(SHIFTED)],
                classes,
                updates=options.updates,
                batch_size=options.batch_size,
                seed=seed,
                shift=options.shift if method.endswith(SHIFTED) else 0.0,
                device=device,
                progress=progress,
            )
            accuracies[method] = accuracy(model, data.test.images, data.test.labels, progress)
    in_order = {method: accuracies[method] for method in METHODS if method in accuracies}
    return SeedResult(seed, in_order, *made)


def summarise(accuracies: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Compare each method with another, in one row for each.

    A row has the method, the mean and deviation of its accuracy, the method it is compared with
    (``METHODS``), the mean of the differences from that, seed by seed, and the bounds of their 95 %
    interval (Student's t): None for the first method and, as the deviation, for one seed alone.

    Args:
        accuracies: by method, of each seed.

    Source:
        Student 1908, https://doi.org/10.1093/biomet/6.1.1

    Examples:
        >>> from ganfast.applications.augment import summarise
        >>> found = [{"real": 0.5, "generated": 0.75}, {"real": 0.5, "generated": 0.75}]
        >>> summarise(found)[1]["difference"]
        0.25
    """
    from scipy.stats import t

    rows = []
    count = len(accuracies)
    for method in accuracies[0]:
        values = [of_seed[method] for of_seed in accuracies]
        mean, deviation = mean_and_deviation(values)
        row: dict[str, Any] = {"method": method, "accuracy": mean}
        row["deviation"] = deviation if count > 1 else None
        other = METHODS[method]
        row |= {"compared with": other, "difference": None, "low": None, "high": None}
        if other:
            differences = [of_seed[method] - of_seed[other] for of_seed in accuracies]
            row["difference"], spread = mean_and_deviation(differences)
            if count > 1:
                half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread / count**0.5
                row |= {"low": row["difference"] - half, "high": row["difference"] + half}
        rows.append(row)
    return rows
