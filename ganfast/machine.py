"""What a measurement was taken on."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path

import torch

import ganfast

__all__ = ["fingerprint"]


def fingerprint() -> dict[str, str | int | None]:
    """Return the processor, threads, GPU, versions, commit and date, for a results file.

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
        "driver": _driver() if gpu else None,
        "torch": torch.__version__,
        "ganfast": ganfast.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, which torch does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.splitlines()[0].strip() if said.strip() else None


def _commit() -> str | None:
    source = Path(ganfast.__file__).parent.parent
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
