"""Measure what `ganfast edit` restores of images that the generator never saw.

    python benchmarks/edit_quality.py RUN --data mnist --root PATH --out FOLDER

For both holes and for two factors of enlargement: the squared error of each filling or enlargement
beside plain ones, and a picture. `--split train` takes training images, for choosing settings; the
recorded results are of test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from ganfast.applications.edit import (
    SearchOptions,
    inpaint,
    make_mask,
    mix,
    project,
    resize,
    upscale,
)  # fmt: skip
from ganfast.applications.labelled import load_labelled
from ganfast.applications.records import Record, command_line, mean_and_deviation
from ganfast.models import GAN
from ganfast.training import load_run
from ganfast.training.batches import as_float
from ganfast.training.figures import grid

HOLES = ("center", "left")
FACTORS = (2, 4)
SHOWN = 10
USED = ("data", "split", "images", "steps", "restarts", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--root")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    started = perf_counter()
    gan, state = load_run(args.run)
    channels, side, _ = gan.image_shape
    data = load_labelled(args.data, root=args.root, image_size=side, channels=channels)
    mean = as_float(data.train.images).mean(0, keepdim=True)
    source = getattr(data, args.split).images
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(args.seed))
    images = as_float(source[order[: args.images]])
    options = SearchOptions(steps=args.steps, restarts=args.restarts, seed=args.seed, shown=True)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    rows += [fill(gan, images, mean, hole, options, args.out) for hole in HOLES]
    rows += [enlarge(gan, images, factor, options, args.out) for factor in FACTORS]
    style(gan, images, options, args.out)
    program = ["python", "benchmarks/edit_quality.py", "RUN", "--out", "FOLDER"]
    record = Record(
        "edit", command_line(program, vars(args), ["root", *USED]),
        {name: getattr(args, name) for name in USED}
        | {"generator's step": state["step"], "trained": state["options"]},
        rows, [], round(perf_counter() - started, 1),
    )  # fmt: skip
    record.save(args.out / "record.json")
    for row in rows:
        print(row)


def fill(
    gan: GAN, images: Tensor, mean: Tensor, hole: str, options: SearchOptions, out: Path
) -> dict[str, Any]:
    missing = make_mask(hole, images.shape[-1])
    found = inpaint(gan, images, missing, options)
    fillings = {
        "training mean": mean.expand_as(images),
        "best search": found.completed,
        "blended": found.blended,
        "mean of searches": found.expected,
    }
    draw(
        {"original": images, "given": images.masked_fill(missing, 0), **{
            name: image.where(missing, images) for name, image in fillings.items()
        }},
        f"Inpainting ({hole})", out / f"inpaint-{hole}.png",
    )  # fmt: skip
    errors = {
        name: (x - images)[..., missing].square().mean((1, 2)) for name, x in fillings.items()
    }
    return row(f"inpaint {hole}", errors)


def enlarge(
    gan: GAN, images: Tensor, factor: int, options: SearchOptions, out: Path
) -> dict[str, Any]:
    side = images.shape[-1]
    small = resize(images, side // factor).clamp(-1, 1)
    found = upscale(gan, small, options)
    enlarged = {
        "nearest": functional.interpolate(small, scale_factor=float(factor)),
        "bicubic": resize(small, side).clamp(-1, 1),
        "generated": found.generated,
        "corrected": found.corrected,
    }
    draw(
        {"original": images, **enlarged},
        f"Enlarged from {side // factor} to {side} pixels", out / f"upscale-{factor}.png",
    )  # fmt: skip
    errors = {name: (x - images).square().mean((1, 2, 3)) for name, x in enlarged.items()}
    return row(f"upscale {factor}", errors)


def style(gan: GAN, images: Tensor, options: SearchOptions, out: Path) -> None:
    images = images[:SHOWN]
    found = project(gan, images, options)
    last = found.latent[-1:]
    mixed = {f"{share:.0%}": mix(gan, found.latent, last, share) for share in (0.25, 0.5, 0.75)}
    draw(
        {"original": images, "projected": found.images, **mixed},
        "Mixed with the last image, by so much", out / "style.png",
    )  # fmt: skip


def row(task: str, errors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return mean squared errors of pixels in [-1, 1], and the deviation over the images."""
    found: dict[str, Any] = {"task": task}
    for name, each in errors.items():
        mean, deviation = mean_and_deviation(each.tolist())
        found |= {name: round(mean, 4), f"{name} deviation": round(deviation, 4)}
    return found


def draw(kinds: Mapping[str, Tensor], title: str, path: Path) -> None:
    images = torch.cat([kind[:SHOWN] for kind in kinds.values()])
    columns = min(SHOWN, len(images) // len(kinds))
    picture = grid(images, columns).permute(1, 2, 0).numpy()
    height, width = picture.shape[:2]
    figure = Figure(figsize=(8, 0.5 + 6.5 * height / width), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture)
    axes.set_yticks([(at + 0.5) * height / len(kinds) for at in range(len(kinds))], list(kinds))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    figure.savefig(path)


if __name__ == "__main__":
    main()
