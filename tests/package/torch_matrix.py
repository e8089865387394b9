"""Install the wheel beside several releases of torch, without a compiler, and test it.

Usage::

    python tests/package/torch_matrix.py 2.14.1 2.11.0:python3.10   # torch, and an interpreter

Each release has an environment under build/ (gigabytes; build_wheel.py's is taken, and a new one is
deleted afterwards). Tests run from a copy outside the repository. Prints a row of a table each, also
where a release has no library in the wheel: then without the native backend.
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

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "ops/test_batch_norm_act.py", "ops/test_activations.py", "nn/test_nn.py",
    "nn/test_gan_loss_nn.py", "fusion/test_fusion.py", "fusion/test_torch_tools.py",
    "verify/test_verify.py",
)  # fmt: skip
HEADER = "| torch | Python | installed in | CPU part | tests |\n|---|---|---|---|---|"
PROBE = """
import json, sys, torch
from ganfast.ops import extension
print(json.dumps([torch.__version__, sys.version.split()[0], *extension.part("cpu")]))
"""


def run(*command: str | Path, cwd: Path, check: bool = True) -> str:
    """Run a command where no compiler is found; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": str(Path(command[0]).parent), "CXX": "no-such-compiler"}
    result = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    if check and result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def row(wheel: Path, release: str, interpreter: str, folder: Path) -> tuple[str, bool]:
    """Return the table's row for one release of torch, and whether all is well."""
    environment = ROOT / "build" / f"env-torch-{release}"
    python, is_new = environment / "bin" / "python", not environment.exists()
    if is_new:
        subprocess.run([interpreter, "-m", "venv", environment], check=True)
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    try:
        run(*pip, "install", "-q", f"torch=={release}", "numpy", "pytest", "hypothesis", cwd=folder)
        run(*pip, "uninstall", "-q", "-y", "ganfast", cwd=folder)
        start = time.perf_counter()
        run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
        seconds = time.perf_counter() - start
        said = json.loads(run(python, "-c", PROBE, cwd=folder))
        native = said[2] is not None
        for name in ("tests", "pyproject.toml"):
            source, to = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, to, dirs_exist_ok=True)
            else:
                shutil.copy2(source, to)
        require = {"GANFAST_REQUIRE": "native"} if native else {}
        os.environ.update(require)
        output = run(
            python, "-m", "pytest", "-q", *(f"tests/{name}" for name in TESTS), cwd=folder,
            check=False,
        )  # fmt: skip
        (ROOT / "build" / f"test-torch-{release}.log").write_text(output)
        found = re.search(r"^=*\s*(\d+ (?:passed|failed).*?) in ", output, re.MULTILINE)
        summary = found[1] if found else "did not run"
        part = said[2] or f"missing: {said[3]}"
        cells = [said[0], said[1], f"{seconds:.1f} s", part, summary]
        return f"| {' | '.join(cells)} |", "passed" in summary and "failed" not in summary
    finally:
        os.environ.pop("GANFAST_REQUIRE", None)
        if is_new:
            shutil.rmtree(environment)


def main() -> int:
    """Print the table; return 1 if a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("releases", nargs="+", metavar="RELEASE[:PYTHON]")
    parser.add_argument("--wheel", type=Path, help="default: the newest of dist/")
    options = parser.parse_args()
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    wheel = options.wheel or (wheels[-1] if wheels else sys.exit("no wheel in dist/: make wheel"))
    print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB\n\n{HEADER}", flush=True)
    well = True
    for release in options.releases:
        version, _, interpreter = release.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            line, is_well = row(
                wheel.resolve(), version, interpreter or sys.executable, Path(folder)
            )
        print(line, flush=True)
        well &= is_well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
