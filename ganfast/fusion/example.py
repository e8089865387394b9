"""What a model computes for an example: which layers feed which, and what fusion would change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ganfast.fusion.pairs import Pair

__all__ = ["Example"]


class Example:
    """Run a model on example inputs in training and in evaluation, without a trace in the model.

    Buffers, modes and the random number generators are restored after each run. The model must
    compute the same for the same inputs and random numbers.

    Args:
        model: the model.
        inputs: a tensor, a tuple of positional arguments or a dictionary of named ones.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.model = model
        named = isinstance(inputs, Mapping)
        self.args = () if named else inputs if isinstance(inputs, tuple) else (inputs,)
        self.kwargs = dict(inputs) if named else {}

    def feeds(
        self, sources: Iterable[nn.Module], readers: Iterable[nn.Module]
    ) -> dict[nn.Module, nn.Module]:
        """Return the sources whose every output was the input of one reader, which had no other.

        What was changed in place between them (``out += shortcut``) is no output of the source.
        """
        # By id, which the tensor keeps taken.
        outputs: dict[int, tuple[nn.Module, Tensor, int | None]] = {}
        calls: Counter[nn.Module] = Counter()
        found: dict[nn.Module, list[nn.Module | None]] = {}

        def called(source: nn.Module, args: Any, output: Tensor) -> None:
            calls[source] += 1
            outputs[id(output)] = source, output, _version(output)

        def reads(reader: nn.Module, args: tuple[Any, ...]) -> None:
            # No more than one reader an output: behind one in place it is another value.
            source, output, before = outputs.pop(id(args[0]) if args else 0, (None, None, None))
            changed = output is not None and _version(output) != before
            found.setdefault(reader, []).append(None if changed else source)

        handles = [source.register_forward_hook(called) for source in sources]
        handles += [reader.register_forward_pre_hook(reads) for reader in readers]
        try:
            self._run()
        finally:
            for handle in handles:
                handle.remove()
        return {
            source: reader
            for reader, (source, *others) in found.items()
            if source is not None and others == [source] * (calls[source] - 1)
        }

    def unchanged(self, pairs: list[Pair]) -> list[Pair]:
        """Return the pairs that may be fused: the outputs and buffers stay the same, bit by bit.

        Torch's own operations stand for the fused ones here, so that no rounding differs. Weights
        and biases of the norms are drawn meanwhile: of a weight of 0, as residual blocks begin
        with, an activation makes nothing else.

        Raises:
            RuntimeError: two runs of the model as it is differ.
        """
        if not pairs:
            return []
        with _drawn_affine(pair.norm for pair in pairs):
            return self._unchanged(pairs)

    def _unchanged(self, pairs: list[Pair]) -> list[Pair]:
        expected = self._run()
        if not _equal(self._run(), expected):
            raise RuntimeError(
                "with example_inputs a model must compute the same twice from the same inputs and "
                "random numbers; this one did not, so fuse cannot tell what it would change"
            )
        if self._is_unchanged(pairs, expected):
            return pairs
        kept: list[Pair] = []
        for pair in pairs:
            if self._is_unchanged([*kept, pair], expected):
                kept.append(pair)
        return kept

    def _is_unchanged(self, pairs: list[Pair], expected: list[Tensor]) -> bool:
        with _as_if_fused(pairs):
            return _equal(self._run(), expected)

    def _run(self) -> list[Tensor]:
        """Return the tensors of both outputs and the buffers after them."""
        found = []
        for training in (True, False):
            with self._restored():
                self.model.train(training)
                args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (self.args, self.kwargs))
                outputs = pytree.tree_leaves(self.model(*args, **kwargs))
                found += [output for output in outputs if isinstance(output, Tensor)]
                found += [buffer.clone() for buffer in self.model.buffers()]
        return found

    @contextmanager
    def _restored(self) -> Iterator[None]:
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        modes = [(module, module.training) for module in self.model.modules()]
        tensors = (*self.model.parameters(), *self.model.buffers())
        devices = {t.device for t in tensors if t.device.type == "cuda"}
        with torch.no_grad(), torch.random.fork_rng(devices):
            try:
                yield
            finally:
                for buffer, before in buffers:
                    buffer.copy_(before)
                for module, mode in modes:
                    module.training = mode


def _version(tensor: Tensor) -> int | None:
    """Return what an operation in place on the tensor or a view of it changes."""
    return None if tensor.is_inference() else tensor._version


@contextmanager
def _drawn_affine(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Give the norms weights and biases of both signs, and put theirs back."""
    parameters = [p for norm in norms for p in norm.parameters(recurse=False)]
    before = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for p in parameters:
                p.copy_(torch.randn(p.shape, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


@contextmanager
def _as_if_fused(pairs: list[Pair]) -> Iterator[None]:
    """Have each BatchNorm compute its activation too, and the activation nothing."""
    for pair in pairs:
        layers = (pair.norm, pair.activation)
        first, second = (m.forward for m in (layers if pair.order == "norm_act" else layers[::-1]))
        pair.norm.forward = partial(_composed, first, second)
        for parent, slot in pair.places:
            parent._modules[slot] = nn.Identity()
    try:
        yield
    finally:
        for pair in pairs:
            del pair.norm.forward
            for parent, slot in pair.places:
                parent._modules[slot] = pair.activation


def _composed(first: Callable[..., Tensor], second: Callable[..., Tensor], input: Tensor) -> Tensor:
    return second(first(input))


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(ours, theirs, strict=True)
    )
