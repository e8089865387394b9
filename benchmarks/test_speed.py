"""The cases of ``ganfast bench`` as pytest-benchmark tests: one group a case, one test a provider.

``make bench`` runs them; ``pytest-benchmark compare`` compares two saved runs. Values are compared
before anything is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ganfast.bench import SUITES, Case, Options
from ganfast.bench.case import serving
from ganfast.bench.peers import why_missing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = Options(
    DEVICE,
    dtypes=("float32", "bfloat16"),
    layouts=("NC*", "channels-last"),
    against=("eager", "compile", "triton"),
)


def cases() -> Iterator[tuple[str, Case]]:
    for name, suite in SUITES.items():
        available = tuple(p for p in OPTIONS.against if not why_missing(p, suite.peers, DEVICE))
        options = Options(DEVICE, (), OPTIONS.dtypes, OPTIONS.layouts, against=available)
        for case in suite.cases(options):
            yield f"{name} {case.shape} {case.variant} {case.passes}", case


CASES = dict(cases())


@functools.lru_cache(maxsize=1)  # the providers of a case follow one another
def build(group: str) -> dict[str, Callable[[], Any]]:
    return CASES[group].build()


@pytest.mark.parametrize(
    ("group", "provider"),
    [(group, provider) for group, case in CASES.items() for provider in case.names],
    ids=lambda value: value.replace(" ", "-"),
)
def test_speed(group: str, provider: str, benchmark: Any) -> None:
    benchmark.group = group
    call = build(group)[provider]
    wait = torch.cuda.synchronize if DEVICE == "cuda" else int

    def timed() -> None:
        call()
        wait()

    case = CASES[group]
    benchmark.extra_info.update(bytes=case.bytes_moved, images=case.images)
    with serving(provider):
        benchmark(timed)
