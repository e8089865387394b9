"""The notebook runs from its first cell to its last, and shows what it says it does."""

from __future__ import annotations

import asyncio
import os
import re
import warnings

import pytest
from paths import ROOT

NOTEBOOK = ROOT / "examples" / "getting_started.ipynb"


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_is_committed_without_outputs():
    assert '"outputs": []' in NOTEBOOK.read_text()
    assert "image/png" not in NOTEBOOK.read_text()


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, tmp_path):
    for package in ("nbclient", "nbformat", "ipykernel", "matplotlib", "sklearn"):
        pytest.importorskip(package)
    import nbformat
    from nbclient import NotebookClient

    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of asyncio's and zmq's own
        client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}})
        asyncio.run(client.async_execute())
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "3 pairs and 0 losses fused" in printed(cells[1])
    times = [float(value) for value in re.findall(r"'(\d+\.\d+) ms'", printed(cells[2]))]
    assert len(times) == 2
    assert all(time > 0 for time in times)
    (picture,) = (o for o in cells[-1].outputs if "image/png" in o.get("data", {}))
    assert len(picture.data["image/png"]) > 10_000
