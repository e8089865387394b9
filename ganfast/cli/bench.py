"""``ganfast bench``: time ganfast beside its peers on this machine."""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ganfast.bench import SUITES, Options, compare, fingerprint
from ganfast.bench.case import PASSES
from ganfast.bench.peers import PEERS, why_missing
from ganfast.bench.plot import bars, roofline
from ganfast.bench.result import Result, geometric_mean
from ganfast.cli.errors import CommandError, check_writable, opened, require
from ganfast.cli.options import positive, shape
from ganfast.cli.processes import own_device
from ganfast.training import keep_freed_memory
from ganfast.verify.runner import DTYPES

__all__ = ["add_parser", "run"]

CAPABILITIES = {"baseline": "default", "avx2": "avx2", "avx512": "avx512"}
"""Names of instruction sets in ganfast, and in torch."""
COLD_BYTES = 2**28
"""More than the caches of any processor or GPU at hand."""
PEAK_TARGET = 0.75
"""Largest share of eager's peak memory."""
LABEL_WIDTHS = (13, 31, 16)
"""Widths of the columns of shapes, variants and passes."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="time ganfast beside its peers",
        description="Time ganfast and its peers, interleaved, after their values were compared. "
        "Times are medians; ratios are speedups of ganfast. Peers: "
        + "; ".join(f"{name}: {what}" for name, what in PEERS.items())
        + ".",
    )
    parser.add_argument("suite", choices=sorted(SUITES), help="what to time")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if torch sees a GPU)")
    parser.add_argument(
        "--capability",
        choices=CAPABILITIES,
        help="instruction set of a CPU that ganfast and torch use (default: its widest)",
    )
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=[])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=[], help="default: float32")
    parser.add_argument(
        "--layout", nargs="+", choices=("NC*", "channels-last"), default=[], help="default: NC*"
    )
    parser.add_argument(
        "--shapes", nargs="+", type=shape, metavar="NxCxHxW", default=[], help="such as 64x128x8x8"
    )
    parser.add_argument(
        "--against", nargs="*", choices=tuple(PEERS), metavar="PEER", default=["eager"],
        help=f"of {', '.join(PEERS)} (default: eager)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=positive, default=30, help="measurements (default: 30)")
    parser.add_argument(
        "--cold", action="store_true", help="take inputs in turn that exceed every cache"
    )
    parser.add_argument(
        "--graphs",
        action="store_true",
        help="time replays of CUDA graphs of at least 20 calls, which take inputs in turn, without "
        "host time",
    )
    parser.add_argument(
        "--keep-memory", action="store_true", help="keep freed memory, as ganfast's training does"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="append one JSON object a line as each case is measured"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw bars of the ratios (PNG)")
    parser.add_argument(
        "--roofline", metavar="FILE", help="draw the bandwidth beside that of a copy (PNG)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a table and write the files."""
    if args.capability:
        _hold_to(args.capability)
    device = str(own_device(args.device))
    for name in SUITES[args.suite].ignored:
        if getattr(args, name):
            raise CommandError(f"bench {args.suite} has no use for --{name}; leave it out")
    for path in map(Path, filter(None, (args.plot, args.roofline))):
        require("matplotlib")
        if path.suffix != ".png":
            raise CommandError(f"{path} must end in .png")
        check_writable(path)
    if args.json:
        check_writable(Path(args.json))
    if args.graphs and torch.device(device).type != "cuda":
        raise CommandError(f"--graphs needs --device cuda, got {device}")
    try:
        missing = {p: why_missing(p, SUITES[args.suite].peers, device) for p in args.against}
        options = Options(
            device, tuple(args.passes), tuple(args.dtype or ["float32"]),
            tuple(args.layout or ["NC*"]), tuple(args.shapes),
            tuple(peer for peer, why in missing.items() if not why), COLD_BYTES * args.cold,
            args.graphs,
        )  # fmt: skip
        machine = {**fingerprint(), "keep_memory": args.keep_memory and keep_freed_memory()}
        print(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None))
        for peer, why in missing.items():
            if why:
                print(f"{peer} is not measured: {why}")
        found = _measured(args.suite, options, args, machine)
        found = _written(found, args.json) if args.json else found
        results = list(_printed(found, options.against))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise CommandError(str(error).partition("\n")[0] or type(error).__name__) from error
    _print_means(results)
    _print_taken(results)
    if args.plot:
        bars(results, args.plot)
    if args.roofline:
        roofline(results, args.roofline)
    return 0


def _hold_to(capability: str) -> None:
    """Hold ganfast, torch and oneDNN to an instruction set; each reads it at its first use."""
    for variable, value in (
        ("GANFAST_CPU_CAPABILITY", capability),
        ("ATEN_CPU_CAPABILITY", CAPABILITIES[capability]),
        (
            "DNNL_MAX_CPU_ISA",
            {"baseline": "SSE41", "avx512": "AVX512_CORE"}.get(capability, "AVX2"),
        ),
    ):
        os.environ[variable] = value
    if torch.backends.cpu.get_cpu_capability().lower() != CAPABILITIES[capability]:
        has = torch.backends.cpu.get_cpu_capability()
        raise CommandError(f"--capability {capability}: this processor, or torch here, has {has}")


