"""FID, KID and the Inception score, by torch-fidelity."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ganfast.training.errors import DataError

__all__ = ["fidelity", "find_inception"]

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"


class _Images(Dataset[Tensor]):
    """Images as torch-fidelity reads them: uint8 ``[3, H, W]``."""

    def __init__(self, images: Tensor) -> None:
        self._images = images.expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def find_inception() -> Path:
    """Return the file of Inception's weights, in the folder of torch.hub.

    Nothing is downloaded: that is the user's choice.

    Raises:
        DataError: torch-fidelity is not installed, or the file is not there.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise DataError("FID, KID and IS need torch-fidelity: pip install torch-fidelity")
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not path.is_file():
        raise DataError(f"FID, KID and IS need Inception's weights: save {SOURCE} as {path}")
    return path


def fidelity(real: Tensor, fake: Tensor, *, cuda: bool = False) -> dict[str, float]:
    """Return the Frechet and kernel Inception distances and the Inception score.

    Args:
        real: images, uint8 ``[N, C, H, W]`` with 1 or 3 channels.
        fake: generated images, likewise; their number may differ.
        cuda: whether to compute on a GPU; on two CPU cores 1,000 images take about a minute.

    Returns:
        ``frechet_inception_distance``, ``kernel_inception_distance_mean`` and the like, as
        torch-fidelity names them.

    Raises:
        DataError: as ``find_inception``; there are fewer than two images of a kind.

    Source:
        Heusel et al. 2017, https://arxiv.org/abs/1706.08500; Binkowski et al. 2018,
        https://arxiv.org/abs/1801.01401; Salimans et al. 2016, https://arxiv.org/abs/1606.03498
    """
    weights = find_inception()
    fewest = min(len(real), len(fake))
    if fewest < 2:
        raise DataError(f"FID, KID and IS need two images of each kind at least, got {fewest}")
    import torch_fidelity

    figures: dict[str, float] = torch_fidelity.calculate_metrics(
        input1=_Images(fake),
        input2=_Images(real),
        cuda=cuda,
        isc=True,
        fid=True,
        kid=True,
        isc_splits=min(10, fewest),
        kid_subset_size=min(1000, fewest),
        feature_extractor_weights_path=str(weights),
        verbose=False,
        save_cpu_ram=True,  # no worker processes, which would copy the images
    )
    return figures
