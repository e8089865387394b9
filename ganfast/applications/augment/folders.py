"""Generated images as a folder that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

__all__ = ["save_image_folder"]


def save_image_folder(images: Tensor, labels: Tensor, classes: Sequence[str], folder: Path) -> None:
    """Write ``<folder>/<class>/00000.png`` and so on, as torchvision's ImageFolder reads them.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: ``[N]``.
        classes: names; a slash in one becomes a hyphen.
        folder: made if missing.

    Raises:
        OSError: it cannot be written.

    Examples:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from ganfast.applications.augment import save_image_folder
        >>> images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
        >>> save_image_folder(images, torch.tensor([0, 1]), ("a", "b"), Path(tempfile.mkdtemp()))
    """
    from torchvision.transforms.functional import to_pil_image

    for label, name in enumerate(classes):
        place = folder / name.replace("/", "-").replace("\\", "-")
        place.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images[labels == label]):
            to_pil_image(image).save(place / f"{index:05d}.png")
