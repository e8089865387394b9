"""Compare a model with its fused self: the work behind ``ganfast verify --model``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ganfast import backend
from ganfast.fusion import fuse
from ganfast.verify.exactness import ROUNDINGS, Verdict, judge, worst_error
from ganfast.verify.runner import DTYPES, Row

__all__ = ["verify_model"]

STEPS = 3
LEARNING_RATE = 1e-3
ROUNDED_RUNS = 4

# Results by the phase they come from and their kind, each with a name.
_Results = dict[tuple[str, str], dict[str, Tensor | None]]


def verify_model(
    model: nn.Module,
    shapes: Sequence[Sequence[int]],
    *,
    device: str = "cpu",
    backends: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
) -> Iterator[Row]:
    """Train a fused copy of the model and unfused ones, and compare by the rule.

    Outputs, gradients and buffers of three steps of training on random inputs, then outputs in
    evaluation. The reference is the model in float64. How a model amplifies the roundings of its
    operations is measured: the model runs in float64 four more times, each with the results of
    every operation perturbed by up to one rounding of the dtype, drawn from a fixed seed.
    The bound of a result is ``ROUNDINGS`` times the largest change seen. Dropout is switched off.

    Args:
        model: the model, which is not changed.
        shapes: shapes of the inputs, which are drawn from a normal distribution.
        device: the device to run on.
        backends: names for ``ganfast.backend.use``; None for the fastest there is.
        dtypes: names out of ``DTYPES``; None for the model's own.

    Returns:
        A row for each backend, dtype, phase and kind of result; ``op`` is the kind, ``layout`` the
        phase.

    Raises:
        ValueError: the model does not take such inputs, or does not give tensors; its forward is
            random, so that runs cannot be compared.
        RuntimeError: a backend has no kernels here.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())
        >>> any(row.failures for row in verify_model(model, [(8, 3)]))
        False
    """
    _check_layers(model)
    return _compared(model, shapes, device, backends, dtypes)


def _compared(
    model: nn.Module,
    shapes: Sequence[Sequence[int]],
    device: str,
    backends: Sequence[str] | None,
    dtypes: Sequence[str] | None,
) -> Iterator[Row]:
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for name in backends or backend.available(device)[:1]:
        for dtype in [DTYPES[d] for d in dtypes] if dtypes else [own]:
            twin = copy.deepcopy(model).to(device, dtype if dtypes else None).train()
            with backend.use(name):
                yield from _rows(twin, [tuple(shape) for shape in shapes], name, dtype)


def _check_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or 'the model'} is scripted: give the model before that")
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(map(is_lazy, tensors)):
            raise ValueError(
                f"{name or 'the model'}, a {type(module).__name__}, has no shapes yet: run the "
                "model on a first batch in the function that makes it"
            )


def _rows(
    twin: nn.Module, shapes: list[tuple[int, ...]], name: str, dtype: torch.dtype
) -> Iterator[Row]:
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    inputs = _draw(twin, shapes, dtype)
    _check_forward(twin, inputs[0])
    wide = [[x.double() for x in xs] for xs in inputs]
    exact = _train(copy.deepcopy(twin).double(), wide)
    torchs = _train(copy.deepcopy(twin), inputs)
    rounded = []
    for seed in range(ROUNDED_RUNS):
        with _Rounded(torch.finfo(dtype).eps, seed):
            rounded.append(_train(copy.deepcopy(twin).double(), wide))
    fuse(twin)
    text = str(dtype).removeprefix("torch.")
    try:
        ours = _train(twin, inputs)
    except Exception as error:
        failure = f"the fused model raises {type(error).__name__}: {error}"
        yield Row.of("output", name, text, "step 1", [], [failure])
        return
    for (phase, kind), values in ours.items():
        verdicts = [
            _judge(what, y, *(results[phase, kind][what] for results in (torchs, exact, *rounded)))
            for what, y in values.items()
        ]
        failures = [verdict.describe() for verdict in verdicts if not verdict.passed]
        yield Row.of(kind, name, text, phase, verdicts, failures)


def _draw(
    model: nn.Module, shapes: list[tuple[int, ...]], dtype: torch.dtype
) -> list[list[Tensor]]:
    """Return the inputs of each step, and of the evaluation behind them."""
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
        for _ in range(STEPS + 1)
    ]


def _check_forward(model: nn.Module, inputs: list[Tensor]) -> None:
    runs = []
    for seed in range(2):
        torch.manual_seed(seed)
        try:
            runs.append(_outputs(copy.deepcopy(model), [x.clone() for x in inputs]))
        except Exception as error:
            shapes = ", ".join("x".join(map(str, x.shape)) for x in inputs)
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise ValueError(f"the model does not take an input of {shapes}: {reason}") from error
    if not runs[0]:
        raise ValueError("the model returns no floating-point tensor")
    if not all(torch.equal(a, b) or bool(a.isnan().any()) for a, b in zip(*runs, strict=True)):
        raise ValueError("the model's forward is random: its runs cannot be compared")


def _outputs(model: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """Return the floating-point tensors in whatever structure the model returns."""
    leaves = _pytree.tree_leaves(model(*inputs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _train(model: nn.Module, inputs: list[list[Tensor]]) -> _Results:
    """Run the steps and the evaluation, and return all that can be compared."""
    results: _Results = {}
    directions = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        phase = f"step {step + 1}"
        given = [x.clone().requires_grad_() for x in inputs[step]]
        ys = _outputs(model, [x.clone() for x in given])  # it may write to its inputs
        model.zero_grad()
        dys = [torch.randn(y.shape, generator=directions) / y.numel() ** 0.5 for y in ys]
        torch.autograd.backward(ys, [dy.to(y) for y, dy in zip(ys, dys, strict=True)])
        results[phase, "output"] = {f"output {i}": y.detach() for i, y in enumerate(ys)}
        results[phase, "input gradient"] = {f"input {i}": x.grad for i, x in enumerate(given)}
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results[phase, "parameter gradient"] = gradients
        results[phase, "buffer"] = {name: b.clone() for name, b in model.named_buffers()}
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=LEARNING_RATE)
    with torch.no_grad():
        ys = _outputs(model.eval(), [x.clone() for x in inputs[STEPS]])
    results["evaluation", "output"] = {f"output {i}": y for i, y in enumerate(ys)}
    return results


class _Rounded(TorchDispatchMode):
    """Perturb the results of every operation by up to ``eps`` of their size."""

    def __init__(self, eps: float, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.eps, self.seed = eps, seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if any(returned.alias_info is not None for returned in func._schema.returns):
            return results  # a view, or written in place
        return _pytree.tree_map_only(Tensor, self._off, results)

    def _off(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        generator = self.generators[x.device]
        return x + x * torch.empty_like(x).uniform_(-self.eps, self.eps, generator=generator)


def _judge(
    what: str, ours: Tensor | None, torchs: Tensor | None, exact: Tensor | None, *rounded: Any
) -> Verdict:
    """Hold a result to the rule, with the bound from the perturbed runs."""
    if exact is None or ours is None or torchs is None:
        return Verdict(what, 0.0, 0.0, 0.0, 0.0, unusual=ours is exact)
    if not ours.is_floating_point():  # a counter
        return judge(what, ours.double(), torchs.double(), exact.double(), 0.0)
    bound = ROUNDINGS * max(worst_error(run, exact) for run in rounded)
    return judge(what, ours, torchs.to(ours.dtype), exact, bound)
