"""The torch.compile backend "ganfast": it fuses pairs by data flow and calls another backend.

Dynamo captures every spelling of a layer as a call of a function or method, so a pair is a
BatchNorm or InstanceNorm whose output has one reader, an activation, wherever both are in the
model's code.
"""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from ganfast import functional
from ganfast.activations import ACTIVATIONS, ActivationConfig, why_not_slope
from ganfast.fusion.report import FusedLayer, FusionReport
from ganfast.ops import batch_norm_act

__all__ = ["compile_fused", "fuse_graph"]

log = logging.getLogger(__name__)

_NORMS: dict[Any, tuple[str, ...]] = {
    # Function: the order of its arguments.
    F.batch_norm: (
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps",
    ),
    torch.batch_norm: (
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps",
        "cudnn_enabled",
    ),
    F.instance_norm: (
        "input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum",
        "eps",
    ),
    **dict.fromkeys((torch.instance_norm, torch.ops.aten.instance_norm.default), (
        "input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum",
        "eps", "cudnn_enabled",
    )),
}  # fmt: skip
_BATCH_NORMS = (F.batch_norm, torch.batch_norm)
_NORM_DEFAULTS = {
    "running_mean": None, "running_var": None, "weight": None, "bias": None,
    "momentum": 0.1, "eps": 1e-5,
}  # fmt: skip
_ACTIVATIONS = {function: name for name, row in ACTIVATIONS.items() for function in row.functions}
_DROPOUTS = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout,
)  # fmt: skip
_MODES = ("_set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode")
_BCE, _BCE_WITH_LOGITS = F.binary_cross_entropy, F.binary_cross_entropy_with_logits
_LOSSES: dict[Any, Callable[..., Any]] = {
    _BCE: functional.binary_cross_entropy,
    _BCE_WITH_LOGITS: functional.binary_cross_entropy_with_logits,
}
_LOSS_ARGUMENTS = (
    "input", "target", "weight", "size_average", "reduce", "reduction", "pos_weight",
)  # fmt: skip
_SIGMOIDS = (torch.sigmoid, F.sigmoid, torch.special.expit, "sigmoid")
_VIEWS = (
    "view", "reshape", "flatten", "squeeze", "unsqueeze",
    torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze,
)  # fmt: skip


