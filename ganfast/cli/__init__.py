"""The ``ganfast`` command: one module a subcommand, each with ``add_parser`` and ``run``."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from ganfast.cli import anomaly, augment, bench, classify, edit, export, info, sample, train, verify
from ganfast.cli.errors import INTERRUPTED, CommandError
from ganfast.training import CheckpointError, DataError, DivergenceError, ProcessError
from ganfast.training.errors import first_line
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


OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "Stride calculation overflowed",
    "integer multiplication overflow",
    "larger than the maximum",
)
"""How torch words it, in a RuntimeError."""


def _is_lack_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Examples:
        >>> from ganfast.cli import main
        >>> main(["train", "--steps", "0"])
        2
    """
    parser = _Parser(prog="ganfast", description="Train GANs faster, with unchanged numbers.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
    try:
        args = parser.parse_args(argv)
        code: int = args.run(args)
        return code
    except (CommandError, CheckpointError, DataError, DivergenceError, ProcessError) as error:
        message, code = f"error: {error}", BAD_INPUT
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = EXTRAS[package]
        message = f"error: {package} is not installed; it comes with: pip install ganfast[{extra}]"
        code = BAD_INPUT
    except OSError as error:
        reason = error.strerror or first_line(error)
        where = f"{error.filename}: " if error.filename else ""
        message, code = f"error: {where}{reason}", BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        message, code = f"error: not enough memory: {first_line(error)}", BAD_INPUT
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    with one_reporter() as reports:
        if reports:
            print(f"ganfast: {message}", file=sys.stderr, flush=True)
    return code
