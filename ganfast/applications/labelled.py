"""Labelled images: a training and a test set, and few labels out of many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ganfast.training import DataError, ImageData, load_images
from ganfast.training.errors import counted

__all__ = ["LabelledData", "few_labels", "for_validation", "load_labelled"]

HELD_OUT = 5
"""One of so many images is for testing, if a source has no test set of its own."""


@dataclass(frozen=True)
class LabelledData:
    """Images with labels ``0 .. K - 1``, which ``classes`` names, in a training and a test set.

    Images without a label (-1) are in the training set only.
    """

    train: ImageData
    test: ImageData
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.train.name


def load_labelled(
    spec: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    channels: int | None = None,
) -> LabelledData:
    """Read a source's training and test set; the arguments are those of ``load_images``.

    A source without a test set is split: a fifth of its images, always the same, is the test set.

    Raises:
        DataError: as ``load_images``; there are no labels, or fewer than two classes.

    Examples:
        >>> from ganfast.applications.labelled import load_labelled
        >>> data = load_labelled("digits")
        >>> len(data.train), len(data.test), data.classes[:3]
        (1438, 359, ('0', '1', '2'))
    """
    options = {"root": root, "download": download, "image_size": image_size, "channels": channels}
    whole = load_images(spec, **options)  # type: ignore[arg-type]
    values = whole.label_values()
    if not len(values):
        raise DataError(
            f"{whole.name} has no labels; give a folder with one subfolder a class, or an npz file "
            "with labels y"
        )
    classes = tuple(
        whole.classes[int(value)] if whole.classes else str(int(value)) for value in values
    )
    if len(classes) < 2:
        raise DataError(f"{whole.name} has one class only ({classes[0]}); at least 2 are needed")
    if spec in ("mnist", "fashion-mnist", "cifar10"):
        train, test = whole, load_images(spec, **options, train=False)  # type: ignore[arg-type]
    else:
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
        first = len(whole) // HELD_OUT
        test, train = (
            _select(whole, part.sort().values) for part in (order[:first], order[first:])
        )
        assert test.labels is not None
        test = _select(test, test.labels >= 0)
    return LabelledData(_renumbered(train, values), _renumbered(test, values), classes)


def for_validation(data: LabelledData, count: int) -> LabelledData:
    """Test on images held out of the training set, always the same, instead of the test set.

    Settings chosen so owe nothing to the test set.

    Args:
        data: whose training set is split.
        count: of images to hold out.

    Raises:
        DataError: there are not so many labelled ones and one more.

    Examples:
        >>> from ganfast.applications.labelled import for_validation, load_labelled
        >>> data = for_validation(load_labelled("digits"), 100)
        >>> len(data.train), len(data.test)
        (1338, 100)
    """
    assert data.train.labels is not None
    known = (data.train.labels >= 0).nonzero().squeeze(1)
    if count >= len(known):
        raise DataError(
            f"{counted(count, 'image')} cannot be held out of {len(known)} with a label"
        )
    held_out = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:count]]
    rest = torch.ones(len(data.train), dtype=torch.bool)
    rest[held_out] = False
    return replace(data, train=_select(data.train, rest), test=_select(data.train, held_out))


def few_labels(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw the indices of ``count`` labels, spread evenly over the classes.

    Args:
        labels: ``[N]``, 0 to K - 1.
        count: how many; at least one a class.
        seed: of the draw.

    Returns:
        Indices ``[count]`` into ``labels``, class after class.

    Raises:
        DataError: fewer labels than classes are asked for, or more than there are.

    Examples:
        >>> import torch
        >>> from ganfast.applications.labelled import few_labels
        >>> labels = torch.arange(20) % 2
        >>> labels[few_labels(labels, 4, seed=0)]
        tensor([0, 0, 1, 1])
    """
    classes = int(labels.max()) + 1
    if count < classes:
        raise DataError(
            f"{counted(count, 'label')} for {classes} classes: each needs one, ask for more"
        )
    rng = torch.Generator().manual_seed(seed)
    more = set(torch.randperm(classes, generator=rng)[: count % classes].tolist())
    chosen = []
    for label in range(classes):
        of_class = (labels == label).nonzero().squeeze(1)
        wanted = count // classes + (label in more)
        if wanted > len(of_class):
            raise DataError(
                f"{count} labels need {counted(wanted, 'image')} of class {label}, "
                f"there are {len(of_class)}"
            )
        chosen.append(of_class[torch.randperm(len(of_class), generator=rng)[:wanted]])
    return torch.cat(chosen)


def _select(data: ImageData, indices: Tensor) -> ImageData:
    assert data.labels is not None
    return replace(data, images=data.images[indices], labels=data.labels[indices])


def _renumbered(data: ImageData, values: Tensor) -> ImageData:
    """Number labels from 0 without gaps; -1 stays."""
    assert data.labels is not None
    numbers = torch.searchsorted(values, data.labels)
    return replace(data, labels=numbers.where(data.labels >= 0, -1))
