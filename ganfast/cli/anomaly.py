"""``ganfast anomaly``: detectors trained on normal images only."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from ganfast.applications.anomaly import (
    METHODS,
    DetectorOptions,
    Outcome,
    evaluate,
    load_detector,
    save_detector,
    train_detector,
)
from ganfast.applications.anomaly.figures import draw_errors, plot_auroc
from ganfast.applications.anomaly.protocol import scored_part, table
from ganfast.cli.errors import CommandError, output_folder, require, writing_to
from ganfast.cli.experiment import Experiment, add_device, add_experiment, each_once, with_deviation
from ganfast.cli.options import chosen, positive
from ganfast.cli.processes import own_device
from ganfast.training import DataError, keep_freed_memory, load_images
from ganfast.training.data import image_files
from ganfast.training.errors import counted

__all__ = ["add_parser", "run"]

ALL = "all"
RECORD, PLOT, WORST, DETECTOR = "record.json", "auroc.png", "worst.png", "detector.safetensors"
FILES = (RECORD, PLOT, WORST, "detector*.safetensors")
SCORES = ("file", "score", "share of normal images below")
SEARCH_IMAGES = 500
PREFERRED = "features"
NAMES = ("data", "normal", "methods", "seeds")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "anomaly",
        help="find unusual images with a GAN trained on normal ones",
        description="Train detectors on one class of --data at a time and measure, on the test "
        "set, how well their scores tell it from the others; or score a folder of images with "
        "--model and --score. A detector's file holds the normal images it compares with.",
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
    add_device(parser)
    group = parser.add_argument_group("scoring a folder")
    group.add_argument("--model", metavar="FILE", help="a detector.safetensors of an earlier run")
    group.add_argument("--score", metavar="FOLDER", help="images to score")


def run(args: argparse.Namespace) -> int:
    """Train and measure, or score."""
    require("torchvision", "sklearn", "matplotlib", "safetensors")
    if (args.model is None) != (args.score is None):
        raise CommandError("--model and --score belong together: a detector, and images for it")
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
    scores = detector.score(images, method)
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
    with output_folder(out, *FILES):
        detector = train_detector(
            normal, _options(args, args.seeds[0]), methods=args.methods,
            device=own_device(args.device),
        )  # fmt: skip
        save_detector(detector, out / DETECTOR)
    print(f"trained on {counted(len(detector.known), 'image')} of {normal.name}: {out / DETECTOR}")


def _measure(args: argparse.Namespace) -> None:
    experiment = Experiment("anomaly", args)
    # torchvision calls MNIST's classes "0 - zero" and so on.
    classes = tuple(name.partition(" - ")[0] for name in experiment.data.classes)
    experiment.data = replace(experiment.data, classes=classes)
    normal = list(classes) if args.normal == [ALL] else each_once(args.normal)
    for name in normal:
        if name not in classes:
            raise DataError(
                f"{experiment.data.name} has no class {name!r}; it has {', '.join(classes)}"
            )
    outcomes: list[Outcome] = []
    with output_folder(experiment.out, *FILES):
        try:
            _evaluate_each(args, experiment, normal, outcomes)
        finally:  # a run that is interrupted leaves what it measured
            if outcomes:
                _draw(args, experiment, outcomes)
    _print_table(table(outcomes), args.methods)
    files = (experiment.out / name for name in (RECORD, PLOT, WORST))
    print("area under the ROC curve; see {}, {} and {}".format(*files))


def _evaluate_each(
    args: argparse.Namespace, experiment: Experiment, normal: Sequence[str], outcomes: list[Outcome]
) -> None:
    """Add an outcome for every seed and class, seeds outermost, and keep the record up to date."""
    usual = {**vars(DetectorOptions()), "search_images": SEARCH_IMAGES}
    changed = [name for name in usual if name in args and getattr(args, name) != usual[name]]
    settings = asdict(_options(args, 0))
    del settings["seed"]
    options = {
        "data": args.data,
        "training_images": len(experiment.data.train),
        "test_images": len(experiment.data.test),
        "search_images": min(args.search_images, len(experiment.data.test)),
        **settings,
        "channels": experiment.data.train.image_shape[0],
    }
    seeds = each_once(args.seeds)
    started = perf_counter()
    for seed in seeds:
        for name in normal:
            detector, outcome = evaluate(
                experiment.data, name, _options(args, seed),
                methods=args.methods, search_images=args.search_images,
                device=experiment.device,
            )  # fmt: skip
            if seed == args.seeds[0]:
                word = "" if len(normal) == 1 else "-" + re.sub(r"\W+", "-", name)
                save_detector(detector, experiment.out / f"detector{word}.safetensors")
            outcomes.append(outcome)
            found = "  ".join(f"{method} {value:.4f}" for method, value in outcome.auroc.items())
            to_do = len(seeds) * len(normal) - len(outcomes)
            left_s = (perf_counter() - started) / len(outcomes) * to_do
            left = f"; about {left_s / 60:.1f} minutes left" if to_do else ""
            print(f"normal {name}, seed {seed}: {found}{left}", flush=True)
            experiment.record(
                [*NAMES, *changed], options, table(outcomes), [each.row() for each in outcomes]
            )


def _options(args: argparse.Namespace, seed: int) -> DetectorOptions:
    return DetectorOptions(**chosen(args, DetectorOptions), seed=seed)


def _draw(args: argparse.Namespace, experiment: Experiment, outcomes: Sequence[Outcome]) -> None:
    plot_auroc(table(outcomes), args.methods, experiment.out / PLOT)
    method = PREFERRED if PREFERRED in args.methods else args.methods[0]
    part = scored_part(experiment.data, method, args.search_images)
    images = experiment.data.test.images[part]
    cases = {
        outcome.normal: (images, outcome.scores[method], outcome.anomalous[part])
        for outcome in outcomes
        if outcome.seed == args.seeds[0]
    }
    draw_errors(cases, method, experiment.out / WORST)


def _print_table(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    width = max(len("normal"), *(len(row["normal"]) for row in rows))
    print(f"{'normal':<{width}}" + "".join(f"{method:>18}" for method in methods))
    for row in rows:
        cells = (
            with_deviation(row[method], row[f"{method} deviation"], row["seeds"])
            for method in methods
        )
        print(f"{row['normal']:<{width}}" + "".join(f"{cell:>18}" for cell in cells))
