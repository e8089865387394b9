"""Image sources, read once and held in memory as bytes."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ganfast.training.errors import DataError, first_line

__all__ = ["SOURCES", "ImageData", "image_files", "load_images", "read_images"]

# What reading a broken archive or data file raises, in numpy, zipfile, PIL and torchvision.
UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    SyntaxError,
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    AssertionError,
    zlib.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)
DIGITS_SIZE = 32  # the scans have 8x8 pixels, too few for a convolutional model
DIGITS = tuple("0123456789")
DEFAULT_ROOT = "data"


@dataclass(frozen=True)
class ImageData:
    """A set of images in memory: ``images`` uint8 ``[N, C, H, W]``, ``labels`` int64 ``[N]``.

    A label of -1 says that an image has none. ``classes`` names the labels 0, 1, ... if the source
    does.
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def label_values(self) -> Tensor:
        """Return the labels there are, each once; -1 is none."""
        if self.labels is None:
            return torch.empty(0, dtype=torch.int64)
        values: Tensor = self.labels[self.labels >= 0].unique()
        return values

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def fingerprint(self) -> str:
        """Return what tells these images from any others: a digest of their shape and bytes."""
        digest = hashlib.sha256(str(list(self.images.shape)).encode())
        for part in self.images.split(256):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()[:16]


def load_images(
    spec: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    channels: int | None = None,
    train: bool = True,
) -> ImageData:
    """Read every image of a source into one uint8 tensor ``[N, C, H, W]``.

    Args:
        spec: ``digits`` (scikit-learn's scans of handwritten digits, always at hand), ``mnist``,
            ``fashion-mnist``, ``cifar10``, ``folder:PATH`` (every image below PATH, in the order of
            their names; if all lie in subfolders of PATH, these are their classes) or
            ``npz:PATH`` (array ``x``, uint8 [N, H, W, C], [N, C, H, W] or [N, H, W], and if present
            labels ``y``, integers [N], -1 for an image without one).
        root: folder in which torchvision keeps mnist, fashion-mnist and cifar10 (default "data").
        download: fetch those into ``root`` if they are not there.
        image_size: side in pixels to which images are centre-cropped and resized; None keeps the
            source's own size (32 for digits; a folder needs one).
        channels: 1 (grey) or 3 (RGB); None keeps the source's own (3 for a folder).
        train: False for the test set of mnist, fashion-mnist and cifar10; the others have none.

    Raises:
        DataError: if the source is unknown, missing, empty, unreadable or of the wrong shape.

    Examples:
        >>> from ganfast.training import load_images
        >>> load_images("digits", image_size=16).images.shape
        torch.Size([1797, 1, 16, 16])
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be positive, got {image_size}")
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
    kind, _, path = spec.partition(":")
    if not train and spec not in TORCHVISION_SOURCES:
        raise DataError(f"{spec} has no test set; only {', '.join(TORCHVISION_SOURCES)} have one")
    if kind == "folder" and path:
        return _folder(Path(path).expanduser(), image_size, channels or 3)
    if kind == "npz" and path:
        data = _npz(Path(path).expanduser())
    elif spec == "digits":
        data = _digits(image_size)
    elif spec in TORCHVISION_SOURCES:
        data = _from_torchvision(spec, Path(root or DEFAULT_ROOT).expanduser(), download, train)
    else:
        raise DataError(f"unknown data {spec!r}; known: {', '.join(SOURCES)}")
    return replace(data, images=_fit(data.images, image_size, channels))


def _fit(images: Tensor, image_size: int | None, channels: int | None) -> Tensor:
    """Crop, resize and recolour uint8 images ``[N, C, H, W]`` as far as asked for."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    height, width = images.shape[-2:]
    if image_size is not None and (height, width) != (image_size, image_size):
        images = transforms.center_crop(images, [min(height, width)])
        images = transforms.resize(
            images, [image_size, image_size], InterpolationMode.BICUBIC, antialias=True
        )
    if channels == 1 and images.shape[1] == 3:
        images = transforms.rgb_to_grayscale(images)
    elif channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return images.contiguous()


