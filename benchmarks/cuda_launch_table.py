"""Show how batch_norm_act's CUDA kernels would be launched for DCGAN's layers, without a GPU.

Usage::

    python benchmarks/cuda_launch_table.py           # print the table
    python benchmarks/cuda_launch_table.py --write   # put it into the kernels' README.md

The launches are those of ``launch_config.h`` itself, which a C++ compiler makes a program of. The
share of a copy's bandwidth is a prediction from the constants below; nothing here was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "csrc" / "cuda" / "batch_norm_act" / "README.md"
BEGIN, END = "<!-- launches -->\n", "<!-- end of launches -->\n"

COPY_BYTES_PER_US = 3.0e6
"""Speed of a large copy: nine tenths of the 3.35 TB/s of an H100's memory."""
KERNEL_US = 2.0
"""Until a kernel's first loads have arrived, and from its last loads to its end."""
EARLY_KERNEL_US = 1.0
"""The same of a kernel that has started before the one in front of it ended."""
TICKET_US = 1.5
"""A fence, a ticket and the loads of partial sums, for each level of chunks."""


def launches() -> list[dict[str, Any]]:
    """Compile launch_config.h and return the launch of each layer, batch, layout and dtype."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "launches"
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-w", "-DGANFAST_EMULATE_CUDA"]
        command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/emulator'}"]
        command += ["-isystem", str(Path(torch.__file__).parent / "include")]
        command += [str(ROOT / "benchmarks" / "cuda_launch_table.cpp"), "-o", str(program)]
        subprocess.run(command, check=True)
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in lines.splitlines()]


def waves(launch: dict[str, Any], backward: bool) -> float:
    """Return how often the launch's blocks fill the device."""
    return launch["blocks"] / (launch["multiprocessors"] * launch["resident"][backward])


def moved_bytes(launch: dict[str, Any], backward: bool) -> int:
    """Return what the kernels read and write, as if no cache served a second read."""
    tensor = launch["batch"] * launch["channels"] * launch["side"] ** 2 * launch["element_bytes"]
    transfers = {(True, False): 2, (True, True): 3, (False, False): 3, (False, True): 5}
    return int(tensor * transfers[launch["on_chip"], backward])


def predicted_us(launch: dict[str, Any], backward: bool) -> float:
    """Predict the time of the kernels from the bytes, the waves and the latencies above."""
    often = waves(launch, backward)
    # The last wave may be in part; less than a wave may leave multiprocessors with nothing to do.
    busy = often / math.ceil(often) if often > 1 else 1.0
    busy = min(busy, launch["blocks"] / launch["multiprocessors"])
    latency = KERNEL_US
    if not launch["on_chip"]:
        levels = (launch["chunks"] > 1) + (launch["groups"] > 0)
        latency += EARLY_KERNEL_US + TICKET_US * levels
    return latency + moved_bytes(launch, backward) / (COPY_BYTES_PER_US * busy)


def predicted_share(launch: dict[str, Any], backward: bool) -> float:
    """Predict bytes a second, as a share of those of a copy of the same tensor."""
    moved = moved_bytes(launch, backward)
    copied = moved_bytes({**launch, "on_chip": True}, False)
    copy_us = KERNEL_US + copied / COPY_BYTES_PER_US
    return moved / predicted_us(launch, backward) / (copied / copy_us)


def table() -> str:
    """Return the table of all launches in Markdown; forward and backward have one launch."""
    heads = ["channels, plane", "batch", "layout", "dtype", "form", "blocks", "threads"]
    heads += ["waves", "MB moved", "share of copy"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for launch in launches():
        form = f"cluster of {launch['cluster']}"
        if not launch["on_chip"]:
            form = f"{launch['chunks']} chunks"
            form += f" in {launch['groups']} groups" if launch["groups"] else ""
        x, y = launch["threads"]
        pair = [
            " / ".join(f"{what(launch, backward):.{digits}f}" for backward in (False, True))
            for what, digits in (
                (waves, 2),
                (lambda *a: moved_bytes(*a) / 1e6, 1),
                (predicted_share, 2),
            )
        ]
        cells = [
            f"{launch['channels']}, {launch['side']}x{launch['side']}",
            launch["batch"],
            "channels-last" if launch["channels_last"] else "NC*",
            "float32" if launch["element_bytes"] == 4 else "bfloat16",
            form,
            launch["blocks"],
            x if y == 1 else f"{x}x{y}",
            *pair,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    """Return README.md's text with the table as it is now."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def main() -> int:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write it into README.md")
    if parser.parse_args().write:
        README.write_text(with_table(README.read_text()))
    else:
        print(table(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
