"""The house rules that a reader relies on: who imports whom, and how heavy an import is."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ganfast

PACKAGE = Path(ganfast.__file__).parent
# A room may import from rooms further down, and from itself.
FLOORS = [
    {"__main__"}, {"cli"}, {"bench"}, {"verify"}, {"applications"}, {"training"}, {"models"},
    {"fusion"}, {"nn"}, {"functional"}, {"backend"}, {"ops"}, {"activations"},
    {"machine"}, {"_version"},
]  # fmt: skip
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = ["triton", "torchvision", "matplotlib", "sklearn", "tqdm", "PIL", "safetensors"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "ganfast" and len(parts) > 1 and parts[1] in FLOOR_OF:
                rooms.add(parts[1])
    return rooms


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = room_of(path)
    assert room in FLOOR_OF, f"{path}: say in FLOORS where this room stands"
    for other in imported_rooms(path) - {room}:
        assert FLOOR_OF[other] > FLOOR_OF[room], f"{room} imports {other}, which stands above it"


@pytest.mark.parametrize("op", [p for p in (PACKAGE / "ops").iterdir() if p.is_dir()], ids=str)
def test_backends_of_an_op_do_not_import_one_another(op):
    if op.name == "__pycache__":
        return
    for path in op.glob("*.py"):
        own = path.stem.partition("_")[0]
        for other in {"eager", "reference", "triton"} - {own}:
            if own in {"eager", "reference", "triton"}:
                text = path.read_text()
                assert f"{op.name}.{other}" not in text
                assert f"{op.name} import {other}" not in text


def modules_after(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True, env={**os.environ},
    )  # fmt: skip
    return set(result.stdout.split())


def test_import_is_light():
    with_torch, with_ganfast = modules_after("import torch"), modules_after("import ganfast")
    for heavy in HEAVY:
        assert heavy not in with_ganfast or heavy in with_torch, heavy
    extra = {name.partition(".")[0] for name in with_ganfast - with_torch}
    assert extra <= {"ganfast", "torch"} | set(sys.stdlib_module_names), extra


def test_import_changes_nothing_in_torch():
    code = """
import torch
before = {name: getattr(torch.nn, name) for name in dir(torch.nn)}
import ganfast
assert before == {name: getattr(torch.nn, name) for name in dir(torch.nn)}
"""
    modules_after(code)


def test_files_stay_short():
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "csrc").rglob("*.*")]:
        assert len(path.read_text(errors="replace").splitlines()) <= 400, path
    setup = PACKAGE.parent / "setup.py"
    assert len(setup.read_text().splitlines()) < 125
