"""Install the wheel beside several releases of torch, without a compiler, and test it.

Usage::

    python benchmarks/torch_matrix.py 2.14.1 2.11.0:python3.10   # torch, and an interpreter

Tests run from a copy outside the repository. Prints a row of a table each; a release that has no
library in the wheel is tested without the native backend.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from build_wheel import ROOT, python_with

TESTS = (
    "ops/test_batch_norm_act.py", "ops/test_activations.py", "nn/test_nn.py",
    "fusion/test_torch_tools.py", "verify/test_verify.py",
)  # fmt: skip
READ = ("tests", "docs", "csrc", "README.md", "pyproject.toml")
"""What tests read of the repository, which is all but the package."""
HEADER = "| torch | Python | installed in | CPU part | tests |\n|---|---|---|---|---|"
PROBE = """
import json, sys, torch
from ganfast.ops import extension
print(json.dumps([torch.__version__, sys.version.split()[0], *extension.part("cpu")]))
"""


def run(python: Path, *words: str | Path, cwd: Path, check: bool = True, **variables: str) -> str:
    """Run Python where no compiler is found and nothing of the repository; return what it said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": str(python.parent), "CXX": "no-such-compiler", **variables}
    result = subprocess.run(
        [str(python), *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    if check and result.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{result.stdout}{result.stderr}")
    return result.stdout


def row(wheel: Path, python: Path, folder: Path) -> tuple[str, bool]:
    """Install the wheel and test it; return the table's row, and whether all is well."""
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "-q", "pytest", "hypothesis", cwd=folder)
    run(*pip, "uninstall", "-q", "-y", "ganfast", cwd=folder)
    start = time.perf_counter()
    run(*pip, "install", "-q", "--no-index", wheel, cwd=folder)
    seconds = time.perf_counter() - start
    torch, version, description, reason = json.loads(run(python, "-c", PROBE, cwd=folder))
    for name in READ:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    tests = [f"tests/{name}" for name in TESTS]
    # What the eager backend computes, the tests of the other one compare with.
    backend = ("native", "not eager") if description else ("", "not native")
    words = ("-m", "pytest", "-q", *tests, "-k", backend[1])
    said = run(python, *words, cwd=folder, check=False, GANFAST_REQUIRE=backend[0])
    (ROOT / "build" / f"test-torch-{torch}.log").write_text(said)
    found = re.findall(r"^[= ]*(\d+ (?:passed|failed|error).*?) in ", said, re.MULTILINE)
    summary = found[-1] if found else "did not run"
    cells = [torch, version, f"{seconds:.1f} s", description or f"missing: {reason}", summary]
    well = "passed" in summary and "failed" not in summary and "error" not in summary
    return f"| {' | '.join(cells)} |", well


def main() -> int:
    """Print the table; return 1 if a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("releases", nargs="+", metavar="RELEASE[:PYTHON]")
    parser.add_argument("--wheel", type=Path, help="default: the newest of dist/")
    options = parser.parse_args()
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    wheel = options.wheel or (wheels[-1] if wheels else sys.exit("no wheel in dist/: make wheel"))
    print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB\n\n{HEADER}", flush=True)
    all_well = True
    for text in options.releases:
        release, _, interpreter = text.partition(":")
        with (
            python_with(release, interpreter or sys.executable) as python,
            tempfile.TemporaryDirectory() as folder,
        ):
            line, well = row(wheel.resolve(), python, Path(folder))
        print(line, flush=True)
        all_well &= well
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