def compile_fused(
    graph_module: GraphModule,
    example_inputs: list[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
    **named: Any,
) -> Callable[..., Any]:
    """Fuse the pairs and losses of a captured graph and pass it to another torch.compile backend.

    ``torch.compile(model, backend="ganfast")`` calls it, without an import of ganfast. Rewrites the
    graph with :func:`fuse_graph` and logs one line to ``ganfast.fusion.graph``, at level INFO: what
    was fused, and why the rest stays. Warns once each, with the reasons, if nothing was fused, and
    of a gradient that is to be differentiated again through inductor.

    Args:
        graph_module: what Dynamo captured.
        example_inputs: its inputs.
        options: "inner" is the backend that compiles the result: a name or a callable. By default
            it is "inductor" for tensors on GPUs, and if there are a mode or other options, which
            are the inner backend's own; else "eager", which is faster on CPUs.
        mode: the inner backend's.
        named: further arguments for the inner backend.

    Raises:
        torch._dynamo.exc.InvalidBackend: no backend has the inner one's name.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())
        >>> compiled = torch.compile(model, backend=compile_fused, options={"inner": "eager"})
        >>> compiled(torch.randn(4, 3)).shape
        torch.Size([4, 3])
    """
    options = dict(options or {})
    on_gpu = any(isinstance(x, torch.Tensor) and x.device.type != "cpu" for x in example_inputs)
    inner = options.pop("inner", "inductor" if on_gpu or options or mode else "eager")
    report = fuse_graph(graph_module)
    stays = "; ".join(f"{name}: {reason}" for name, reason in report.skipped)
    log.info(
        "%d pair(s) and %d loss(es) fused, %d left%s",
        len(report.fused), len(report.losses), len(report.skipped), stays and f" ({stays})",
    )  # fmt: skip
    if not (report.fused or report.losses) and (report.skipped or _is_unserved(graph_module)):
        reason = stays or "it has no BatchNorm, InstanceNorm or binary cross-entropy of torch's"
        _warn_once(f"nothing was fused in a graph of this model: {reason}")
    if inner == "inductor":
        from torch import _inductor

        options = {**_inductor.list_mode_options(mode), **options} if mode else options
        return _warn_of_double_backward(_inductor.compile(graph_module, example_inputs, options))
    named |= {name: value for name, value in (("options", options), ("mode", mode)) if value}
    compiled: Callable[..., Any] = torch._dynamo.lookup_backend(inner)(
        graph_module, example_inputs, **named
    )
    return compiled


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _is_unserved(graph_module: GraphModule) -> bool:
    """Return whether a graph computes with layers, but with none of ganfast's.

    A graph without layers is the few operations between two others.
    """
    nodes = graph_module.graph.nodes
    has_layers = any(isinstance(n.meta.get("example_value"), torch.nn.Parameter) for n in nodes)
    return has_layers and not any(str(n.target).startswith("ganfast.") for n in nodes)


def _warn_of_double_backward(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Have the outputs of a graph of inductor's say what to do before torch refuses."""

    def call(*args: Any) -> Any:
        outputs = compiled(*args)
        for output in outputs:
            if isinstance(output, torch.Tensor) and output.requires_grad:
                output.register_hook(_check_single_backward)
        return outputs

    return call


def _check_single_backward(gradient: torch.Tensor) -> None:
    if torch.is_grad_enabled():  # as create_graph=True has it
        _warn_once(
            "create_graph=True: inductor has no second derivatives; for gradient penalties call "
            'torch.compile(model, backend="ganfast", options={"inner": "eager"})'
        )


def fuse_graph(graph_module: GraphModule) -> FusionReport:
    """Rewrite a graph that Dynamo captured with the fused ops, in place.

    A batch_norm or instance_norm whose output is read by one activation alone, or first by one in
    place, becomes one op with it; dropouts that return their input do not count. A binary
    cross-entropy becomes ganfast's; that of a sigmoid's output, reshaped or not, becomes the one
    with logits. Values and gradients are the same there up to rounding, except if the sigmoid
    rounds to 0 or 1: torch then clamps the logarithm at -100 and has no gradient, the form with
    logits is exact.

    Returns:
        What was fused and what stays, with the reason.
    """
    graph = graph_module.graph
    report = FusionReport()
    nested = any("_increment_nesting" in _target_name(node) for node in graph.nodes)
    for node in list(graph.nodes):
        name = _layer_name(node)
        if _called(node) in _NORMS:
            _skip_dropouts(node)
            found = "inside torch.func" if nested else _find_activation(node)
            if isinstance(found, str):
                report.skipped.append((name, found))
            else:
                report.fused.append(_fuse_pair(name, node, *found))
        elif _called(node) in _LOSSES:
            if nested:
                report.skipped.append((name, "inside torch.func"))
            else:
                report.losses.append((name, _fuse_loss(node)))
    graph.lint()
    graph_module.recompile()
    return report


def _find_activation(norm: Node) -> tuple[Node, ActivationConfig] | str:
    """Return the only reader of a norm and what it computes, or why there is none to fuse."""
    given = _norm_arguments(norm)
    if not isinstance(given["training"], bool) or not _are_numbers(given["momentum"], given["eps"]):
        return "training, momentum or eps is not a constant"
    if not given["training"] and None in (given["running_mean"], given["running_var"]):
        return "evaluation without running statistics"
    if not norm.users:
        return "read by 0 operations"
    reader = min(norm.users)  # the first in the order of the graph
    if len(norm.users) > 1 and not _is_in_place(reader):
        return f"read by {len(norm.users)} operations"
    if reader.op == "output":
        return "its output leaves the graph"
    if reader.target not in _ACTIVATIONS:
        return f"followed by {_target_name(reader)}"
    if _changes_mode(norm, reader):
        return "its activation records gradients otherwise"
    act = ActivationConfig(_ACTIVATIONS[reader.target])
    slope = act.negative_slope
    if act.row.takes_slope:
        slope = _arguments(reader, "input", "negative_slope").get("negative_slope", slope)
    return why_not_slope(slope) or (reader, act._replace(negative_slope=float(slope)))


def _skip_dropouts(norm: Node) -> None:
    """Remove dropouts that return their input from behind a BatchNorm."""
    for reader in list(norm.users):
        given = {"p": 0.5, "training": True, **_arguments(reader, "input", "p", "training")}
        if _called(reader) in _DROPOUTS and (given["p"] == 0 or given["training"] is False):
            reader.replace_all_uses_with(norm)
            norm.graph.erase_node(reader)
            _skip_dropouts(norm)
            return


def _is_in_place(reader: Node) -> bool:
    """Return whether an activation overwrites its input, so that all later readers see that."""
    if reader.target not in _ACTIVATIONS:
        return False
    slope = ("negative_slope",) if ACTIVATIONS[_ACTIVATIONS[reader.target]].takes_slope else ()
    inplace = _arguments(reader, "input", *slope, "inplace").get("inplace", False)
    return _target_name(reader).endswith("_") or inplace is True


def _changes_mode(node: Node, until: Node) -> bool:
    """Return whether gradients are recorded for one of two nodes alone."""
    while node is not until:
        if _target_name(node) in _MODES:
            return True
        node = node.next
    return False


def _fuse_pair(name: str, norm: Node, activation: Node, act: ActivationConfig) -> FusedLayer:
    """Replace a pair by the fused op, at the norm's place: buffers change no later."""
    given = _norm_arguments(norm)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    buffers = (given["running_mean"], given["running_var"])
    eps, training = given["eps"], given["training"]
    graph = norm.graph
    with graph.inserting_before(norm):
        if norm.target not in _BATCH_NORMS:
            arguments = (x, *buffers, weight, bias, training, given["momentum"], eps)
            y = graph.call_function(functional.instance_norm_act, arguments, act._asdict())
        elif training:
            # A node of its own increments num_batches_tracked.
            of_batch = (x, weight, bias, *buffers, None, given["momentum"], eps, *act, 1)
            op = graph.call_function(batch_norm_act.train, of_batch)
            y = graph.call_function(operator.getitem, (op, 0))
        else:
            op = graph.call_function(
                batch_norm_act.evaluate, (x, weight, bias, *buffers, eps, *act)
            )
            y = graph.call_function(operator.getitem, (op, 0))
    y.meta = dict(activation.meta)
    activation.replace_all_uses_with(y)
    graph.erase_node(activation)
    norm.replace_all_uses_with(y)
    graph.erase_node(norm)
    channels = x.meta["example_value"].shape[1]
    return FusedLayer(name, channels, *act)


def _fuse_loss(loss: Node) -> str:
    """Replace a loss by ganfast's, on logits if they are a sigmoid's; return what it replaced."""
    graph = loss.graph
    given = _arguments(loss, *_LOSS_ARGUMENTS)
    function = _LOSSES[loss.target]
    chain = _sigmoid_and_views(loss, given["input"]) if loss.target is _BCE else []
    with graph.inserting_before(loss):
        if chain:
            function = functional.binary_cross_entropy_with_logits
            logits = chain[-1].args[0]
            for view in reversed(chain[:-1]):
                arguments = (logits, *view.args[1:])
                logits = graph.create_node(view.op, view.target, arguments, view.kwargs)
                logits.meta = dict(view.meta)
            given["input"] = logits
        new = graph.call_function(function, (), given)
    new.meta = dict(loss.meta)
    loss.replace_all_uses_with(new)
    graph.erase_node(loss)
    for node in chain:
        if not node.users:
            graph.erase_node(node)
    return f"sigmoid and {_target_name(loss)}" if chain else _target_name(loss)


def _sigmoid_and_views(loss: Node, probabilities: Any) -> list[Node]:
    """Return the nodes that lead from logits to a loss, last first; none if they must stay."""
    chain = _back_to_sigmoid(probabilities)
    if not chain:
        return []
    sigmoid, logits = chain[-1], chain[-1].args[0]
    if not isinstance(logits, Node) or _dtype(sigmoid) != _dtype(logits):
        return []
    # The logits are read later than before: nothing may write to them, nor to the probabilities.
    tensors = {_storage(node) for node in (*chain, logits)}
    nodes = list(loss.graph.nodes)
    between = set(nodes[nodes.index(sigmoid) : nodes.index(loss)]) - set(chain)
    seen = {_storage(read) for node in between for read in node.all_input_nodes}
    return [] if tensors & seen else chain


def _back_to_sigmoid(node: Any) -> list[Node]:
    """Return a node and what it views, as far as a sigmoid; none if there is no sigmoid."""
    chain: list[Node] = []
    while isinstance(node, Node) and node.args and _called(node) in (*_VIEWS, *_SIGMOIDS):
        chain.append(node)
        if _called(node) in _SIGMOIDS:
            return chain if len(node.args) == 1 and not node.kwargs else []
        node = node.args[0]
    return []


def _norm_arguments(norm: Node) -> dict[str, Any]:
    given = {**_NORM_DEFAULTS, **_arguments(norm, *_NORMS[norm.target])}
    if norm.target in _BATCH_NORMS:
        return {"training": False, **given}
    return {"training": given.pop("use_input_stats", True), **given}


def _arguments(node: Node, *names: str) -> dict[str, Any]:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _called(node: Node) -> Any:
    return node.target if node.op in ("call_function", "call_method") else None


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _dtype(node: Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["example_value"].dtype
    return dtype


def _storage(node: Node) -> int | None:
    """Return an identifier of a tensor's memory; Dynamo's fake tensors share it as real ones do."""
    value = node.meta.get("example_value")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def _layer_name(node: Node) -> str:
    """Return the path of the layer whose code made a node, or the node's own name."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = re.sub(r"^[LG]\['\w+'\]\.?", "", stack[-1][0]) if stack else ""
    return path or str(node.name)


def _target_name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
