"""The raw ops on arguments that no layer passes: an exception, or the eager kernel's result.

The calls are made in a process of their own, so that one that ends it is seen; which one it was
stands in a file that is written before each call. ``GANFAST_HOSTILE_EXAMPLES`` sets their number
per op; ``-s`` prints how many were refused and how many computed.
"""

from __future__ import annotations

import collections
import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ganfast
from ganfast.ops import registry

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

EXAMPLES = int(os.environ.get("GANFAST_HOSTILE_EXAMPLES", "100"))
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OTHER_DTYPES = [*DTYPES, torch.int64, torch.bool, torch.complex64]
FORMS = ["meta", "shape", "empty", "scalar", "dtype", "gaps", "stride_0", "sparse", "alias"]
NUMBERS = {
    "int": [-1, 0, 1, 2, 3, 2**40, 2**62],
    "float": [-1.0, math.nan, math.inf, 0.5],
    "bool": [False, True],
    "str": ["", "relu", "leaky_relu", "act_norm", "mean", "none", "hinge", "squared", "ReLU"],
}


def draw_arguments(draw: Any, op: str) -> dict[str, Any]:
    """Draw arguments of an op that go together."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = (draw(st.sampled_from([0, 2, 4, 6])), draw(st.sampled_from([0, 1, 3, 17])))
    shape += draw(st.sampled_from([(), (1,), (5,), (2, 3)]))
    wide = torch.promote_types(dtype, torch.float32)
    splits = draw(st.sampled_from([1, 1, 2]))
    vectors = ["weight", "bias", "running_mean", "running_var", "ddweight", "ddbias"]
    values = {name: torch.rand(shape[1], dtype=wide) for name in vectors}
    images = ["x", "dy", "ddx", "real", "target", "pos_weight", *(["fake"] if splits == 1 else [])]
    values |= {name: torch.rand(shape).to(dtype) for name in images}
    values |= {"fake": None} if splits == 2 else {}
    values |= {"num_batches_tracked": torch.tensor(3), "dloss": torch.tensor(0.5, dtype=wide)}
    values |= {"stats": torch.rand(splits, 4, shape[1], dtype=wide)}
    values["stats"][:, 2] = values["weight"] * values["stats"][:, 1]  # scale = weight * rstd
    values |= {"momentum": 0.1, "eps": 1e-5, "negative_slope": 0.2, "splits": splits}
    values |= {"activation": draw(st.sampled_from([None, "relu", "leaky_relu"]))}
    values |= {"order": draw(st.sampled_from(["norm_act", "act_norm"])), "label": 0.9}
    values |= {"form": draw(st.sampled_from(["probabilities", "logits", "hinge", "linear"]))}
    values |= {"real_label": 1.0, "fake_label": 0.0, "from_logits": draw(st.booleans())}
    values |= {"reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
    if "cross_entropy" in op:
        values["weight"] = torch.rand(shape)
        values["dy"] = values["dy"] if values["reduction"] == "none" else torch.tensor(0.5)
    flags = {name: draw(st.booleans()) for name in ("training", "need_dx", "need_affine")}
    flags |= {name: draw(st.booleans()) for name in ("need_real", "need_fake")}
    values |= flags
    return {argument.name: values[argument.name] for argument in schema_of(op)}


def schema_of(op: str) -> list[Any]:
    arguments: list[Any] = getattr(torch.ops.ganfast, op).default._schema.arguments
    return arguments


def draw_hostile(draw: Any, kind: str, value: Any, others: list[torch.Tensor]) -> Any:
    """Draw another value for an argument, of the type that its schema asks for."""
    optional = kind.startswith("Optional[")
    kind = kind.removeprefix("Optional[").removesuffix("]")
    if optional and draw(st.integers(0, 3)) == 0:
        return None
    if kind != "Tensor":
        return draw(st.sampled_from(NUMBERS[kind]))
    value = torch.rand(3) if value is None else value
    form = draw(st.sampled_from(FORMS))
    if form == "meta":
        return value.to("meta")
    if form == "shape":
        sizes = st.one_of(st.integers(0, 5), st.sampled_from([*value.shape, 64]))
        return torch.rand(draw(st.lists(sizes, max_size=4))).to(value.dtype)
    if form in ("empty", "scalar"):
        return torch.rand([0] if form == "empty" else []).to(value.dtype)
    if form == "dtype":
        return value.to(draw(st.sampled_from(OTHER_DTYPES)))
    if form == "gaps" and value.dim():
        return value.repeat_interleave(2, -1)[..., ::2]
    if form == "stride_0":
        return torch.full((), 0.5).to(value.dtype).expand(value.shape)
    if form == "sparse" and value.dim():
        return value.to_sparse()
    return draw(st.sampled_from(others)) if others else value


def outcome(function: Any, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    """Return the results of a call and what it left in its tensors; None for an exception."""
    arguments = copy.deepcopy(arguments)
    try:
        results = function(*arguments)
    except Exception:
        return None
    results = results if isinstance(results, tuple) else (results,)
    return results, [a for a in arguments if isinstance(a, torch.Tensor)]


def assert_same(ours: tuple[Any, list[Any]], eager: tuple[Any, list[Any]], values: bool) -> None:
    for a, b in zip([*ours[0], *ours[1]], [*eager[0], *eager[1]], strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        if values and a.device.type == "cpu" and a.layout == torch.strided and a.numel():
            size = b.double().nan_to_num(0, 0, 0).abs().max()
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * size, equal_nan=True)


def call_op(op: str, log: Path) -> dict[str, int]:
    """Call one op many times; count what became of the calls."""
    counts: collections.Counter[str] = collections.Counter()
    overload, eager = getattr(torch.ops.ganfast, op).default, registry.eager_kernels[op]

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(data=st.data())
    def calling(data: Any) -> None:
        torch.manual_seed(0)
        arguments = draw_arguments(data.draw, op)
        names = st.sampled_from(list(arguments))
        hostile = data.draw(st.lists(names, min_size=1, max_size=3, unique=True))
        for argument in schema_of(op):
            if argument.name in hostile:
                others = [t for t in arguments.values() if isinstance(t, torch.Tensor)]
                value = arguments[argument.name]
                value = draw_hostile(data.draw, str(argument.type), value, others)
                arguments[argument.name] = value
        log.write_text(f"{op} with {hostile} of {arguments}")
        ours = outcome(overload, list(arguments.values()))
        counts["refused" if ours is None else "computed"] += 1
        reference = outcome(eager, list(arguments.values()))
        numbers = [v for v in arguments.values() if isinstance(v, float)]
        odd = any(v == -1.0 or not math.isfinite(v) for v in numbers)  # only torch checks values
        devices = {t.device.type for t in arguments.values() if isinstance(t, torch.Tensor)}
        assert len(devices) == 1 or ours is None, f"tensors of two devices in {arguments}"
        odd = odd or devices == {"meta"}  # nothing is read: there are shapes only
        assert odd or (ours is None) == (reference is None), f"one kernel refuses {arguments}"
        if ours is not None and reference is not None:
            # Of weight and scale, which say the same, kernels read one.
            odd = odd or ("stats" in arguments and bool({"stats", "weight"} & set(hostile)))
            assert_same(ours, reference, values=not odd)

    calling()
    return dict(counts)


@pytest.mark.parametrize("native", [True, False], ids=["native", "eager"])
def test_hostile_calls_are_refused_or_computed(native, tmp_path):
    if native and "native" not in ganfast.backend.available("cpu"):
        pytest.skip("the extension is not built")
    log = tmp_path / "call.txt"
    environment = os.environ | {"GANFAST_NATIVE": str(int(native)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(log)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, (
        f"exit code {result.returncode} in {log.read_text()[:2000]}\n{result.stderr[-4000:]}"
    )
    counts = json.loads(result.stdout.splitlines()[-1])
    print()
    for op, found in counts.items():
        print(f"{op:39} {found.get('refused', 0):5} refused {found.get('computed', 0):5} computed")
    assert set(counts) == set(registry.eager_kernels)
    assert all(found["refused"] and found["computed"] for found in counts.values())


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({op: call_op(op, Path(sys.argv[1])) for op in registry.eager_kernels}))
