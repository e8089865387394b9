"""Build, test and time ganfast on this machine's GPU, in parts that each have a time limit.

Usage::

    python benchmarks/gpu_report.py OUT               # what `make gpu-report OUT=folder` runs
    python benchmarks/gpu_report.py OUT --minutes 4   # values and headline timings, then the rest
    python benchmarks/gpu_report.py OUT --only float32 step
    python benchmarks/gpu_report.py OUT --device cpu  # the same parts, shortened, without a GPU

Works on a copy of the tree, without network or git. Parts run in the order of their importance:
values, headline timings, tests, the rest; those for which no time is left are left out. What each
says is in OUT as it says it: report.txt (a summary), log.txt, tests.txt, verify-*.jsonl,
bench.jsonl. The exit code is 1 where a test or ``ganfast verify`` failed or did not end within its
limit, or the extension could not be built.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SUMMARY_LINES = 45
GRACE_S = 5
"""What a part that is interrupted has left to say what it found."""


class Part(NamedTuple):
    """One command of the report.

    Attributes:
        name: for people, and for --only.
        command: program and arguments.
        limit_s: after which it is stopped, and the next one begins.
        counts: whether its failure is the report's.
        environment: what it runs with besides this process's own.
        least_s: time left with which it is worth starting.
    """

    name: str
    command: list[str]
    limit_s: float
    counts: bool = False
    environment: dict[str, str] = {}  # noqa: RUF012
    least_s: float = 10


def parts(out: Path, device: str) -> list[Part]:
    """Return the parts in their order; without a GPU, shortened ones."""
    return _on_gpu(out) if device == "cuda" else _on_cpu(out)


def _on_gpu(out: Path) -> list[Part]:
    # Each call in a graph on an input of its own that is in no cache; "overhead" times the host.
    in_graphs = ["--graphs", "--cold", "--layout", "NC*", "channels-last"]

    def bench(name: str, limit_s: float, suite: str, *options: str, peers: str = "eager") -> Part:
        command = _python("-m", "ganfast", "bench", suite, "--device", "cuda", *options)
        command += ["--json", str(out / "bench.jsonl"), "--against", *peers.split()]
        return Part(name, command, limit_s)

    def values(backend: str, limit_s: float) -> Part:
        command = _python("-m", "ganfast", "verify", "--device", "cuda", "--backend", backend)
        command += ["--json", str(out / f"verify-{backend}.jsonl")]
        return Part(f"verify-{backend}", command, limit_s, counts=True, least_s=20)

    def tests(name: str, limit_s: float, chosen: str, require: str) -> Part:
        command = _python("-m", "pytest", "-q", "-m", "gpu", "-k", chosen, "-W", "default")
        command += ["-p", "no:benchmark", *_in_parallel(), "tests"]
        environment = {"GANFAST_REQUIRE": f"{require},cuda", "OMP_NUM_THREADS": "1"}
        return Part(name, command, limit_s, True, environment, least_s=30)

    sanitize = ["sh", "tests/emulator/sanitize_cuda.sh"]
    return [
        Part("build", _python("benchmarks/gpu_build.py"), 240, counts=True),
        Part("machine", _python("-m", "ganfast", "info"), 90),
        values("native", 90),
        bench("float32", 60, "ops", *in_graphs),
        bench("step", 60, "step", peers="eager all-bf16"),
        tests("tests-native", 150, "not triton", "native"),
        bench("losses", 30, "losses", "--graphs"),
        bench("bfloat16", 60, "ops", *in_graphs, "--dtype", "bfloat16"),
        bench("overhead", 20, "overhead"),
        values("triton", 90),
        tests("tests-triton", 180, "triton", "triton"),
        bench("triton", 60, "ops", *in_graphs, peers="triton"),
        Part("sanitize", sanitize, 300, True, {"PYTHON": sys.executable}, least_s=120),
        # Inductor takes most of the time.
        bench("compile", 120, "ops", *in_graphs, peers="compile"),
        bench("compile-step", 120, "step", peers="compile"),
    ]


def _on_cpu(out: Path) -> list[Part]:
    # No build: in place it would replace the extension of a tree that is in use.
    bench = _python("-m", "ganfast", "bench")
    common = ["--device", "cpu", "--json", str(out / "bench.jsonl"), "--rounds", "3"]
    verify = _python("-m", "ganfast", "verify", "--device", "cpu", "--backend", "eager")
    verify += ["--dtype", "float32", "--json", str(out / "verify-eager.jsonl")]
    tests = _python("-m", "pytest", "-q", "-k", "test_matches_the_script and eager")
    return [
        Part("machine", _python("-m", "ganfast", "info"), 90),
        Part("verify-eager", verify, 90, counts=True),
        Part("float32", [*bench, "ops", *common, "--shapes", "4x8x4x4"], 40),
        Part("tests-native", [*tests, "tests/ops/test_gan_loss.py"], 120, counts=True),
        Part("losses", [*bench, "losses", *common, "--shapes", "64"], 40),
        Part("overhead", [*bench, "overhead", *common], 40),
    ]


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _in_parallel() -> list[str]:
    """Return pytest's option for a process a core, where xdist is installed."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(max(1, min(12, (os.cpu_count() or 1) - 2)))]


