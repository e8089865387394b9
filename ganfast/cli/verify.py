"""``ganfast verify``: compare every kernel with torch in float64 on this machine."""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch

from ganfast import backend
from ganfast.cli.errors import CommandError, opened
from ganfast.cli.options import shape
from ganfast.fusion import fuse
from ganfast.machine import fingerprint
from ganfast.verify import DTYPES, Row, verify, verify_model

__all__ = ["add_parser", "run"]

FAILED = 1
SHOWN_FAILURES = 5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "verify",
        help="compare every kernel with torch in float64",
        description="Compare every op, backend, dtype and layout with torch in float64. A kernel's "
        "error must stay within a bound that is derived from the inputs alone; torch's own error, "
        "and its share of that bound, are shown for information. The exit code is 1 if a kernel "
        "fails. With --model, fuse that model and compare its training with the model as it is.",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if torch sees a GPU)")
    parser.add_argument(
        "--backend", choices=backend.NAMES, nargs="+", help="default: all that the device has"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, nargs="+", help="default: all; the model's own with --model"
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help="a function without arguments, or a class, that makes your nn.Module",
    )
    parser.add_argument(
        "--input",
        type=shape,
        nargs="+",
        metavar="NxCxHxW",
        help="the shape of each of the model's inputs, such as 4x3x64x64",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write one JSON object a line: the machine, then each row when it is known; - for "
        "here instead of the table",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table and the failures; return 1 if there are any."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if bool(args.model) != bool(args.input):
        raise CommandError("--model MODULE:FACTORY and --input SHAPE belong together")
    chosen = {"device": device, "backends": args.backend}
    model = _make(args.model) if args.model else None
    try:
        torch.empty(0, device=device)
        if model is None:
            found = verify(**chosen, dtypes=args.dtype or list(DTYPES))
        else:
            found = verify_model(model, args.input, **chosen, dtypes=args.dtype)
            if args.json != "-":
                print(fuse(copy.deepcopy(model)))
        found = found if args.json == "-" else _printed(found)
        rows = list(_written(found, args.json) if args.json else found)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise CommandError(str(error).partition("\n")[0]) from error
    failed = sum(bool(row.failures) for row in rows)
    if args.json != "-":
        count = sum(row.results for row in rows)
        print(f"{count} results in {len(rows)} rows, {failed} rows failed")
    return FAILED if failed else 0


def _make(spec: str) -> torch.nn.Module:
    """Import the factory of the model, from the current directory too, and call it."""
    module, _, factory = spec.partition(":")
    if not module or not factory:
        raise CommandError(f"--model must be MODULE:FACTORY, got {spec!r}")
    sys.path.insert(0, os.getcwd())
    try:
        model = getattr(importlib.import_module(module), factory)()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CommandError(f"--model {spec}: {reason}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(model, torch.nn.Module):
        raise CommandError(f"--model {spec} made a {type(model).__name__}, not an nn.Module")
    return model


def _printed(rows: Iterable[Row]) -> Iterator[Row]:
    header = (
        "op",
        "backend",
        "dtype",
        "layout",
        "results",
        "error",
        "torch's",
        "of bound",
        "torch's",
    )
    widths = (20, 7, 8, 13, 7, 8, 8, 8, 8)
    print("  ".join(f"{text:{width}}" for text, width in zip(header, widths, strict=True)))
    for row in rows:
        worst = row.worst
        print(
            f"{row.op:20}  {row.backend:7}  {row.dtype:8}  {row.layout:13}  {row.results:7}  "
            f"{worst.error:8.1e}  {worst.torch_error:8.1e}  {worst.share:8.0%}  "
            f"{worst.torch_share:8.0%}  "
            f"{'FAIL' if row.failures else 'PASS'}",
            flush=True,
        )
        for failure in row.failures[:SHOWN_FAILURES]:
            print(f"    {failure}")
        if len(row.failures) > SHOWN_FAILURES:
            print(f"    and {len(row.failures) - SHOWN_FAILURES} more")
        yield row


def _written(rows: Iterable[Row], path: str) -> Iterator[Row]:
    """Write the machine, and each row as it comes, so that an interruption loses none."""
    with nullcontext(sys.stdout) if path == "-" else opened(path, "w") as file:
        print(json.dumps({"machine": fingerprint()}), file=file, flush=True)
        for row in rows:
            content = {**row._asdict(), "worst": row.worst._asdict()}
            print(json.dumps(content), file=file, flush=True)
            yield row
