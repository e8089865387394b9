"""``ganfast anomaly``: detectors trained on normal images only."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ganfast.applications.anomaly import (
    METHODS,
    DetectorOptions,
    evaluate,
    load_detector,
    save_detector,
    train_detector,
)
from ganfast.applications.anomaly.figures import draw_errors, plot_auroc
from ganfast.applications.anomaly.protocol import table
from ganfast.applications.records import Record
from ganfast.cli.errors import CommandError, output_folder, require, writing_to
from ganfast.cli.experiment import RECORD, Experiment, add_experiment, each_once
from ganfast.cli.options import chosen, positive
from ganfast.cli.processes import own_device
from ganfast.training import DataError, keep_freed_memory, load_images
from ganfast.training.data import image_files
from ganfast.training.errors import counted
from ganfast.training.progress import Steps, progress_bars

__all__ = ["add_parser", "run"]

ALL = "all"
PLOT, WORST, DETECTOR = "auroc.png", "worst.png", "detector.safetensors"
FILES = (PLOT, WORST, "detector*.safetensors")
SCORES = ("file", "score", "share of normal images below")
SEARCH_IMAGES = 500
PREFERRED = "features"
NAMES = ("data", "root", "validation", "normal", "methods", "seeds", "device")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "anomaly",
        help="find unusual images with a GAN trained on normal ones",
        description="Train detectors on one class of --data at a time and measure, on the test "
        "set, how well their scores tell it from the others; or score a folder of images with "
        "--model and --score. --out gets record.json, auroc.png, worst.png and, with the first "
        "seed, detector-CLASS.safetensors, which holds the normal images it compares with.",
    )
    parser.set_defaults(run=run)
    protocol = add_experiment(parser, DetectorOptions, seeds=(0,), out=None)
    what = protocol.add_mutually_exclusive_group()
    what.add_argument(
        "--normal", nargs="+", metavar="CLASS", default=[ALL],
        help="classes to take as normal, one after another (default: all)",
    )  # fmt: skip
    what.add_argument(
        "--all-normal", action="store_true",
        help="every image of --data is normal: train one detector and measure nothing, for "
        "there are no anomalies to measure with",
    )  # fmt: skip
    described = "; ".join(f"{name}: {words}" for name, words in METHODS.items())
    protocol.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD",
        help=f"scores to make (default: all; with --score {PREFERRED}). {described}",
    )  # fmt: skip
    protocol.add_argument(
        "--search-images", type=positive, default=SEARCH_IMAGES,
        help="test images that the method latent scores, drawn once (default: %(default)s)",
    )  # fmt: skip
    group = parser.add_argument_group("scoring a folder")
    group.add_argument("--model", metavar="FILE", help="a detector of an earlier run")
    group.add_argument("--score", metavar="FOLDER", help="images to score")


def run(args: argparse.Namespace) -> int:
    """Train and measure, or score."""
    require("torchvision", "sklearn", "matplotlib", "safetensors", "tqdm")
    if (args.model is None) != (args.score is None):
        raise CommandError("--model and --score belong together: a detector, and images for it")
    if (args.validation or args.resume) and (args.score or args.all_normal):
        raise CommandError("--validation and --resume need --data with classes to measure with")
    args.methods = each_once(args.methods or ([PREFERRED] if args.score else METHODS))
    out = Path(args.out)
    keep_freed_memory()
    if args.score:
        _score(args, Path(args.score).expanduser(), out)
    elif args.all_normal:
        _train_on_everything(args, out)
    else:
        _measure(args)
    return 0


def _score(args: argparse.Namespace, folder: Path, out: Path) -> None:
    methods: Sequence[str] = args.methods
    if len(methods) > 1:
        raise CommandError(f"--score takes one of --methods, got {' '.join(methods)}")
    (method,) = methods
    detector = load_detector(args.model, own_device(args.device))
    options = detector.options
    images = load_images(
        f"folder:{folder}", image_size=options.image_size, channels=options.channels
    ).images
    with progress_bars() as progress:
        scores = detector.score(images, method, progress)
    shares = detector.share_below(scores, method).tolist()
    with writing_to(out), out.open("w", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(SCORES)
        for path, score, share in zip(image_files(folder), scores.tolist(), shares, strict=True):
            writer.writerow([path.relative_to(folder), f"{score:.6g}", f"{share:.4g}"])
    above = sum(share == 1 for share in shares)
    print(
        f"{counted(len(shares), 'image')} scored by {method}, {above} above all "
        f"{len(detector.held_out)} held-out normal images: {out}"
    )


def _train_on_everything(args: argparse.Namespace, out: Path) -> None:
    normal = load_images(
        args.data, root=args.root, download=args.download, image_size=args.image_size
    )
    with output_folder(out, RECORD, *FILES), progress_bars() as progress:
        detector = train_detector(
            normal, _options(args, args.seeds[0]), methods=args.methods,
            device=own_device(args.device), progress=progress,
        )  # fmt: skip
        save_detector(detector, out / DETECTOR)
    print(f"trained on {counted(len(detector.known), 'image')} of {normal.name}: {out / DETECTOR}")


def _measure(args: argparse.Namespace) -> None:
    experiment = Experiment("anomaly", args)
    # torchvision calls MNIST's classes "0 - zero" and so on.
    classes = tuple(name.partition(" - ")[0] for name in experiment.data.classes)
    data, out = replace(experiment.data, classes=classes), experiment.out
    normals = list(classes) if args.normal == [ALL] else args.normal
    for name in normals:
        if name not in classes:
            raise DataError(f"{data.name} has no class {name!r}; it has {', '.join(classes)}")
    usual = {**vars(DetectorOptions()), "search_images": SEARCH_IMAGES}
    changed = [name for name in usual if name in args and getattr(args, name) != usual[name]]
    settings = asdict(_options(args, 0))
    del settings["seed"]

    def measure(*, seed: int, normal: str, progress: Steps) -> dict[str, Any]:
        detector, outcome = evaluate(
            data, normal, _options(args, seed), methods=args.methods,
            search_images=args.search_images, device=experiment.device, progress=progress,
        )  # fmt: skip
        if seed == args.seeds[0]:
            word = re.sub(r"\W+", "-", normal)
            save_detector(detector, out / f"detector-{word}.safetensors")
        return asdict(outcome)

    experiment.run(
        {"seed": args.seeds, "normal": normals},
        measure,
        table,
        lambda record: _draw(record, data.test.images, out),
        told=lambda row: row["auroc"],
        names=[*NAMES, *changed],
        options={
            "methods": args.methods,
            "training_images": len(data.train),
            "test_images": len(data.test),
            "search_images": min(args.search_images, len(data.test)),
            **settings,
            "channels": data.train.image_shape[0],
        },
        files=FILES,
    )


def _options(args: argparse.Namespace, seed: int) -> DetectorOptions:
    return DetectorOptions(**chosen(args, DetectorOptions), seed=seed)


def _draw(record: Record, images: Tensor, out: Path) -> tuple[str, ...]:
    print("areas under the ROC curve")
    methods = record.options["methods"]
    plot_auroc(record, out / PLOT)
    method = PREFERRED if PREFERRED in methods else methods[0]
    first = record.seeds[0]["seed"]
    cases = {row["normal"]: row["worst"][method] for row in record.seeds if row["seed"] == first}
    draw_errors(images, cases, method, out / WORST)
    return PLOT, WORST
