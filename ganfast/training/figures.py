"""The pictures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional

__all__ = ["COLUMNS", "grid", "plot_losses", "save_animation", "save_grid"]

CELL_PIXELS = 64  # smaller images are enlarged to about this side
COLUMNS = 8
FRAME_MILLISECONDS = 80


def save_grid(images: Tensor, path: Path, columns: int = COLUMNS) -> None:
    """Save images ``[N, C, H, W]`` in [-1, 1] as a PNG, enlarged pixel by pixel."""
    from torchvision.utils import save_image

    save_image(grid(images, columns), path)


def grid(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """Lay images ``[N, C, H, W]`` in [-1, 1] out in rows, as one image in [0, 1]."""
    from torchvision.utils import make_grid

    layout: Tensor = make_grid(
        _enlarged(images),
        nrow=columns,
        padding=4,
        normalize=True,
        value_range=(-1, 1),
        pad_value=0.5,
    )
    return layout


def save_animation(images: Tensor, path: Path) -> None:
    """Save images ``[N, C, H, W]`` in [-1, 1] as a looping GIF, enlarged pixel by pixel."""
    from torchvision.transforms.functional import to_pil_image

    first, *others = [to_pil_image(image) for image in _enlarged(images).add(1).div(2).clamp(0, 1)]
    first.save(path, save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)


def _enlarged(images: Tensor) -> Tensor:
    scale = max(1, round(CELL_PIXELS / images.shape[-1]))
    return functional.interpolate(images.float(), scale_factor=scale, mode="nearest")


def plot_losses(
    columns: Mapping[str, Sequence[float]],
    path: Path,
    quality: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Plot losses, scores and Frechet distances against the step, from the tables' columns."""
    # The figure draws itself with Agg: no display is needed and pyplot's state is not touched.
    from matplotlib.figure import Figure

    rows = 2 if quality is None else 3
    figure = Figure(figsize=(8, 3.5 * rows), dpi=120, layout="constrained")
    losses, scores, *others = figure.subplots(rows, 1, sharex=True)
    steps = columns["step"]
    losses.plot(steps, columns["d_loss"], label="discriminator")
    losses.plot(steps, columns["g_loss"], label="generator")
    losses.set_ylabel("loss")
    scores.plot(steps, columns["real_score"], label="real images")
    scores.plot(steps, columns["fake_score"], label="generated images")
    values = [*columns["real_score"], *columns["fake_score"]]
    if all(0 <= value <= 1 for value in values):
        scores.set_ylabel("mean probability of being real")
        scores.set_ylim(0, 1)
    else:
        scores.set_ylabel("mean score")
    if quality is not None:
        distances = others[0]
        label = "to real images"
        distances.plot(quality["step"], quality["frechet_distance"], marker=".", label=label)
        distances.set_ylabel("Fréchet distance of features")
        distances.set_ylim(bottom=0)
    (scores, *others)[-1].set_xlabel("training step")
    for axes in (losses, scores, *others):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)
