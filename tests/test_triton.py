"""Triton's kernels without a GPU: their values in the interpreter, their code by the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DEVICES, INTERPRETED, missing
from oracle import check_layer, run
from test_batch_norm_act import make

import ganfast
from ganfast.ops import _triton

TESTS = Path(__file__).parent
TESTED = ("batch_norm_act", "binary_cross_entropy", "gan_loss", "triton")
# The interpreter takes a millisecond for a line of a kernel and a program: these would take minutes.
TOO_SLOW = (
    "large_input", "gradcheck", "same_bits", "any_shape_and_stride", "70001", "30, 30", "odd_size",
    "3, 600", "8, 64, 4", "number_stands", "at_the_ends", "logits_of_any_size", "labels",
    "unusual_scores", "one_unusual",
)  # fmt: skip
# It cuts bfloat16 off where a GPU rounds.
INEXACT = ("half_types_are_computed_in_float32 and bfloat16",)


def test_the_ops_pass_their_tests_in_the_interpreter():
    if _triton.why_not("cuda"):
        missing("triton", _triton.why_not("cuda"))
    chosen = "triton and not (" + " or ".join(f"({name})" for name in TOO_SLOW + INEXACT) + ")"
    assert chosen
