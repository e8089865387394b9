"""Build, test and time ganfast on this machine's GPU, in parts that each have a time limit.

Usage::

    python benchmarks/gpu_report.py OUT               # what `make gpu-report OUT=folder` runs
    python benchmarks/gpu_report.py OUT --device cpu  # the same parts, shortened, without a GPU

Works on a copy of the tree, without network or git. What each part says is in OUT as soon as the
part ends: report.txt (a summary), log.txt, tests.txt, verify.json, bench.jsonl. The exit code is 1
where a test or ``ganfast verify`` failed, or the extension could not be built.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SUMMARY_LINES = 45


class Part(NamedTuple):
    """One command of the report.

    Attributes:
        name: for people.
        command: arguments of Python.
        limit_s: after which it is stopped, and the next one begins.
        counts: whether its failure is the report's.
        environment: what it runs with besides this process's own.
    """

    name: str
    command: list[str]
    limit_s: int
    counts: bool = False
    environment: dict[str, str] = {}  # noqa: RUF012


def parts(out: Path, device: str) -> list[Part]:
    """Return the parts in their order; without a GPU, shortened ones."""
    gpu = device == "cuda"
    bench = ["-m", "ganfast", "bench"]
    common = ["--device", device, "--json", str(out / "bench.jsonl")]
    short = [] if gpu else ["--rounds", "3"]
    shapes = [] if gpu else ["--shapes", "4x8x4x4"]
    against = ["--against", "eager", *(["compile", "native", "triton"] if gpu else [])]
    # In CUDA graphs, so that the device is timed; "overhead" times the host.
    layers = [*shapes, *against, "--layout", "NC*", "channels-last", *(["--graphs"] if gpu else [])]
    build = {"GANFAST_BUILD": "cuda" if gpu else "none"}
    require = {"GANFAST_REQUIRE": "native,triton,cuda"} if gpu else {}
    tests = ["-m", "pytest", "-q", "-k", "cuda" if gpu else "test_matches_the_script and eager"]
    tests += ["tests"] if gpu else ["tests/test_gan_loss.py"]
    verify = ["-m", "ganfast", "verify", "--device", device, "--json", str(out / "verify.json")]
    verify += [] if gpu else ["--backend", "eager", "--dtype", "float32"]
    found = [
        Part("machine", ["-m", "ganfast", "info"], 20),
        Part("build", ["setup.py", "build_ext", "--inplace"], 160, gpu, build),
        Part("verify", verify, 45, True),
        Part("tests", tests, 110, True, require),
        Part("float32", [*bench, "ops", *common, *layers, *short], 40),
        Part("bfloat16", [*bench, "ops", *common, *layers, *short, "--dtype", "bfloat16"], 40),
    ]
    for suite, limit_s in (("losses", 20), ("overhead", 20), ("step", 60)):
        found.append(Part(suite, [*bench, suite, *common, "--against", "eager", *short], limit_s))
    # A build in place would replace the extension of a tree that is in use.
    return found if gpu else [part for part in found if part.name not in ("build", "step")]


def run(part: Part, log: Path) -> str:
    """Run a part with its output in a file; return "" where it succeeded, else what happened."""
    command = [sys.executable, *part.command]
    environment = {**os.environ, **part.environment, "PYTHONPATH": str(ROOT)}
    with log.open("a") as file:
        file.write(f"\n$ {shlex.join(command)}\n")
        file.flush()
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                timeout=part.limit_s,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"stopped after {part.limit_s} s"
    return f"exit code {code}" if code else ""


def main() -> int:
    """Run every part; return 1 where a value is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report, wrong = out / "report.txt", False
    report.write_text("")
    for part in parts(out, args.device):
        log = out / ("tests.txt" if part.name == "tests" else "log.txt")
        begin, at = time.monotonic(), log.stat().st_size if log.exists() else 0
        problem = run(part, log)
        wrong |= problem.startswith("exit") and part.counts
        said = log.read_bytes()[at:].decode(errors="replace").strip().splitlines()
        summary = "\n".join(said[1:][-SUMMARY_LINES:])
        line = f"== {part.name}: {problem or 'done'}, {time.monotonic() - begin:.0f} s"
        with report.open("a") as file:
            file.write(f"{line}\n{summary}\n\n")
        print(f"{line}\n{summary}\n", flush=True)
    print("WRONG: see the parts that failed" if wrong else f"no part failed; see {report}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
