"""README, the documents and the docstrings' examples are executed as they stand."""

from __future__ import annotations

import code
import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch
from paths import ROOT

import ganfast

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [
    "ganfast",
    *(
        module.name
        for module in pkgutil.walk_packages(ganfast.__path__, "ganfast.")
        if not module.name.endswith("__main__")
        and "._native" not in module.name  # the libraries are no Python modules
    ),
]


def blocks(language: str, *documents: Path) -> list[str]:
    text = "\n".join(document.read_text() for document in documents or DOCUMENTS)
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in fenced if name == language]


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_python_blocks_run_in_order(name):
    namespace: dict[str, object] = {}
    found = blocks("python", ROOT / name)
    assert len(found) >= 4
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in found:
            exec(compile(block, name, "exec"), namespace)
    assert "1 pair and 0 losses fused" in printed.getvalue()


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_python_blocks_paste_into_a_prompt(name):
    """Line by line: an empty line ends a definition there, and only an empty line does."""
    console = code.InteractiveConsole()
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        for block in blocks("python", ROOT / name):
            for line in [*block.splitlines(), ""]:
                incomplete = console.push(line)
            assert not incomplete, block
    assert errors.getvalue() == ""
    assert "1 pair and 0 losses fused" in printed.getvalue()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"`make ([\w-]+)", text))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ganfast_commands_parse(monkeypatch):
    from ganfast import cli

    commands = re.findall(r"^ganfast (.+)$", "\n".join(blocks("")), re.MULTILINE)
    assert len(commands) >= 3
    seen = []
    for subcommand in cli.COMMANDS:
        monkeypatch.setattr(subcommand, "run", lambda args: seen.append(args) or 0)
    for command in commands:
        assert cli.main(shlex.split(command)) == 0, command
    assert len(seen) == len(commands)


def test_ci_runs_what_contributing_names():
    run = (ROOT / ".ci" / "run").read_text()
    commands = [line for line in run.splitlines() if line.startswith("make")]
    assert commands
    for command in commands:
        assert command in (ROOT / "CONTRIBUTING.md").read_text()


def test_docstrings_have_the_sections_that_the_site_renders():
    for path in (ROOT / "ganfast").rglob("*.py"):
        assert not re.search(r"^ +Example::?$", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    torch.manual_seed(0)
    result = doctest.testmod(
        module,
        extraglobs={"torch": torch, "ganfast": ganfast},
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert result.failed == 0


def test_public_functions_have_examples():
    from ganfast import backend, functional, models
    from ganfast import nn as layers

    for module in (backend, functional, layers, models):
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing) and name not in (
                "BackendChoice",
                "describe_extension",
                "GAN",
                "ConditionalGAN",
            ):
                assert ">>>" in (thing.__doc__ or ""), f"{module.__name__}.{name}"
