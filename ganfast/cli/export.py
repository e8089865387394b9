"""``ganfast export``: a trained generator for machines without ganfast."""

from __future__ import annotations

import argparse
import importlib.util
import io
import warnings
from pathlib import Path

import torch

from ganfast.cli.errors import CommandError, check_writable, require, writing_to
from ganfast.models import stock
from ganfast.training import load_run
from ganfast.training.output import write_whole

__all__ = ["add_parser", "run"]

SUFFIXES = (".pt2", ".onnx", ".safetensors")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help="write a trained generator for machines without ganfast",
        description="Write the generator of a run, in evaluation mode and of torch's own layers: "
        "FILE.pt2 (torch.export), FILE.onnx (needs onnxscript) or FILE.safetensors (weights alone, "
        "under the run's own names).",
    )
    parser.add_argument(
        "run_path",
        metavar="RUN",
        help="folder that 'ganfast train --out' wrote to, or a checkpoint in it (best.safetensors)",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help=f"ending in {', '.join(SUFFIXES)}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write each file."""
    require("safetensors")
    from safetensors.torch import save

    paths = [Path(name) for name in args.files]
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise CommandError(f"{path} must end in one of {', '.join(SUFFIXES)}")
        if path.suffix == ".onnx" and importlib.util.find_spec("onnxscript") is None:
            raise CommandError(f"{path} needs onnxscript: pip install onnxscript")
        check_writable(path)
    gan, state = load_run(args.run_path)
    generator, example = stock(gan.generator), (torch.randn(2, *gan.latent),)
    batch = ({0: torch.export.Dim("batch")},)
    for path in paths:
        with writing_to(path, "file"):
            if path.suffix == ".safetensors":
                write_whole(path, save(gan.generator.state_dict()))
            elif path.suffix == ".pt2":
                program = torch.export.export(generator, example, dynamic_shapes=batch)
                buffer = io.BytesIO()  # torch aborts the process where a disk is full
                torch.export.save(program, buffer)
                write_whole(path, buffer.getvalue())
            else:
                _write_onnx(generator, example, path)
        print(f"generator of step {state['step']}: {path}")
    return 0


def _write_onnx(generator: torch.nn.Module, example: tuple[torch.Tensor, ...], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own internals
        torch.onnx.export(
            generator, example, path, dynamo=True, verbose=False,
            input_names=["latent"], output_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
