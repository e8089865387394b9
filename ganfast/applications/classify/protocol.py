"""Train every method with every number of labels and seed, and measure its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from ganfast.applications.classifier import predicted
from ganfast.applications.classify.acgan import AuxiliaryClassifier
from ganfast.applications.classify.features import DiscriminatorFeatures
from ganfast.applications.classify.sgan import SemiSupervised, Supervised
from ganfast.applications.classify.task import MethodBuilder, Options, Task
from ganfast.applications.labelled import LabelledData, few_labels
from ganfast.training import DataError
from ganfast.training.errors import counted

__all__ = ["METHODS", "Outcome", "check", "classify", "confusion", "share_of_rate"]

METHODS: dict[str, MethodBuilder] = {
    "sgan": SemiSupervised,
    "acgan": AuxiliaryClassifier,
    "features": DiscriminatorFeatures,
    "supervised": Supervised,
}
FULL_RATE = 2 / 3
"""Share of the updates with the full learning rate, which then falls to 0."""


@dataclass(frozen=True)
class Outcome:
    """The result of one training.

    Attributes:
        method: its name.
        labels: how many were given.
        seed: of everything.
        accuracy: on the test set, after the last update.
        confusion: counts of test images, rows true and columns predicted, ``[K, K]``.
        seconds: of training.
    """

    method: str
    labels: int
    seed: int
    accuracy: float
    confusion: Tensor
    seconds: float


def check(
    data: LabelledData, counts: Sequence[int], seeds: Sequence[int], options: Options
) -> None:
    """Check the arguments of all trainings before the first one.

    Raises:
        DataError: a count of labels, or the batch size, does not suit the training set.
    """
    assert data.train.labels is not None
    for count in counts:
        for seed in seeds:
            few_labels(data.train.labels, count, seed)
    if options.batch_size > len(data.train):
        raise DataError(
            f"batches of {options.batch_size} are larger than the training set of {data.name}, "
            f"which has {counted(len(data.train), 'image')}"
        )


def classify(
    data: LabelledData,
    methods: Sequence[str],
    counts: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    options: Options,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int], Iterator[int]] = lambda _, steps: iter(range(steps)),
) -> Iterator[Outcome]:
    """Yield the outcome of each method, number of labels and seed, one after the other.

    Args:
        data: training and test set; the test set is used once, at the end of each training.
        methods: keys of ``METHODS``.
        counts: numbers of labels.
        seeds: of the choice of labels, of weights, noise and order.
        steps: updates of each training.
        options: of every method.
        device: to train on.
        progress: takes a title and ``steps``, and yields the numbers of the updates.

    Raises:
        DataError: as :func:`check`.
        DivergenceError: the output of a trained network is not finite.

    Examples:
        >>> from ganfast.applications.classify import Options, classify
        >>> from ganfast.applications.labelled import load_labelled
        >>> data = load_labelled("digits", image_size=16)
        >>> outcomes = classify(data, ["supervised"], [20], [0, 1], 10, Options(width=4))
        >>> [outcome.seed for outcome in outcomes]
        [0, 1]
    """
    check(data, counts, seeds, options)
    for count in counts:
        for method in methods:
            for seed in seeds:
                title = f"{method}, {count} labels, seed {seed}"
                yield _outcome(
                    data, method, count, seed, progress(title, steps), steps, options, device
                )


def _outcome(
    data: LabelledData,
    name: str,
    count: int,
    seed: int,
    updates: Iterator[int],
    steps: int,
    options: Options,
    device: torch.device | str,
) -> Outcome:
    assert data.train.labels is not None
    assert data.test.labels is not None
    start = perf_counter()
    chosen = few_labels(data.train.labels, count, seed)
    torch.manual_seed(seed)
    task = Task(
        data.train, chosen, data.train.labels[chosen], len(data.classes),
        batch_size=options.batch_size, seed=seed, device=device,
    )  # fmt: skip
    method = METHODS[name](task, options)
    for step in updates:
        method.update(share_of_rate(step, steps))
    method.finish()
    seconds = perf_counter() - start
    counts = confusion(
        data.test.labels, predicted(method.predict, data.test.images, device), len(data.classes)
    )
    accuracy = float(counts.trace()) / len(data.test)
    return Outcome(name, count, seed, accuracy, counts, seconds)


def share_of_rate(step: int, steps: int) -> float:
    """Return the share of the learning rate of an update: 1 at first, then falling to 0."""
    return min(1.0, (1 - step / steps) / (1 - FULL_RATE))


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Count images by class (rows) and predicted class (columns), ``[K, K]``."""
    pairs = labels * classes + predictions
    return pairs.bincount(minlength=classes**2).reshape(classes, classes)
