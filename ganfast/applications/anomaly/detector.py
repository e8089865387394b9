"""Anomaly detectors: networks trained on normal images, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ganfast.applications.anomaly.scores import (
    BATCH,
    LocalDensity,
    encoded_directions,
    encoding_loss,
    first_features,
    search_latent,
    small_pixels,
)
from ganfast.models import GAN, dcgan
from ganfast.models.dcgan import IMAGE_SIZES, initialise
from ganfast.models.encoder import Encoder
from ganfast.nn import GANLoss
from ganfast.training import Batches, DataError, DivergenceError, GANStep, ImageData
from ganfast.training.batches import as_float
from ganfast.training.options import POSITIVE, option
from ganfast.training.progress import Steps, silent

__all__ = ["METHODS", "Detector", "DetectorOptions", "train_detector"]

METHODS = {
    "latent": "AnoGAN: search of a latent vector",
    "encoder": "f-AnoGAN: encoder izi_f",
    "encoded": "density of normal images in the directions of the encoder's second layer",
    "features": "density of normal images in the discriminator's first layer",
    "pixels": "the same density in pixels, without a network, to compare with",
}
ENCODED = ("encoder", "encoded")
"""The methods that need an encoder."""
HELD_OUT = 10
"""One of so many normal images is held out, to measure how high normal images score."""
MOST_HELD_OUT = 200
FEWEST = 40
"""Least number of normal images."""


@dataclass(frozen=True)
class DetectorOptions:
    """Options of a detector, the same for every normal class.

    The defaults were chosen on MNIST's training set alone: trained on nine tenths of one class (2
    and 8), compared on the last tenth and on training images of other classes. ``encoder_steps``
    may be 0 if no score needs an encoder.
    """

    image_size: int = option(32, "side of the images in pixels", choices=IMAGE_SIZES)
    channels: int = 1
    width: int = option(16, "feature maps beside the image", POSITIVE)
    latent: int = option(100, "length of a latent vector", POSITIVE)
    steps: int = option(300, "steps of the GAN", POSITIVE)
    batch_size: int = 64
    learning_rate: float = 5e-4
    encoder_steps: int = option(150, "steps of the encoder", POSITIVE)
    encoder_learning_rate: float = 1e-3
    search_steps: int = option(32, "steps of the method latent", POSITIVE)
    neighbours: int = 20
    seed: int = 0


class Detector:
    """Score how far images are from normal ones.

    Args:
        gan: trained on normal images; its device is computed on.
        encoder: to the generator's latent vectors, or None.
        known: normal images, uint8 ``[M, C, H, W]``, more than ``options.neighbours``.
        options: of their training.
        held_out: normal images that nothing was trained on, uint8, to compare scores with; may
            be empty.
    """

    def __init__(
        self,
        gan: GAN,
        encoder: Encoder | None,
        known: Tensor,
        options: DetectorOptions,
        held_out: Tensor,
    ) -> None:
        self.gan = gan
        self.encoder = encoder
        self.known = known
        self.options = options
        self.held_out = held_out
        self._densities: dict[str, LocalDensity] = {}
        for network in (*gan[:2], encoder):
            if network is not None:
                network.eval().requires_grad_(False)

    def score(self, images: Tensor, method: str, progress: Steps = silent) -> Tensor:
        """Return scores ``[N]`` of uint8 images ``[N, C, H, W]``, higher for more anomalous ones.

        Raises:
            ValueError: there is no such method.
            DataError: the images have another shape than those trained on.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if images.shape[1:] != self.known.shape[1:]:
            raise DataError(
                f"the detector is for images {list(self.known.shape[1:])}, "
                f"got {list(images.shape[1:])}"
            )
        parts = images.split(BATCH)
        if method == "latent":
            with closing(
                progress("latent search", len(parts) * self.options.search_steps)
            ) as taken:
                found = [self._search(self._on_device(part), taken).cpu() for part in parts]
            return torch.cat(found)
        scorer = self._scorer(method, progress)
        steps = progress(f"{method} scores", len(parts))
        return torch.cat([scorer(self._on_device(parts[i])).cpu() for i in steps])

    def share_below(self, scores: Tensor, method: str) -> Tensor:
        """Return for each score the share of held-out normal images that score lower, ``[N]``."""
        normal = self.score(self.held_out, method).sort().values
        return torch.searchsorted(normal, scores).float() / len(normal)

    def _search(self, images: Tensor, taken: Iterator[int]) -> Tensor:
        return search_latent(
            *self.gan[:2], images, latent=self.gan.latent,  # type: ignore[arg-type]
            steps=self.options.search_steps, seed=self.options.seed, taken=taken,
        )  # fmt: skip

    def _scorer(self, method: str, progress: Steps) -> Callable[[Tensor], Tensor]:
        if method == "encoder":
            encoder = self._trained_encoder(method)
            return torch.no_grad()(
                lambda images: encoding_loss(encoder, *self.gan[:2], images)  # type: ignore[arg-type]
            )
        density = self._density(method, progress)
        return lambda images: density(self._vectors(method, images))

    def _trained_encoder(self, method: str) -> Encoder:
        if self.encoder is None:
            raise DataError(
                f"this detector was trained without an encoder; train one with the method {method}"
            )
        return self.encoder

    def _on_device(self, images: Tensor) -> Tensor:
        return as_float(images.to(next(self.gan.generator.parameters()).device))

    def _vectors(self, method: str, images: Tensor) -> Tensor:
        if method == "pixels":
            return small_pixels(images)
        if method == "encoded":
            return encoded_directions(self._trained_encoder(method), images)
        return first_features(self.gan.discriminator, images)  # type: ignore[arg-type]

    def _density(self, method: str, progress: Steps) -> LocalDensity:
        if method not in self._densities:
            parts = self.known.split(BATCH)
            steps = progress(f"{method} of normal images", len(parts))
            known = torch.cat([self._vectors(method, self._on_device(parts[i])) for i in steps])
            self._densities[method] = LocalDensity(known, self.options.neighbours, progress)
        return self._densities[method]


