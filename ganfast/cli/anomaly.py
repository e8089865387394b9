"""``ganfast anomaly``: detectors trained on normal images only."""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ganfast.applications.anomaly import (
    METHODS,
    Detector,
    DetectorOptions,
    Outcome,
    evaluate,
    load_detector,
    save_detector,
    train_detector,
)
from ganfast.applications.anomaly.figures import draw_errors, plot_auroc
from ganfast.applications.anomaly.protocol import scored_part, table
from ganfast.applications.labelled import LabelledData, load_labelled
from ganfast.applications.records import Record
from ganfast.cli.errors import CommandError, require
from ganfast.cli.options import add_data_options, positive, seed
from ganfast.models.dcgan import IMAGE_SIZES
from ganfast.training import (
    CheckpointError,
    DataError,
    DivergenceError,
    keep_freed_memory,
    load_images,
)
from ganfast.training.data import image_files

__all__ = ["add_parser", "run"]

ALL = "all"
RECORD, PLOT, WORST, DETECTOR = "record.json", "auroc.png", "worst.png", "detector.safetensors"
SCORES = ("file", "score", "share of normal images below")
SEARCH_IMAGES = 500
PREFERRED = "features"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    default = DetectorOptions()
    parser = subparsers.add_parser(
        "anomaly",
        help="find unusual images with a GAN trained on normal ones",
        description="Train detectors on one class of --data at a time and measure, on the test "
        "set, how well their scores tell it from the others; or score a folder of images with "
        "--model and --score. A detector's file holds the normal images it compares with.",
    )
    parser.set_defaults(run=run)
    add_data_options(parser)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--normal", nargs="+", metavar="CLASS", default=[ALL],
        help="classes to take as normal, one after another (default: all)",
    )  # fmt: skip
    what.add_argument(
        "--all-normal", action="store_true",
        help="every image of --data is normal: train one detector and measure nothing, for "
        "there are no anomalies to measure with",
    )  # fmt: skip
    described = "; ".join(f"{name}: {what}" for name, what in METHODS.items())
    add(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD",
        help=f"scores to make (default: all four; with --score {PREFERRED}). {described}",
    )  # fmt: skip
    add("--seeds", nargs="+", type=seed, default=[0], help="one detector each (default: 0)")
    add("--out", metavar="PATH", required=True, help="folder to write to; with --score a CSV file")
    group = parser.add_argument_group("scoring a folder")
    group.add_argument("--model", metavar="FILE", help="a detector.safetensors of an earlier run")
    group.add_argument("--score", metavar="FOLDER", help="images to score")
    add = parser.add_argument_group("training").add_argument
    add(
        "--image-size", type=int, choices=IMAGE_SIZES, default=default.image_size,
        help="side of the images in pixels (default: %(default)s)",
    )  # fmt: skip
    sizes = {
        "width": "feature maps beside the image",
        "latent": "length of a latent vector",
        "steps": "steps of the GAN",
        "encoder-steps": "steps of the encoder",
        "search-steps": "steps of the method latent",
    }
    for name, meaning in sizes.items():
        value = getattr(default, name.replace("-", "_"))
        add(f"--{name}", type=positive, default=value, help=f"{meaning} (default: {value})")
    add(
        "--search-images", type=positive, default=SEARCH_IMAGES,
        help="test images that the method latent scores, drawn once (default: %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Train and measure, or score."""
    require("torchvision", "sklearn", "matplotlib", "safetensors")
    if (args.model is None) != (args.score is None):
        raise CommandError("--model and --score belong together: a detector, and images for it")
    methods = args.methods or ([PREFERRED] if args.score else list(METHODS))
    methods = list(dict.fromkeys(methods))
    out = Path(args.out)
    keep_freed_memory()
    try:
        if args.score:
            _score(args.model, Path(args.score).expanduser(), methods, out)
            return 0
        out.mkdir(parents=True, exist_ok=True)
        if args.all_normal:
            _train_on_everything(args, methods, out)
        else:
            _measure(args, methods, out)
    except (DataError, CheckpointError, DivergenceError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error}") from error
    return 0


def _score(model: str, folder: Path, methods: Sequence[str], out: Path) -> None:
    if len(methods) > 1:
        raise CommandError(f"--score takes one of --methods, got {' '.join(methods)}")
    (method,) = methods
    detector = load_detector(model)
    options = detector.options
    images = load_images(
        f"folder:{folder}", image_size=options.image_size, channels=options.channels
    ).images
    scores = detector.score(images, method)
    shares = detector.share_below(scores, method).tolist()
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SCORES)
        for path, score, share in zip(image_files(folder), scores.tolist(), shares, strict=True):
            writer.writerow([path.relative_to(folder), f"{score:.6g}", f"{share:.4g}"])
    above = sum(share == 1 for share in shares)
    print(
        f"{len(shares)} images scored by {method}, {above} of them above all "
        f"{len(detector.held_out)} held-out normal images: {out}"
    )


