"""What the Python kernels of the losses ask of their arguments.

The extension asks the same, in ``csrc/common/checks.h``. ``a`` has an op's arguments by the names
of its schema, all on one device.
"""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from ganfast.ops.tensors import check_floating_point

REDUCTIONS = ("none", "mean", "sum")
FORMS = ("probabilities", "logits", "squared", "hinge", "linear")


def check_cross_entropy(a: SimpleNamespace) -> None:
    """Raise if an argument of ``binary_cross_entropy`` does not fit x."""
    check_floating_point("binary_cross_entropy", a.x)
    if a.reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {a.reduction!r}")
    _check_like_x(a.x, target=a.target, weight=a.weight, pos_weight=a.pos_weight)
    if a.target is not None and a.target.dtype != a.x.dtype:
        raise RuntimeError(
            f"expected a target of dtype {a.x.dtype}, as the input has, found {a.target.dtype}"
        )


def check_cross_entropy_backward(a: SimpleNamespace) -> None:
    """Raise if an argument of ``binary_cross_entropy``'s backward ops does not fit x."""
    check_cross_entropy(a)
    if a.reduction == "none":
        _check_like_x(a.x, dy=a.dy)
    else:
        _check_scalar("dy", a.dy)


def check_gan_loss(a: SimpleNamespace) -> None:
    """Raise if the scores of ``gan_loss`` have none of its three forms."""
    check_floating_point("gan_loss", a.real)
    if a.form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {a.form!r}")
    halves = a.fake is None and a.real.dim() > 0 and a.real.shape[0] % 2 == 0
    if a.splits != 1 and not (a.splits == 2 and halves):
        raise ValueError(
            "splits must be 1, or 2 for one tensor of an even batch, got "
            f"splits={a.splits} for scores of shape {tuple(a.real.shape)}"
            + (" and those of fake" if a.fake is not None else "")
        )
    if a.fake is not None and a.fake.dtype != a.real.dtype:
        raise RuntimeError(
            f"real and fake scores must have one dtype, got {a.real.dtype} and {a.fake.dtype}"
        )


def check_gan_loss_backward(a: SimpleNamespace) -> None:
    """Raise if the scores of ``gan_loss`` have none of its three forms, or dloss is no scalar."""
    check_gan_loss(a)
    _check_scalar("dloss", a.dloss)


def _check_like_x(x: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.shape != x.shape:
            raise RuntimeError(
                f"{name} must have the shape of the input, {tuple(x.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.is_complex():
            raise RuntimeError(f"{name} must be real, got {tensor.dtype}")


def _check_scalar(name: str, t: Tensor) -> None:
    if t.dim() != 0 or t.is_complex():
        raise RuntimeError(f"{name} must be a real scalar, got {t.dtype} of shape {tuple(t.shape)}")
