"""The ``ganfast`` command: one module a subcommand, each with ``add_parser`` and ``run``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ganfast.cli import anomaly, augment, bench, classify, edit, export, info, sample, train, verify
from ganfast.cli.errors import INTERRUPTED, CommandError
from ganfast.training.processes import one_reporter

__all__ = ["main"]

COMMANDS = (train, sample, export, classify, augment, anomaly, edit, bench, verify, info)
BAD_INPUT = 2
# The extra that brings each optional package.
EXTRAS = {
    "safetensors": "train",
    "PIL": "train",
    "matplotlib": "train",
    "scipy": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "torchvision": "train",
    "tqdm": "train",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Example:
        >>> from ganfast.cli import main
        >>> main(["train", "--steps", "0"])
        2
    """
    parser = _Parser(prog="ganfast", description="Train GANs faster, with unchanged numbers.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    try:
        args = parser.parse_args(argv)
        code: int = args.run(args)
        return code
    except CommandError as error:
        message, code = f"error: {error}", BAD_INPUT
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = EXTRAS[package]
        message = f"error: {package} is not installed; it comes with: pip install ganfast[{extra}]"
        code = BAD_INPUT
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    with one_reporter() as reports:
        if reports:
            print(f"ganfast: {message}", file=sys.stderr, flush=True)
    return code