def _train_on_everything(args: argparse.Namespace, methods: Sequence[str], out: Path) -> None:
    normal = load_images(
        args.data, root=args.root, download=args.download, image_size=args.image_size
    )
    options = replace(_options(args), seed=args.seeds[0])
    detector = train_detector(normal, options, methods=methods)
    save_detector(detector, out / DETECTOR)
    print(f"trained on {len(detector.known)} images of {normal.name}: {out / DETECTOR}")


def _measure(args: argparse.Namespace, methods: Sequence[str], out: Path) -> None:
    data = load_labelled(
        args.data, root=args.root, download=args.download, image_size=args.image_size
    )
    # torchvision calls MNIST's classes "0 - zero" and so on.
    data = replace(data, classes=tuple(name.partition(" - ")[0] for name in data.classes))
    normal = list(data.classes) if args.normal == [ALL] else list(dict.fromkeys(args.normal))
    for name in normal:
        if name not in data.classes:
            raise DataError(f"{data.name} has no class {name!r}; it has {', '.join(data.classes)}")
    outcomes: list[Outcome] = []
    try:
        _evaluate_each(args, data, normal, methods, out, outcomes)
    finally:  # a run that is interrupted leaves what it measured
        if outcomes:
            _draw(data, methods, outcomes, args, out)
    _print_table(table(outcomes), methods)
    print(f"area under the ROC curve; see {out / RECORD}, {out / PLOT} and {out / WORST}")


def _evaluate_each(
    args: argparse.Namespace,
    data: LabelledData,
    normal: Sequence[str],
    methods: Sequence[str],
    out: Path,
    outcomes: list[Outcome],
) -> None:
    """Add an outcome for every seed and class, seeds outermost, and keep the record up to date."""
    started = time.perf_counter()
    for number in dict.fromkeys(args.seeds):
        for name in normal:
            detector, outcome = evaluate(
                data, name, replace(_options(args), seed=number),
                methods=methods, search_images=args.search_images,
            )  # fmt: skip
            if number == args.seeds[0]:
                _save(detector, name, normal, out)
            outcomes.append(outcome)
            found = "  ".join(f"{method} {value:.4f}" for method, value in outcome.auroc.items())
            print(f"normal {name}, seed {number}: {found}", flush=True)
            _record(args, data, methods, outcomes, time.perf_counter() - started).save(out / RECORD)


def _options(args: argparse.Namespace) -> DetectorOptions:
    names = ("image_size", "width", "latent", "steps", "encoder_steps", "search_steps")
    return DetectorOptions(**{name: getattr(args, name) for name in names})


def _save(detector: Detector, name: str, normal: Sequence[str], out: Path) -> None:
    if len(normal) == 1:
        save_detector(detector, out / DETECTOR)
    else:
        word = re.sub(r"\W+", "-", name)
        save_detector(detector, out / f"detector-{word}.safetensors")


def _record(
    args: argparse.Namespace,
    data: LabelledData,
    methods: Sequence[str],
    outcomes: Sequence[Outcome],
    seconds: float,
) -> Record:
    settings: dict[str, Any] = asdict(_options(args))
    del settings["seed"]
    words = ["ganfast", "anomaly", "--data", args.data, "--normal", *args.normal]
    words += ["--methods", *methods, "--seeds", *map(str, args.seeds)]
    for name, usual in {**asdict(DetectorOptions()), "search_images": SEARCH_IMAGES}.items():
        if name in args and getattr(args, name) != usual:
            words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    options = {
        "data": args.data,
        "training_images": len(data.train),
        "test_images": len(data.test),
        "search_images": min(args.search_images, len(data.test)),
        **settings,
        "channels": data.train.image_shape[0],
    }
    return Record(
        application="anomaly",
        command=shlex.join(words),
        options=options,
        table=table(outcomes),
        seeds=[outcome.row() for outcome in outcomes],
        seconds=round(seconds, 1),
    )


def _draw(
    data: LabelledData,
    methods: Sequence[str],
    outcomes: Sequence[Outcome],
    args: argparse.Namespace,
    out: Path,
) -> None:
    plot_auroc(table(outcomes), methods, out / PLOT)
    method = PREFERRED if PREFERRED in methods else methods[0]
    part = scored_part(data, method, args.search_images)
    cases = {
        outcome.normal: (data.test.images[part], outcome.scores[method], outcome.anomalous[part])
        for outcome in outcomes
        if outcome.seed == args.seeds[0]
    }
    draw_errors(cases, method, out / WORST)


def _print_table(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    width = max(len("normal"), *(len(row["normal"]) for row in rows))
    print(f"{'normal':<{width}}" + "".join(f"{method:>18}" for method in methods))
    for row in rows:
        cells = (f"{row[method]:.4f} ± {row[f'{method} deviation']:.4f}" for method in methods)
        print(f"{row['normal']:<{width}}" + "".join(f"{cell:>18}" for cell in cells))
