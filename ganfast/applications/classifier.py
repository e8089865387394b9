"""A small classifier of images, its training, and the predictions of any classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ganfast.applications.shifts import shifted
from ganfast.nn import BatchNorm2d
from ganfast.training import DivergenceError
from ganfast.training.batches import as_float
from ganfast.training.progress import Steps, silent

__all__ = [
    "Classifier",
    "accuracy",
    "finite",
    "predicted",
    "settle",
    "train_classifier",
]

BATCH = 500  # images judged at once


class Classifier(nn.Module):
    """Map images ``[N, channels, size, size]`` to logits ``[N, classes]``.

    Three times a convolution, normalisation with ReLU in one kernel, and pooling.
    """

    def __init__(self, image_size: int, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        features = channels
        for wider in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(features, wider, 3, padding=1, bias=False),
                BatchNorm2d(wider, activation="relu"),
                nn.MaxPool2d(2),
            ]
            features = wider
        self.features = nn.Sequential(*layers)
        self.last = nn.Linear(features * (image_size // 8) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.features(images).flatten(1))
        return logits


def train_classifier(
    sources: list[tuple[Tensor, Tensor]],
    classes: int,
    *,
    updates: int,
    batch_size: int,
    seed: int,
    learning_rate: float = 1e-3,
    shift: float = 0.0,
    device: torch.device | str = "cpu",
    progress: Steps = silent,
) -> Classifier:
    """Train a classifier on batches that take an equal share from each source.

    Args:
        sources: images uint8 ``[N, C, size, size]`` and labels ``[N]`` of each.
        classes: number of classes.
        updates: of Adam, with a cosine schedule to 0.
        batch_size: images an update, drawn with replacement.
        seed: of the initial weights and the batches.
        learning_rate: at the start.
        shift: how far images are moved at random, as a share of their side; 0 for not at all.
        device: to train on.
        progress: shows what is done.

    Returns:
        The classifier after the last update, in evaluation mode.

    Examples:
        >>> import torch
        >>> from ganfast.applications.augment import accuracy, train_classifier
        >>> images = torch.tensor([0, 255], dtype=torch.uint8).repeat(8)
        >>> images = images[:, None, None, None].expand(-1, 1, 16, 16)
        >>> labels = torch.arange(16) % 2
        >>> trained = train_classifier([(images, labels)], 2, updates=9, batch_size=8, seed=0)
        >>> trained(torch.zeros(3, 1, 16, 16)).shape
        torch.Size([3, 2])
    """
    channels, size, _ = sources[0][0].shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(size, channels, classes).to(device)
    rng = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, updates)
    share = batch_size // len(sources)
    for _ in progress("classifier", updates):
        chosen = [torch.randint(len(x), (share,), generator=rng) for x, _ in sources]
        pairs = list(zip(sources, chosen, strict=True))
        images = as_float(torch.cat([x[index] for (x, _), index in pairs])).to(device)
        labels = torch.cat([y[index] for (_, y), index in pairs]).to(device)
        if shift:
            images = shifted(images, shift, rng)
        adam.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        adam.step()
        schedule.step()
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, progress: Steps = silent) -> float:
    """Return the share of images ``[N, C, H, W]`` (uint8) whose label ``[N]`` is predicted."""
    device = next(model.parameters()).device
    found = predicted(lambda batch: model(batch).argmax(1), images, device, progress)
    return int((found == labels).sum()) / len(labels)


@torch.no_grad()
def predicted(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    device: torch.device | str = "cpu",
    progress: Steps = silent,
) -> Tensor:
    """Return the class of each of the images ``[N, C, H, W]`` (uint8), ``[N]`` on the CPU.

    Args:
        predict: maps images in [-1, 1] on the device to their classes.
        images: to classify.
        device: to compute on.
        progress: shows what is done.
    """
    parts = images.split(BATCH)
    steps = progress("predictions", len(parts))
    return torch.cat([predict(as_float(parts[i].to(device))).cpu() for i in steps])


def finite(values: Tensor) -> Tensor:
    """Return the output of a trained network.

    Raises:
        DivergenceError: it is not finite, so the training has failed.
    """
    if not values.isfinite().all():
        raise DivergenceError("the output of the networks is not finite: training diverged")
    return values


@torch.no_grad()
def settle(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of a network in evaluation mode to the mean over batches.

    Those from training belong to other weights, and to generated images too.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean
        layer.train()
    for batch in batches:
        network(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
