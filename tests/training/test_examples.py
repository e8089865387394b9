"""The examples run for a few steps."""

from __future__ import annotations

import runpy
import sys

import pytest
from paths import ROOT

for package in ("torchvision", "sklearn", "tqdm"):
    pytest.importorskip(package)


def test_a_conditional_wgan_gp_trains(tmp_path, monkeypatch, capsys):
    image = tmp_path / "digits.png"
    words = ["--steps", "3", "--batch-size", "4", "--width", "4", "--out", str(image)]
    monkeypatch.setattr(sys, "argv", ["conditional_wgan_gp.py", *words])
    runpy.run_path(str(ROOT / "examples" / "conditional_wgan_gp.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "step 0: critic" in printed
    assert "layout: " in printed
    assert image.stat().st_size > 1000
