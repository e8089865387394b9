"""``ganfast edit``: project, interpolate and inpaint given images with a trained generator."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from ganfast.applications.edit import (
    MASKS,
    SearchOptions,
    inpaint,
    make_mask,
    project,
    ways,
)
from ganfast.cli.errors import CommandError, in_one_line, require
from ganfast.cli.experiment import add_device
from ganfast.cli.options import add_options, chosen
from ganfast.cli.processes import own_device
from ganfast.models import GAN
from ganfast.training import load_run
from ganfast.training.batches import as_float
from ganfast.training.data import image_files, read_images
from ganfast.training.figures import COLUMNS, save_animation, save_grid

__all__ = ["add_parser", "run"]

FRAMES_PER_WAY = 16
HELD_FRAMES = 6  # on each image of an animation
SAMPLES = 256  # whose mean is the baseline of inpainting
MOST_COLUMNS = 16  # of inpaint.png
GREY = 0.0
NEEDED_PACKAGES = ("torchvision", "PIL", "scipy")


class Given(NamedTuple):
    """Input of an action: ``images`` are float in [-1, 1], on the generator's device."""

    gan: GAN
    names: list[str]
    images: Tensor
    options: SearchOptions
    out: Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its three actions."""
    parser = subparsers.add_parser(
        "edit",
        help="project, interpolate and inpaint images with a trained generator",
        description="Search for the latent vectors of given images, and edit the images with them.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    filling = _add_action(
        actions,
        "inpaint",
        _inpaint,
        "fill holes",
        "Write inpaint.png (columns: the images; rows: original, masked, completed, blended) and "
        "each blended image, inpaint-00.png and so on. The original's pixels behind the mask are "
        "used for the printed errors alone.",
    )
    filling.add_argument(
        "--mask",
        default="center",
        metavar="MASK",
        help=f"{', '.join(MASKS)} or FILE, white pixels are filled (default: center)",
    )
    _add_action(
        actions,
        "interpolate",
        _interpolate,
        "interpolate between images",
        "Write interpolate.png (a row for each pair of neighbours: the first image, the generated "
        "ones between them, the second image) and interpolate.gif.",
    )
    _add_action(
        actions,
        "project",
        _project,
        "find latent vectors",
        "Write project.png (rows of images, each above the image of its latent vector) and "
        "latents.npy, one latent vector an image.",
    )


def _add_action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    act: Callable[[argparse.Namespace, Given], None],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary, description=description)
    add = parser.add_argument
    add("folder", metavar="RUN", help="folder that 'ganfast train --out' wrote to")
    add("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    add("--out", metavar="PATH", help="folder for the files (default: RUN/edit)")
    add_options(parser, SearchOptions)
    add_device(parser)
    parser.set_defaults(run=run, act=act)
    return parser


def run(args: argparse.Namespace) -> int:
    """Read the run and the images, and act on them."""
    require(*NEEDED_PACKAGES)
    out = Path(args.out or Path(args.folder) / "edit")
    options = SearchOptions(**chosen(args, SearchOptions))
    with in_one_line(out):
        device = own_device(args.device)
        gan, state = load_run(args.folder)
        files = _files(args.images)
        if args.act is _interpolate and len(files) < 2:
            raise CommandError("interpolate needs at least two images, got one")
        channels, image_size, _ = gan.image_shape
        images = as_float(read_images(files, image_size, channels)).to(device)
        for network in gan[:2]:
            network.to(device)
        out.mkdir(parents=True, exist_ok=True)
        print(f"generator of step {state['step']}, {len(files)} images, on {device}")
        args.act(args, Given(gan, [file.name for file in files], images, options, out))
    return 0


def _files(words: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, words):
        if path.is_dir():
            files += image_files(path)
        elif path.is_file():
            files.append(path)
        else:
            raise CommandError(f"{path}: no such image")
    return files


def _project(args: argparse.Namespace, given: Given) -> None:
    found = project(given.gan, given.images, given.options)
    numpy.save(given.out / "latents.npy", found.latent.cpu().numpy())
    columns = min(len(given.images), COLUMNS)
    save_grid(_in_rows(columns, given.images, found.images), given.out / "project.png", columns)
    errors = (found.images - given.images).square().mean((1, 2, 3))
    _print_table(given.names, {"loss": found.loss, "squared error": errors})
    print(f"wrote project.png and latents.npy to {given.out}")


def _interpolate(args: argparse.Namespace, given: Given) -> None:
    found = project(given.gan, given.images, given.options)
    stops = ways(given.gan, found.latent, COLUMNS)
    ends = given.images[:-1, None], given.images[1:, None]
    strip = torch.cat([ends[0], stops, ends[1]], 1)
    save_grid(strip.flatten(0, 1), given.out / "interpolate.png", COLUMNS + 2)
    frames = ways(given.gan, found.latent, FRAMES_PER_WAY)
    held = frames[:, :1].expand(-1, HELD_FRAMES, *frames.shape[2:])
    last = frames[-1, -1:].expand(HELD_FRAMES, *frames.shape[2:])
    film = torch.cat([torch.cat([held, frames], 1).flatten(0, 1), last])
    save_animation(film, given.out / "interpolate.gif")
    errors = (found.images - given.images).square().mean((1, 2, 3))
    _print_table(given.names, {"loss": found.loss, "squared error": errors})
    print(f"wrote interpolate.png and interpolate.gif to {given.out}")


def _inpaint(args: argparse.Namespace, given: Given) -> None:
    from torchvision.utils import save_image

    missing = make_mask(args.mask, given.images.shape[-1], args.seed)
    missing = missing.to(given.images.device)
    found = inpaint(given.gan, given.images, missing, given.options)
    masked = given.images.masked_fill(missing, GREY)
    columns = min(len(given.images), MOST_COLUMNS)
    rows = _in_rows(columns, given.images, masked, found.completed, found.blended)
    save_grid(rows, given.out / "inpaint.png", columns)
    for index, image in enumerate(found.blended):
        path = given.out / f"inpaint-{index:02d}.png"
        save_image(image, path, normalize=True, value_range=(-1, 1))
    fillings = {
        "completed": found.completed,
        "blended": found.blended,
        "mean image": _mean_image(given).expand_as(given.images),
    }
    _print_table(
        given.names,
        {"loss": found.loss}
        | {
            name: (image - given.images)[..., missing].square().mean((1, 2))
            for name, image in fillings.items()
        },
    )
    print(
        "squared errors in the hole, if the given images are whole; "
        f"mean image: of {SAMPLES} generated ones"
    )
    print(f"wrote inpaint.png and each blended image to {given.out}")


def _mean_image(given: Given) -> Tensor:
    rng = torch.Generator().manual_seed(given.options.seed)
    latent = torch.randn(SAMPLES, *given.gan.latent, generator=rng).to(given.images.device)
    with torch.no_grad():
        mean: Tensor = given.gan.generator(latent).mean(0)
    return mean


def _in_rows(columns: int, *kinds: Tensor) -> Tensor:
    """Lay images out in rows for a grid, one row of each kind in turn."""
    parts = zip(*(kind.split(columns) for kind in kinds), strict=True)
    grey = kinds[0].new_full((columns, *kinds[0].shape[1:]), GREY)  # the colour between the images
    return torch.cat([torch.cat([row, grey[len(row) :]]) for part in parts for row in part])


def _print_table(names: Sequence[str], columns: dict[str, Tensor]) -> None:
    """Print a row for each image and one of means."""
    width = max(len("mean"), *map(len, names))
    print(" " * width, *(f"{name:>13}" for name in columns))
    for index, name in enumerate(names):
        print(f"{name:{width}}", *(f"{float(x[index]):13.4f}" for x in columns.values()))
    if len(names) > 1:
        print(f"{'mean':{width}}", *(f"{float(x.mean()):13.4f}" for x in columns.values()))
