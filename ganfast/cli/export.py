"""``ganfast export``: a trained generator for machines without ganfast."""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from pathlib import Path

import torch

from ganfast.cli.errors import CommandError
from ganfast.models import stock
from ganfast.training import CheckpointError, load_run

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
    paths = [Path(name) for name in args.files]
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise CommandError(f"{path} must end in one of {', '.join(SUFFIXES)}")
        if path.suffix == ".onnx" and importlib.util.find_spec("onnxscript") is None:
            raise CommandError(f"{path} needs onnxscript: pip install onnxscript")
        if not path.absolute().parent.is_dir():
            raise CommandError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        gan, state = load_run(args.run_path)
    except CheckpointError as error:
        raise CommandError(str(error)) from error
    generator, example = stock(gan.generator), (torch.randn(2, *gan.latent),)
    batch = ({0: torch.export.Dim("batch")},)
    for path in paths:
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                save_file(gan.generator.state_dict(), path)
            elif path.suffix == ".pt2":
                program = torch.export.export(generator, example, dynamic_shapes=batch)
                torch.export.save(program, path)
            else:
                _write_onnx(generator, example, path)
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error}") from error
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