def run(part: Part, log: Path, limit_s: float) -> str:
    """Run a part with its output in a file; return "" where it succeeded, else what happened.

    What it has started ends with it: it runs in a process group of its own.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **part.environment}
    environment["PYTHONPATH"] = str(ROOT)
    with log.open("a") as file:
        file.write(f"\n$ {shlex.join(part.command)}\n")
        file.flush()
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,  # not a session: what ends this one's session ends the part
        )  # fmt: skip
        try:
            code = process.wait(limit_s)
            return f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then says what has failed
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            return f"stopped after {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def report(chosen: Sequence[Part], out: Path, seconds: float) -> int:
    """Run parts until the time is up; return 1 where one that counts failed or was stopped."""
    summary, end = out / "report.txt", time.monotonic() + seconds
    summary.write_text("")
    failed, left_out = [], []
    for part in chosen:
        begin = time.monotonic()
        limit_s = min(part.limit_s, end - begin - GRACE_S)
        said: list[str] = []
        if limit_s < part.least_s:
            left_out.append(part.name)
            line = f"== {part.name}: left out, {max(0, end - begin):.0f} s are left"
        else:
            log = out / ("tests.txt" if part.name.startswith("tests") else "log.txt")
            at = log.stat().st_size if log.exists() else 0
            problem = run(part, log, limit_s)
            failed += [part.name] if problem and part.counts else []
            said = log.read_bytes()[at:].decode(errors="replace").strip().splitlines()[1:]
            line = f"== {part.name}: {problem or 'done'}, {time.monotonic() - begin:.0f} s"
        text = "\n".join([line, *said[-SUMMARY_LINES:], ""])
        with summary.open("a") as file:
            file.write(f"{text}\n")
        print(text, flush=True)
    ending = f"FAILED: {', '.join(failed)}" if failed else "no part failed"
    ending += f"; left out: {', '.join(left_out)}" if left_out else ""
    with summary.open("a") as file:
        file.write(f"{ending}\n")
    print(f"{ending}; see {summary}")
    return int(bool(failed))


def main() -> int:
    """Run the parts asked for; return 1 where a value is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole (default: 9)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts alone")
    args = parser.parse_args()
    out = args.out.resolve()
    chosen = parts(out, args.device)
    names = [part.name for part in chosen]
    if unknown := set(args.only or ()) - set(names):
        parser.error(f"--only {' '.join(sorted(unknown))}: the parts are {', '.join(names)}")
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends its part too
    chosen = [part for part in chosen if not args.only or part.name in args.only]
    return report(chosen, out, 60 * args.minutes)


if __name__ == "__main__":
    sys.exit(main())
