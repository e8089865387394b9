"""``ganfast info``: what this installation can use on this machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

import torch

import ganfast
from ganfast import backend
from ganfast.machine import native_precisions

__all__ = ["add_parser", "run"]

PACKAGES = ("triton", "torchvision", "numpy", "matplotlib", "scikit-learn", "tqdm")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("info", help="say which kernels serve which operation, and why")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print versions, devices, the extension's parts and the table of the backends."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    cuda = torch.version.cuda or "none"
    lines = [
        f"ganfast {ganfast.__version__}, torch {torch.__version__} (CUDA {cuda}), "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"CPU threads: {torch.get_num_threads()}",
        f"GPU: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none visible'}",
        *(f"native precisions on {d}: {', '.join(native_precisions(d))}" for d in devices),
        "packages: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "",
        *backend.describe_extension(),
        "",
        backend.explain(),
    ]
    print("\n".join(lines))
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
