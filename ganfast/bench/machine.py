"""What a measurement was taken on."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

import ganfast

__all__ = ["fingerprint"]


def fingerprint() -> dict[str, str | int | None]:
    """Return the processor, threads, GPU, versions and commit, for the head of a results file.

    Example::

        >>> fingerprint()["threads"] == torch.get_num_threads()
        True
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "torch": torch.__version__,
        "ganfast": ganfast.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    source = Path(ganfast.__file__).parent.parent
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
