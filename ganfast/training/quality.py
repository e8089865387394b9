"""The Frechet distance between generated and real images in the features of a classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ganfast.nn import BatchNorm2d
from ganfast.training.batches import as_float
from ganfast.training.data import ImageData
from ganfast.training.errors import DataError

__all__ = ["Quality", "frechet_distance"]

FEATURES = 64
IMAGES = 2000
"""Images of each kind to compare: with fewer the distance is biased upwards."""
LEARNED_FROM = 20_000
"""Most images that the classifier is trained on: enough for features, within seconds."""
UPDATES = 400
BATCH = 100


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the distance between normal distributions with the means and covariances of two sets.

    ``|mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))``

    Args:
        a: features ``[N, F]``.
        b: features ``[M, F]``.

    Raises:
        ValueError: the sets do not have the same number of features, or fewer than two rows.

    Source:
        Heusel et al. 2017, section 3, https://arxiv.org/abs/1706.08500

    Examples:
        >>> import torch
        >>> from ganfast.training import frechet_distance
        >>> x = torch.randn(100, 3)
        >>> round(frechet_distance(x, x + 2), 4)
        12.0
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            "frechet_distance needs features [N, F] and [M, F] with N and M above 1, got "
            f"{list(a.shape)} and {list(b.shape)}"
        )
    a, b = a.double().cpu(), b.double().cpu()
    cov_a, cov_b = (torch.atleast_2d(torch.cov(x.T)) for x in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # cov_a cov_b has the eigenvalues of this symmetric matrix.
    shared = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared
    return max(0.0, float(distance))


class _Classifier(nn.Module):
    """Map images ``[N, C, H, W]`` to logits ``[N, K]`` through features ``[N, FEATURES]``."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for features in (16, 32, FEATURES):
            layers += [
                nn.Conv2d(channels, features, 3, stride=2, padding=1, bias=False),
                BatchNorm2d(features, activation="relu"),
            ]
            channels = features
        self.features = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * FEATURES, FEATURES)
        )
        self.judge = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.judge(functional.relu(self.features(images)))
        return logits


class Quality:
    """Measure generated images against a data set's, by a small classifier trained on its labels.

    The same data and seed give the same classifier and the same real images, and torch's global
    generator is not used: a run with this measurement has the bits of one without. Distances
    compare models on one data set and one version of this class; they are no FID, whose features
    are Inception's.

    Args:
        data: images with labels.
        device: where to compute.
        seed: of the classifier.

    Attributes:
        floor: the distance between two halves of the real images, for orientation.

    Raises:
        DataError: there are no labels, or one class only.

    Examples:
        >>> from ganfast.training import Quality, load_images
        >>> quality = Quality(load_images("digits"))
        >>> quality(lambda count: torch.zeros(count, 1, 32, 32)) > quality.floor
        True
    """

    def __init__(
        self, data: ImageData, *, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        if len(data.label_values()) < 2:
            raise DataError(
                f"quality cannot be measured on {data.name}: it has no labels of two classes or "
                "more; leave it out (--quality-every 0)"
            )
        self._device = torch.device(device)
        rng = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data), generator=rng)
        cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(seed)
            self._classifier = self._train(data, order, rng)
        real = self._features([data.images[part] for part in order[: 2 * IMAGES].split(BATCH)])
        self._real = real[: len(real) // 2]
        self.floor = frechet_distance(self._real, real[len(real) // 2 :])

    def __call__(self, generate: Callable[[int], Tensor]) -> float:
        """Return the distance of as many generated images as there are real ones to compare with.

        Args:
            generate: takes N and returns images ``[N, C, H, W]`` in [-1, 1].
        """
        sizes = [len(part) for part in self._real.split(BATCH)]
        return frechet_distance(self._real, self._features([generate(n) for n in sizes]))

    def _train(self, data: ImageData, order: Tensor, rng: torch.Generator) -> _Classifier:
        assert data.labels is not None
        channels, values = data.image_shape[0], data.label_values()
        chosen = order[data.labels[order] >= 0][:LEARNED_FROM]
        labels = torch.searchsorted(values, data.labels)  # without gaps
        network = _Classifier(channels, len(values)).to(self._device)
        adam = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(UPDATES):
            batch = chosen[torch.randint(len(chosen), (BATCH,), generator=rng)]
            logits = network(as_float(data.images[batch].to(self._device)))
            loss = functional.cross_entropy(logits, labels[batch].to(self._device))
            adam.zero_grad()
            loss.backward()
            adam.step()
        return network.eval().requires_grad_(False)

    @torch.no_grad()
    def _features(self, batches: list[Tensor]) -> Tensor:
        """Map batches of images, as bytes or in [-1, 1], to features ``[N, FEATURES]``."""
        return torch.cat(
            [
                self._classifier.features(
                    as_float(batch.to(self._device)) if batch.dtype == torch.uint8 else batch
                )
                for batch in batches
            ]
        )