def _measured(
    suite: str, options: Options, args: argparse.Namespace, machine: dict[str, Any]
) -> Iterator[Result]:
    for case in SUITES[suite].cases(options):
        taken = case.footprints() if case.footprints else {}  # before times: it makes its own
        times = compare(case.build(), rounds=args.rounds, device=options.device, graphs=args.graphs)
        milliseconds = {
            name: (1e3 * median, 1e3 * lower, 1e3 * upper)
            for name, (median, lower, upper) in times.items()
        }
        yield Result(
            suite, case.shape, case.variant, case.passes, milliseconds, case.bytes_moved,
            case.copy_bytes, case.images, args.cold, args.graphs, machine,
            {name: found.peak_bytes for name, found in taken.items()},
            {name: found.kept_bytes for name, found in taken.items()},
            {name: found.kernels for name, found in taken.items() if found.kernels is not None},
            {name: dict(found.parts) for name, found in taken.items() if found.parts},
        )  # fmt: skip


def _written(results: Iterator[Result], path: str) -> Iterator[Result]:
    """Append each result to a file as it comes, so that an interruption loses none."""
    with opened(path, "a") as file:
        for result in results:
            print(result.to_json(), file=file, flush=True)
            yield result


def _printed(results: Iterator[Result], peers: tuple[str, ...]) -> Iterator[Result]:
    """Print each result as it comes, as a row of a table."""
    first = next(results)
    others = [*peers, *(name for name in first.ms if name not in (*peers, "ganfast"))]
    print(f"ganfast: ms and the columns after it; {', '.join(others)}: speedup of ganfast")
    headings = (*_figures(first), *others)

    def show(labels: Iterable[str], values: Iterable[str]) -> None:
        columns = [f"{label:{width}}" for label, width in zip(labels, LABEL_WIDTHS, strict=True)]
        columns += [f"{v:>{max(len(h), 7)}}" for h, v in zip(headings, values, strict=True)]
        print("  ".join(columns), flush=True)

    show(("shape", "", "passes"), headings)
    for result in itertools.chain((first,), results):
        ratios = (f"{result.ratio(name):.2f}" if name in result.ms else "" for name in others)
        figures = (*_figures(result).values(), *ratios)
        show((result.shape, result.variant, result.passes), figures)
        yield result


def _figures(result: Result) -> dict[str, str]:
    """Return the columns of ganfast itself, by heading."""
    median, lower, upper = result.ms["ganfast"]
    figures = {"ms": f"{median:.4f}", "±": f"{(upper - lower) / 2 / median:.0%}"}
    if result.bytes:
        figures["GB/s"] = f"{result.gigabytes_per_second('ganfast'):.1f}"
    if not math.isnan(result.share_of_copy):
        figures["of copy"] = f"{result.share_of_copy:.0%}"
    if result.images:
        figures["images/s"] = f"{1e3 * result.images / median:.0f}"
    if result.peak_bytes:
        figures["peak MB"] = f"{result.peak_bytes['ganfast'] / 1e6:.0f}"
    if not math.isnan(result.over_floor):
        figures["/ floor"] = f"{result.over_floor:.2f}"
    if result.kernels:
        figures["kernels"] = str(result.kernels["ganfast"])
    return figures


def _print_means(results: list[Result]) -> None:
    ratios: dict[tuple[str, str], list[float]] = {}
    for result in results:
        for name in result.ms:
            if name != "ganfast":
                ratios.setdefault((result.passes, name), []).append(result.ratio(name))
    for (passes, name), values in ratios.items():
        print(f"{passes}: speedup over {name} {geometric_mean(values):.2f} (geometric mean), "
              f"least {min(values):.2f}")  # fmt: skip


def _print_taken(results: list[Result]) -> None:
    """Print the peak memory and the kernels of every provider."""
    for result in results:
        if result.peak_bytes:
            each = (
                f"{name} {peak / 1e6:.0f} ({result.kept_bytes[name] / 1e6:.0f})"
                for name, peak in result.peak_bytes.items()
            )
            print(f"{result.shape}: peak MB (and after a step): {', '.join(each)}")
        if result.kernels:
            each = (f"{name} {count}" for name, count in result.kernels.items())
            print(f"{result.shape}: kernels a step: {', '.join(each)}")
        share = result.share_of_peak("eager")
        if not math.isnan(share):
            print(f"{result.shape}: peak memory is {share:.2f} of eager's "
                  f"(target: at most {PEAK_TARGET})")  # fmt: skip