def train_detector(
    normal: ImageData,
    options: DetectorOptions | None = None,
    *,
    methods: Sequence[str] = ("features",),
    device: torch.device | str = "cpu",
    progress: Steps = silent,
) -> Detector:
    """Train a GAN on normal images, and an encoder if a method needs one.

    A tenth of the images, at most 200, is held out. The seed of the options fixes every random
    number; torch's global generator is left as it was.

    Args:
        normal: the images; labels are ignored.
        options: sizes, lengths and seed; image size and channels are taken from the images.
        methods: keys of ``METHODS`` that the detector will be asked for.
        device: to train on, and to score on later.
        progress: shows what is done.

    Raises:
        DataError: fewer than 40 images.
        DivergenceError: a weight is not finite after training.
        ValueError: images of a side that DCGAN cannot make.

    Examples:
        >>> from ganfast.applications.anomaly import DetectorOptions, train_detector
        >>> from ganfast.training import load_images
        >>> digits = load_images("digits", image_size=16)
        >>> detector = train_detector(digits, DetectorOptions(width=4, steps=2))
        >>> detector.score(digits.images[:3], "features").shape
        torch.Size([3])
    """
    if len(normal) < FEWEST:
        raise DataError(f"{normal.name}: {len(normal)} normal images are too few, give {FEWEST}")
    channels, side, _ = normal.image_shape
    options = replace(options or DetectorOptions(), image_size=side, channels=channels)
    rng = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(normal), generator=rng)
    held_out, kept = order.tensor_split([min(len(normal) // HELD_OUT, MOST_HELD_OUT)])
    known = normal.images[kept.sort().values]
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        gan = _train_gan(replace(normal, images=known, labels=None), options, device, progress)
        needed = any(method in ENCODED for method in methods)
        encoder = _train_encoder(gan, known, options, device, progress) if needed else None
    options = replace(options, neighbours=min(options.neighbours, len(known) - 1))
    return Detector(gan, encoder, known, options, normal.images[held_out])


def _train_gan(
    data: ImageData, options: DetectorOptions, device: torch.device, progress: Steps
) -> GAN:
    gan = dcgan(options.image_size, options.channels, options.width, options.latent)
    adam_g, adam_d = (
        torch.optim.Adam(m.to(device).parameters(), options.learning_rate, (0.5, 0.999), fused=True)
        for m in gan[:2]
    )
    # A layout that is measured may change from run to run, and with it the bits of every score.
    step = GANStep(
        *gan[:2], adam_g, adam_d, GANLoss(), gan.latent, paired=True, channels_last=False
    )
    batches = _batches(data, options, device)
    for _ in progress("GAN", options.steps):
        step(next(batches))
    for name, network in zip(("generator", "discriminator"), gan[:2], strict=True):
        _check_weights(name, network)
        network.eval().requires_grad_(False)
    return gan


def _train_encoder(
    gan: GAN, known: Tensor, options: DetectorOptions, device: torch.device, progress: Steps
) -> Encoder:
    encoder = Encoder(options.image_size, options.channels, options.width, options.latent)
    encoder.apply(initialise).to(device)
    adam = torch.optim.Adam(
        encoder.parameters(), options.encoder_learning_rate, (0.5, 0.999), fused=True
    )
    batches = _batches(ImageData("normal images", known), options, device)
    for _ in progress("encoder", options.encoder_steps):
        adam.zero_grad(set_to_none=True)
        loss = encoding_loss(encoder, *gan[:2], next(batches))  # type: ignore[arg-type]
        loss.mean().backward()
        adam.step()
    _check_weights("encoder", encoder)
    return encoder


def _check_weights(name: str, network: nn.Module) -> None:
    if not all(weight.isfinite().all() for weight in network.parameters()):
        raise DivergenceError(f"weights of the {name} are not finite; try another seed")


def _batches(data: ImageData, options: DetectorOptions, device: torch.device) -> Batches:
    return Batches(data, min(options.batch_size, len(data)), seed=options.seed, device=device)
