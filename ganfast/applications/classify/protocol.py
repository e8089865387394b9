"""Train a method with few labels, and measure its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from ganfast.applications.classifier import predicted
from ganfast.applications.classify.features import DiscriminatorFeatures, Pixels
from ganfast.applications.classify.sgan import Consistent, SemiSupervised, Supervised
from ganfast.applications.classify.task import MethodBuilder, Options, Task
from ganfast.applications.labelled import LabelledData, few_labels
from ganfast.training import DataError, ImageData
from ganfast.training.errors import counted
from ganfast.training.progress import Steps, silent

__all__ = ["METHODS", "Outcome", "check", "classify", "confusion", "share_of_rate", "train"]

METHODS: dict[str, MethodBuilder] = {
    "sgan": SemiSupervised,
    "consistency": Consistent,
    "features": DiscriminatorFeatures,
    "pixels": Pixels,
    "supervised": Supervised,
}
FULL_RATE = 2 / 3
"""Share of the updates with the full learning rate, which then falls to 0."""


@dataclass(frozen=True)
class Outcome:
    """The result of one training, as records keep it.

    Attributes:
        method: its name.
        labels: how many were given.
        seed: of everything.
        accuracy: on the test set, after the last update.
        confusion: counts of test images, K rows (true) of K columns (predicted).
        seconds: of training.
    """

    method: str
    labels: int
    seed: int
    accuracy: float
    confusion: list[list[int]]
    seconds: float


def check(
    data: LabelledData, counts: Sequence[int], seeds: Sequence[int], options: Options
) -> None:
    """Check the arguments of trainings before the first one.

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
    method: str,
    labels: int,
    seed: int,
    steps: int,
    options: Options,
    *,
    device: torch.device | str = "cpu",
    progress: Steps = silent,
) -> Outcome:
    """Train a method with few labels, and measure it on the test set.

    Args:
        data: training and test set; the test set is used once, at the end of the training.
        method: key of ``METHODS``.
        labels: how many are given.
        seed: of the choice of labels, of weights, noise and order.
        steps: updates of the training.
        options: of every method.
        device: to train on.
        progress: shows what is done.

    Raises:
        DataError: as :func:`check`.
        DivergenceError: the output of the trained network is not finite.

    Examples:
        >>> from ganfast.applications.classify import Options, classify
        >>> from ganfast.applications.labelled import load_labelled
        >>> data = load_labelled("digits", image_size=16)
        >>> outcome = classify(data, "supervised", 20, 0, 10, Options(width=4))
        >>> len(outcome.confusion)
        10
    """
    check(data, [labels], [seed], options)
    assert data.train.labels is not None
    assert data.test.labels is not None
    start = perf_counter()
    chosen = few_labels(data.train.labels, labels, seed)
    classes = len(data.classes)
    predict = train(method, data.train, chosen, classes, steps, options, seed=seed, device=device,
                    progress=progress)  # fmt: skip
    seconds = perf_counter() - start
    counts = confusion(data.test.labels, predict(data.test.images), classes)
    accuracy = float(counts.trace()) / len(data.test)
    return Outcome(method, labels, seed, accuracy, counts.tolist(), seconds)


def train(
    name: str,
    images: ImageData,
    labelled: Tensor,
    classes: int,
    steps: int,
    options: Options,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Steps = silent,
) -> Callable[[Tensor], Tensor]:
    """Train one method, and return what maps images uint8 ``[N, C, H, W]`` to classes ``[N]``.

    Args:
        name: key of ``METHODS``.
        images: to learn from; only some of the labels are used.
        labelled: indices of these.
        classes: their number.
        steps: number of updates.
        options: of the method.
        seed: of everything random; torch is seeded with it.
        device: to train on.
        progress: shows what is done, of the training and of predictions.
    """
    assert images.labels is not None
    torch.manual_seed(seed)
    task = Task(images, labelled, images.labels[labelled], classes, options, seed=seed,
                device=device)  # fmt: skip
    method = METHODS[name](task, options)
    with _computing(options, task.device):
        for step in progress(name, steps):
            method.update(share_of_rate(step, steps))
        method.finish()

    def predict(images: Tensor) -> Tensor:
        with _computing(options, task.device):
            return predicted(method.predict, images, device, progress)

    return predict


def _computing(options: Options, device: torch.device) -> torch.autocast:
    """Return the context that networks compute in: float32, or bfloat16 by autocast."""
    # Weights change between two passes of an update, so their copies must not be kept.
    enabled = options.computing(device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled, cache_enabled=False)


def share_of_rate(step: int, steps: int) -> float:
    """Return the share of the learning rate of an update: 1 at first, then falling to 0."""
    return min(1.0, (1 - step / steps) / (1 - FULL_RATE))


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Count images by class (rows) and predicted class (columns), ``[K, K]``."""
    pairs = labels * classes + predictions
    return pairs.bincount(minlength=classes**2).reshape(classes, classes)