def _digits(image_size: int | None) -> ImageData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = torch.from_numpy(digits.images).unsqueeze(1)  # [1797, 1, 8, 8], values 0..16
    images = (scans * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    return ImageData("digits", _fit(images, image_size or DIGITS_SIZE, None), labels, DIGITS)


TORCHVISION_SOURCES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
SOURCES = ("digits", *TORCHVISION_SOURCES, "folder:PATH", "npz:PATH")


def _from_torchvision(name: str, root: Path, download: bool, train: bool) -> ImageData:
    from torchvision import datasets

    dataset_class = getattr(datasets, TORCHVISION_SOURCES[name])
    try:
        dataset = dataset_class(root=root, train=train, download=download)
    except UNREADABLE as error:
        advice = (
            "downloading failed; check the network and that the folder can be written"
            if download
            else "give the folder that holds it as root (--root), or allow download (--download)"
        )
        raise DataError(f"{name}: cannot be read from {root}: {first_line(error)}; {advice}") from (
            error
        )
    pixels = torch.as_tensor(dataset.data)
    labels = torch.as_tensor(dataset.targets)
    images = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    return ImageData(name, images, labels.long(), tuple(dataset.classes))


def _folder(path: Path, image_size: int | None, channels: int) -> ImageData:
    if image_size is None:
        raise DataError(f"folder:{path} needs an image size, for its images may differ in theirs")
    files = image_files(path)
    images = read_images(files, image_size, channels)
    return ImageData(
        f"folder:{_printable(path)}",
        images,
        *_classes_of_folder([f.relative_to(path) for f in files]),
    )


def image_files(folder: Path) -> list[Path]:
    """List every image below a folder, in the order of their names.

    Raises:
        DataError: it is no folder, or holds no images.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if not folder.is_dir():
        raise DataError(f"folder:{folder} is not a folder; give the folder that holds the images")
    files = sorted(
        file
        for file in folder.rglob("*")
        # A leading dot marks what operating systems leave behind, such as "._photo.jpg".
        if file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith(".")
    )
    if not files:
        endings = " ".join(IMG_EXTENSIONS)
        raise DataError(
            f"folder:{folder} holds no images; files with these endings count: {endings}"
        )
    return files


def read_images(files: Sequence[Path], image_size: int, channels: int) -> Tensor:
    """Read image files, centre-cropped and resized, as uint8 ``[N, channels, size, size]``.

    Raises:
        DataError: a file is no whole image of 8 bits a channel.
    """
    images = np.empty((len(files), image_size, image_size, channels), dtype=np.uint8)
    for index, file in enumerate(files):
        images[index] = _read_image(file, image_size, channels)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _classes_of_folder(files: list[Path]) -> tuple[Tensor, tuple[str, ...]] | tuple[()]:
    """Take the first part of each path as the image's class, as torchvision's ImageFolder does."""
    if any(len(file.parts) == 1 for file in files):
        return ()
    classes = sorted({file.parts[0] for file in files})
    labels = torch.tensor([classes.index(file.parts[0]) for file in files])
    return labels, tuple(map(_printable, classes))


def _printable(name: str | Path) -> str:
    """Return a file's name as text: one that is no UTF-8 can be neither printed nor drawn."""
    return os.fsencode(name).decode(errors="replace")


def _read_image(file: Path, image_size: int, channels: int) -> np.ndarray:
    """Read one image file as uint8 ``[image_size, image_size, channels]``."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):  # 16 and 32 bits would be clipped to white
                raise ValueError(f"pixels of mode {image.mode} have more than 8 bits a channel")
            image = image.convert("L" if channels == 1 else "RGB")
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file} cannot be read as an image: {first_line(error)}; repair or remove it"
        ) from error
    fitted = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(fitted).reshape(image_size, image_size, channels)


def _npz(path: Path) -> ImageData:
    name = f"npz:{_printable(path)}"
    if not path.is_file():
        raise DataError(f"{name}: no such file")
    try:
        with path.open("rb") as file:  # numpy would leave a file it cannot read open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one bare array")
            arrays = {key: archive[key] for key in ("x", "y") if key in archive.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("a member is no .npy file")
            keys = ", ".join(archive.files) or "none"
    except UNREADABLE as error:
        raise DataError(
            f"{name} cannot be read: {first_line(error)}; write it with numpy.savez(path, x=images)"
        ) from error
    if "x" not in arrays:
        raise DataError(f"{name} has no array 'x' (its arrays: {keys}); store the images as 'x'")
    images = _channels_first(name, arrays["x"])
    labels = arrays.get("y")
    if labels is None:
        return ImageData(name, images)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name}: labels y must be {len(images)} integers, one for each image, "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    if labels.min() < -1 or labels.max() >= 2**63:
        raise DataError(
            f"{name}: labels y must be -1 (no label) or from 0 to 2^63 - 1, "
            f"got {labels.min()} to {labels.max()}"
        )
    return ImageData(name, images, torch.from_numpy(labels.astype(np.int64)))


def _channels_first(name: str, pixels: np.ndarray) -> Tensor:
    """Turn [N, H, W], [N, H, W, C] or [N, C, H, W] into a tensor ``[N, C, H, W]``."""
    given = f"got {pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype != np.uint8:
        raise DataError(f"{name}: images x must be uint8 (0..255), {given}")
    if pixels.size == 0:
        raise DataError(f"{name}: images x must not be empty, {given}")
    if pixels.ndim == 3:
        return torch.from_numpy(pixels).unsqueeze(1)
    if pixels.ndim == 4 and pixels.shape[-1] in (1, 3):
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3):
        return torch.from_numpy(pixels)
    raise DataError(
        f"{name}: images x must be [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels, "
        f"{given}"
    )
