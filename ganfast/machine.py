"""The machine: what a measurement was taken on, and which precisions are native."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from pathlib import Path

import torch

import ganfast

__all__ = ["fingerprint", "native_precisions", "require_native"]

ALLOW_EMULATED = "GANFAST_ALLOW_EMULATED"
"""Environment variable that lets emulated precisions pass, for tests of values."""

NO_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
NO_FP16 = NO_BF16 | {"AVX512_CORE_BF16"}
"""Values of oneDNN's ONEDNN_MAX_CPU_ISA that leave it without these instructions in training."""


def fingerprint() -> dict[str, str | int | None]:
    """Return the processor, threads, GPU, versions, commit and date, for a results file.

    Examples:
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


def native_precisions(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Return the precisions that a device has instructions for, best for training first.

    oneDNN and PyTorch emulate the others on a CPU, which makes a training step slower than float32
    by an order of magnitude. Held to a narrower instruction set by ONEDNN_MAX_CPU_ISA,
    DNNL_MAX_CPU_ISA or ATEN_CPU_CAPABILITY, a processor has what is left. Where a processor's
    instructions are unknown (not Linux), it counts as having float32 alone; accelerators other
    than CUDA's count as having all.

    Returns:
        Some of "bf16", "fp16" and "fp32", in this order; "fp32" always.

    Source: https://uxlfoundation.github.io/oneDNN/dev_guide_data_types.html

    Examples:
        >>> native_precisions("cpu")[-1]
        'fp32'
    """
    device = torch.device(device)
    if device.type == "cuda":
        bf16: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        fp16 = torch.cuda.get_device_capability(device) >= (7, 0)  # tensor cores
    elif device.type == "cpu":
        bf16, fp16 = _native_on_cpu(_flags())
    else:
        bf16 = fp16 = True
    return ("bf16",) * bf16 + ("fp16",) * fp16 + ("fp32",)


def _native_on_cpu(flags: frozenset[str]) -> tuple[bool, bool]:
    """Say whether training in bf16 and in fp16 is native, from the flags of /proc/cpuinfo."""
    if not torch.backends.mkldnn.is_available():
        return False, False
    if platform.machine() not in ("x86_64", "AMD64"):
        return "bf16" in flags, False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False, False
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    bf16 = held not in NO_BF16 and not flags.isdisjoint({"avx512_bf16", "amx_bf16"})
    fp16 = held not in NO_FP16 and not flags.isdisjoint({"avx512_fp16", "amx_fp16"})
    return bf16, fp16


def require_native(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device emulates, unless GANFAST_ALLOW_EMULATED=1 is set.

    Raises:
        ValueError: it is not native; the message says what is.
    """
    native = native_precisions(device)
    if precision in native or os.environ.get(ALLOW_EMULATED) == "1":
        return
    on_cuda = device.type == "cuda"
    capability = torch.backends.cpu.get_cpu_capability()
    where = torch.cuda.get_device_name(device) if on_cuda else f"{_processor()} ({capability})"
    raise ValueError(
        f"precision {precision!r} needs instructions that this machine does not have: {where} has "
        f"{', '.join(native)}; use precision={native[0]!r}, or {ALLOW_EMULATED}=1 to have "
        "it emulated, many times slower"
    )


def _processor() -> str:
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _flags() -> frozenset[str]:
    """Return what /proc/cpuinfo says of the instructions, on x86 or on arm64."""
    return frozenset(word for line in _cpuinfo("flags", "Features")[:1] for word in line.split())


@functools.cache
def _cpuinfo(*keys: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.strip() in keys]


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
