"""The Triton kernels that add up many scores, on few of them: on a GPU or in the interpreter."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICES, INTERPRETED
from test_binary_cross_entropy import check as check_cross_entropy
from test_binary_cross_entropy import make as make_cross_entropy
from test_gan_loss import check_discriminator, check_generator, check_split, scores

import ganfast

WHERE = [device for device in DEVICES if device == "cuda" or INTERPRETED]
if not WHERE:
    pytest.skip(
        "needs a GPU or TRITON_INTERPRET=1; test_triton.py runs it", allow_module_level=True
    )


@pytest.fixture
def small_blocks(monkeypatch):
    """Cut few scores into several parts of several blocks."""
    from ganfast.ops.losses import triton

    monkeypatch.setattr(triton, "SCORES_PER_BLOCK", 32)
    assert triton._parts(301) == (3, 4)


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("form", ["logits", "probabilities"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_triton_cross_entropy_in_parts(small_blocks, device, form, reduction, dtype):
    x, target = make_cross_entropy(form, (301,), device, dtype)
    with ganfast.backend.use("triton"):
        check_cross_entropy(form, x, target, reduction=reduction, weight=torch.rand(301).to(x))


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("form", ["logits", "probabilities", "hinge", "squared", "linear"])
@pytest.mark.parametrize("sizes", [(301, 1000), (301, 7), (7, 301)], ids=str)
def test_triton_gan_loss_in_parts(small_blocks, device, form, sizes):
    real, fake = (scores(form, (size,), device) for size in sizes)
    with ganfast.backend.use("triton"):
        check_discriminator(form, real, fake)
        check_generator(form, fake)
        check_split(form, torch.cat([fake, fake]))
