"""``ganfast edit``: project, mix, inpaint and upscale given images with a trained generator."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from ganfast.applications.edit import (
    MASKS,
    SearchOptions,
    inpaint,
    make_mask,
    mix,
    project,
    resize,
    upscale,
    ways,
)
from ganfast.cli.errors import CommandError, output_folder, require
from ganfast.cli.experiment import add_device
from ganfast.cli.options import add_options, chosen, positive, reader
from ganfast.cli.processes import own_device
from ganfast.models import GAN
from ganfast.training import load_run
from ganfast.training.batches import as_float
from ganfast.training.data import image_files, read_images
from ganfast.training.errors import counted
from ganfast.training.figures import COLUMNS, save_animation, save_grid
from ganfast.training.options import Range
from ganfast.training.runs import run_folder

__all__ = ["add_parser", "run"]

FRAMES_PER_WAY = 16
HELD_FRAMES = 6  # on each image of an animation
SAMPLES = 256  # whose mean is the baseline of inpainting
MOST_COLUMNS = 16  # of inpaint.png
GREY = 0.0
FACTOR = 4
SHARE = Range(float, lambda value: 0 <= value <= 1, "must be from 0 to 1")
NEEDED_PACKAGES = ("torchvision", "PIL", "scipy", "tqdm")


class Given(NamedTuple):
    """Input of an action: ``images`` are float in [-1, 1], on the generator's device."""

    gan: GAN
    files: list[Path]
    images: Tensor
    options: SearchOptions
    out: Path

    @property
    def names(self) -> list[str]:
        """Names of the files."""
        return [file.name for file in self.files]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its actions."""
    parser = subparsers.add_parser(
        "edit",
        help="project, interpolate, inpaint and upscale images with a trained generator",
        description="Search for the latent vectors of given images, and edit the images with them.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    filling = _add_action(
        actions,
        "inpaint",
        _inpaint,
        "fill holes",
        "Write inpaint.png (columns: the images; rows: original, masked, completed, blended, "
        "expected: the mean over the searches) and each blended image, inpaint-00.png and so "
        "on. The original's pixels behind the mask are used for the printed errors alone.",
    )
    filling.add_argument(
        "--mask",
        default="center",
        metavar="MASK",
        help=f"{', '.join(MASKS)} or FILE, white pixels are filled (default: center)",
    )
    enlarging = _add_action(
        actions,
        "upscale",
        _upscale,
        "enlarge small images",
        "Write upscale.png (columns: the images; rows: original, nearest, bicubic, generated, "
        "corrected) and each corrected image, upscale-00.png and so on. Images are reduced to the "
        "generator's size over --factor; the original is used for the printed errors alone.",
    )
    enlarging.add_argument(
        "--factor", type=positive, default=FACTOR,
        help="by which the side grows (default: %(default)s)",
    )  # fmt: skip
    styling = _add_action(
        actions,
        "style",
        _style,
        "give images the style of another",
        "Interpolate the latent vector of each image with that of the last one. Write style.png (a "
        "row for each image: itself, its projection, mixed by a quarter, a half and three "
        "quarters, the last image) and the images mixed by --share, style-00.png and so on.",
    )
    styling.add_argument(
        "--share", type=reader(SHARE), default=0.5,
        help="of the last image, from 0 to 1 (default: %(default)s)",
    )  # fmt: skip
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
    add(
        "folder",
        metavar="RUN",
        help="folder that 'ganfast train --out' wrote to, or a checkpoint in it",
    )
    add("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    add("--out", metavar="PATH", help="folder for the files (default: RUN/edit)")
    add_options(parser, SearchOptions)
    add_device(parser)
    parser.set_defaults(run=run, act=act)
    return parser


def run(args: argparse.Namespace) -> int:
    """Read the run and the images, and act on them."""
    require(*NEEDED_PACKAGES)
    out = Path(args.out) if args.out else run_folder(args.folder) / "edit"
    options = SearchOptions(**chosen(args, SearchOptions), shown=True)
    device = own_device(args.device)
    gan, state = load_run(args.folder)
    files = _files(args.images)
    for act, name in ((_interpolate, "interpolate"), (_style, "style")):
        if args.act is act and len(files) < 2:
            raise CommandError(f"{name} needs at least two images, got one")
    channels, image_size, _ = gan.image_shape
    if args.act is _upscale and (args.factor < 2 or image_size % args.factor):
        raise CommandError(
            f"--factor must be above 1 and divide {image_size}, the generator's side, got "
            f"{args.factor}"
        )
    images = as_float(read_images(files, image_size, channels)).to(device)
    for network in gan[:2]:
        network.to(device)
    with output_folder(out, *WRITTEN[args.act]):
        print(f"generator of step {state['step']}, {counted(len(files), 'image')}, on {device}")
        args.act(args, Given(gan, files, images, options, out))
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


def _upscale(args: argparse.Namespace, given: Given) -> None:
    whole = given.images.shape[-1]
    side = whole // args.factor
    # Reduced from the file itself: one that is small already stays as it is.
    small = as_float(read_images(given.files, side, given.images.shape[1])).to(given.images.device)
    found = upscale(given.gan, small, given.options)
    enlarged = {
        "nearest": functional.interpolate(small, scale_factor=float(args.factor)),
        "bicubic": resize(small, whole).clamp(-1, 1),
        "generated": found.generated,
        "corrected": found.corrected,
    }
    columns = min(len(given.images), MOST_COLUMNS)
    rows = _in_rows(columns, given.images, *enlarged.values())
    save_grid(rows, given.out / "upscale.png", columns)
    _save_each(found.corrected, given.out, "upscale")
    errors = {name: (x - given.images).square().mean((1, 2, 3)) for name, x in enlarged.items()}
    _print_table(given.names, {"loss": found.loss, **errors})
    print("squared errors, if the given images are as large as the generator's")
    print(f"wrote upscale.png and each corrected image to {given.out}")


def _style(args: argparse.Namespace, given: Given) -> None:
    found = project(given.gan, given.images, given.options)
    latent, style = found.latent[:-1], found.latent[-1:]
    between = [mix(given.gan, latent, style, share) for share in (0.25, 0.5, 0.75)]
    last = given.images[-1:].expand_as(given.images[:-1])
    strip = torch.stack([given.images[:-1], found.images[:-1], *between, last], 1)
    save_grid(strip.flatten(0, 1), given.out / "style.png", strip.shape[1])
    _save_each(mix(given.gan, latent, style, args.share), given.out, "style")
    errors = (found.images - given.images).square().mean((1, 2, 3))
    _print_table(given.names, {"loss": found.loss, "squared error": errors})
    print(f"wrote style.png and each mixed image to {given.out}")


def _save_each(images: Tensor, out: Path, name: str) -> None:
    from torchvision.utils import save_image

    for index, image in enumerate(images):
        path = out / f"{name}-{index:02d}.png"
        save_image(image, path, normalize=True, value_range=(-1, 1))


def _inpaint(args: argparse.Namespace, given: Given) -> None:
    missing = make_mask(args.mask, given.images.shape[-1], args.seed)
    missing = missing.to(given.images.device)
    found = inpaint(given.gan, given.images, missing, given.options)
    masked = given.images.masked_fill(missing, GREY)
    columns = min(len(given.images), MOST_COLUMNS)
    rows = _in_rows(columns, given.images, masked, found.completed, found.blended, found.expected)
    save_grid(rows, given.out / "inpaint.png", columns)
    _save_each(found.blended, given.out, "inpaint")
    fillings = {
        "completed": found.completed,
        "blended": found.blended,
        "expected": found.expected,
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


WRITTEN = {
    _upscale: ("upscale.png", "upscale-*.png"),
    _style: ("style.png", "style-*.png"),
    _project: ("project.png", "latents.npy"),
    _interpolate: ("interpolate.png", "interpolate.gif"),
    _inpaint: ("inpaint.png", "inpaint-*.png"),
}
"""Patterns of the names of what each action writes."""


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
