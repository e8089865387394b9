"""``ganfast sample``: images from a trained generator."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ganfast.cli.errors import in_one_line, require
from ganfast.cli.options import positive, seed
from ganfast.models import GAN, slerp
from ganfast.training import load_run
from ganfast.training.figures import COLUMNS, save_animation, save_grid

__all__ = ["add_parser", "run"]

FRAMES_PER_PATH = 16
PATHS = 8
BATCH = 64
FILES = ("samples.png", "interpolation.png", "interpolation.gif")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "sample",
        help="make images with a trained generator",
        description="Draw samples.png, interpolation.png (a row between two latent vectors) "
        "and interpolation.gif from the newest checkpoint of a run.",
    )
    parser.add_argument(
        "run_path",
        metavar="RUN",
        help="folder that 'ganfast train --out' wrote to, or a checkpoint in it (best.safetensors)",
    )
    parser.add_argument("--out", metavar="PATH", help="folder for the files (default: the run's)")
    parser.add_argument("--count", type=positive, default=64, help="images (default: 64)")
    parser.add_argument("--seed", type=seed, default=0, help="of the latent vectors (default: 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the three files."""
    require("torchvision", "PIL", "safetensors")
    run_path = Path(args.run_path)
    out = Path(args.out) if args.out else run_path if run_path.is_dir() else run_path.parent
    with in_one_line(out):
        gan, state = load_run(run_path)
    rng = torch.Generator().manual_seed(args.seed)
    paths = torch.randn(PATHS, *gan.latent, generator=rng)
    shares = torch.linspace(0, 1, COLUMNS)
    rows = [slerp(paths, paths.roll(-1, 0), float(share)) for share in shares]
    turns = [
        slerp(a[None], b[None], frame / FRAMES_PER_PATH)
        for a, b in zip(paths, paths.roll(-1, 0), strict=True)
        for frame in range(FRAMES_PER_PATH)
    ]
    samples, ways, film = (out / name for name in FILES)
    with in_one_line(out):
        out.mkdir(parents=True, exist_ok=True)
        latent = torch.randn(args.count, *gan.latent, generator=rng)
        save_grid(_images(gan, latent), samples)
        save_grid(_images(gan, torch.stack(rows, 1).flatten(0, 1)), ways)
        save_animation(_images(gan, torch.cat(turns)), film)
    print(f"generator of step {state['step']}: {samples}, {ways}, {film}")
    return 0


def _images(gan: GAN, latent: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([gan.generator(part) for part in latent.split(BATCH)])
