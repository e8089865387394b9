"""BatchNorm layers with an activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from ganfast import functional
from ganfast.activations import ActivationConfig, check_activation, check_order
from ganfast.functional.sync_batch_norm_act import sync_batch_norm_act

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"]


SETTINGS: dict[str, Any] = {**ActivationConfig()._asdict(), "splits": 1}
"""The keywords that layers have beyond torch's, with their defaults."""


class Activated(torch.nn.Module):
    """Show and restore an activation's keywords, which torch's layers do not have."""

    activation: str | None
    negative_slope: float
    order: str

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation!r}"
            if ActivationConfig.of(self).row.takes_slope:
                text += f", negative_slope={self.negative_slope}"
            if self.order != "norm_act":
                text += f", order={self.order!r}"
        return text

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A module pickled as torch's own class, or before these keywords existed.
        for name, default in ActivationConfig()._asdict().items():
            vars(self).setdefault(name, default)


class _BatchNormAct(Activated, torch.nn.modules.batchnorm._BatchNorm):
    """Add the activation's keywords and the fused forward to a torch BatchNorm."""

    splits: int

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        order: str = "norm_act",
        splits: int = 1,
        **torch_only: Any,
    ) -> None:
        check_activation(activation)
        check_order(order)
        if splits < 1:
            raise ValueError(f"splits must be at least 1, got {splits}")
        # torch_only: what a newer torch adds to its own constructor.
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats,
            device=device, dtype=dtype, **torch_only,
        )  # fmt: skip
        self.activation = activation
        self.negative_slope = negative_slope
        self.order = order
        self.splits = splits

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):  # torch.fx traces the model: a leaf, as torch's own layers are
            return fx_leaf(self, input)
        self._check_input_dim(input)
        # Read from the dictionaries: five attribute look-ups of nn.Module take 4 us, more than the
        # dispatch and the arithmetic of a small layer.
        parameters, buffers = self._parameters, self._buffers
        running_mean, running_var = buffers["running_mean"], buffers["running_var"]
        training = self.training or (running_mean is None and running_var is None)
        count = buffers["num_batches_tracked"]
        if self.training and not self.track_running_stats:
            running_mean = running_var = count = None
        return functional.batch_norm_act(
            input,
            running_mean,
            running_var,
            # Pruned and parametrised ones are attributes, slow to look up.
            parameters["weight"] if "weight" in parameters else self.weight,  # noqa: SIM401
            parameters["bias"] if "bias" in parameters else self.bias,  # noqa: SIM401
            training,
            self.momentum,
            self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
            order=self.order,
            splits=self.splits,
            num_batches_tracked=count,
        )

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        return text if self.splits == 1 else f"{text}, splits={self.splits}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        vars(self).setdefault("splits", SETTINGS["splits"])


def fx_leaf(module: torch.nn.Module, input: Proxy) -> Any:
    """Return what torch.fx has for the call of a module that it does not look into."""
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), {})


class BatchNorm1d(_BatchNormAct, torch.nn.BatchNorm1d):
    """Normalise (N, C) or (N, C, L) and apply an activation, in one kernel.

    :class:`torch.nn.BatchNorm1d` with four more keywords, passed on to
    :func:`ganfast.functional.batch_norm_act`: ``activation`` (None, "relu", "leaky_relu"),
    ``negative_slope``, ``order`` ("norm_act", "act_norm") and ``splits``.

    Raises:
        ValueError: unknown ``activation`` or ``order``, ``splits`` below 1.

    Examples:
        >>> layer = BatchNorm1d(128, activation="leaky_relu", negative_slope=0.2)
        >>> layer(torch.randn(64, 128)).shape
        torch.Size([64, 128])
    """


class BatchNorm2d(_BatchNormAct, torch.nn.BatchNorm2d):
    """Normalise (N, C, H, W) and apply an activation, in one kernel.

    :class:`torch.nn.BatchNorm2d` with the keywords of :class:`BatchNorm1d`.

    Examples:
        >>> layer = BatchNorm2d(64, activation="relu")
        >>> layer(torch.randn(16, 64, 8, 8)).shape
        torch.Size([16, 64, 8, 8])
    """


class BatchNorm3d(_BatchNormAct, torch.nn.BatchNorm3d):
    """Normalise (N, C, D, H, W) and apply an activation, in one kernel.

    :class:`torch.nn.BatchNorm3d` with the keywords of :class:`BatchNorm1d`.

    Examples:
        >>> layer = BatchNorm3d(8, activation="relu")
        >>> layer(torch.randn(2, 8, 4, 4, 4)).shape
        torch.Size([2, 8, 4, 4, 4])
    """


class SyncBatchNorm(_BatchNormAct):
    """Normalise with the statistics of all processes' batches and apply an activation.

    Constructor, state_dict and values are those of :class:`torch.nn.SyncBatchNorm`, with the
    keywords of :class:`BatchNorm1d`, on CPUs (gloo) as well as on GPUs, differentiable twice. It is
    no subclass of torch's layer, because DistributedDataParallel refuses those on CPUs. In
    evaluation, and in a single process, it is a BatchNorm.
    :func:`ganfast.convert_sync_batchnorm` converts the layers of a model.

    Args:
        process_group: the processes that share statistics; None for all.

    Examples:
        >>> layer = SyncBatchNorm(64, activation="relu")
        >>> layer(torch.randn(16, 64, 8, 8)).shape
        torch.Size([16, 64, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **keywords
        )
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and _processes(self.process_group) > 1):
            return super().forward(input)
        self._check_input_dim(input)
        tracked = self.track_running_stats
        chunks = [
            sync_batch_norm_act(
                chunk,
                self.running_mean if tracked else None,
                self.running_var if tracked else None,
                self.weight,
                self.bias,
                self.momentum,
                self.eps,
                activation=self.activation,
                negative_slope=self.negative_slope,
                order=self.order,
                num_batches_tracked=self.num_batches_tracked if tracked else None,
                group=self.process_group,
            )
            for chunk in input.chunk(self.splits)
        ]
        return torch.cat(chunks) if self.splits > 1 else chunks[0]


def _processes(group: Any) -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size(group)
