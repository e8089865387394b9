"""What two processes must agree on; ``test_sync_batch_norm.py`` starts them with torchrun.

Each check compares this process's share with one process that has the whole batch.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ganfast
from ganfast.nn import BatchNorm2d, GANLoss, LeCamRegularization, SyncBatchNorm

IMAGES = 7
SHARES = (slice(0, 5), slice(5, 7))


def whole(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def summed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


@contextmanager
def count_collectives() -> Iterator[list[int]]:
    """Count the numbers of each all-reduce."""
    sizes: list[int] = []
    original = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        yield sizes
    finally:
        dist.all_reduce = original


def layers(**options: Any) -> tuple[BatchNorm2d, SyncBatchNorm]:
    torch.manual_seed(2)
    alone = BatchNorm2d(3, dtype=torch.float64, **options)
    if alone.affine:
        nn.init.uniform_(alone.weight, -2, 2)
        nn.init.normal_(alone.bias)
    together = copy.deepcopy(alone)
    ganfast.convert_sync_batchnorm(together)
    assert type(together) is SyncBatchNorm
    return alone, together


def first_and_second_order(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Return y, dx and the gradients of a loss on y and on dx, as a gradient penalty has it."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    loss = (y * dy).sum() + dx.square().sum()
    return [y, dx, *torch.autograd.grad(loss, [x, *layer.parameters()])]


def compare(alone: nn.Module, together: nn.Module, share: slice, run: Callable[..., Any]) -> None:
    x, dy = 3 * whole(IMAGES, 3, 2, 2) + 1, whole(2 * IMAGES, 3, 2, 2)[IMAGES:]
    expected, found = run(alone, x, dy), run(together, x[share], dy[share])
    for theirs, ours in zip(expected[:3], found[:3], strict=True):
        torch.testing.assert_close(ours, theirs[share])
    for theirs, ours in zip(expected[3:], found[3:], strict=True):
        torch.testing.assert_close(summed(ours), theirs)
    for theirs, ours in zip(alone.buffers(), together.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def check_values(share: slice) -> None:
    def first_order(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        y = layer(x)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]

    def twice(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
        first_order(layer, x, dy)
        y, *gradients = first_order(layer, x + 1, dy)
        return [y, gradients[0], gradients[0], *gradients[1:]]

    for activation in (None, "relu", "leaky_relu"):
        for order in ("norm_act", "act_norm"):
            options = {"activation": activation, "order": order}
            compare(*layers(**options), share, twice)
            compare(*layers(**options, momentum=None), share, twice)
            compare(*layers(**options, affine=False), share, twice)
            compare(*layers(**options), share, first_and_second_order)


def check_collectives(share: slice) -> None:
    _, layer = layers(activation="relu")
    x = whole(IMAGES, 3, 2, 2)[share].requires_grad_()
    with count_collectives() as sizes:
        y = layer(x)
        assert sizes == [2 * 3 + 1], sizes
        y.sum().backward()
        assert sizes == [2 * 3 + 1, 2 * 3], sizes
        layer.eval()(x).sum().backward()
        assert len(sizes) == 2


def check_empty_share(share: slice) -> None:
    alone, together = layers(activation="relu")
    x = whole(IMAGES, 3, 2, 2)
    mine = x if share.start == 0 else x[:0]
    mine = mine.clone().requires_grad_()
    y = together(mine)
    y.square().sum().backward()
    theirs = x.clone().requires_grad_()
    alone(theirs).square().sum().backward()
    if share.start == 0:
        torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(together.running_var, alone.running_var)
    torch.testing.assert_close(summed(together.weight.grad), alone.weight.grad)


def check_splits(share: slice) -> None:
    _, together = layers(activation="relu")
    again = copy.deepcopy(together)
    together.splits = 2
    x = whole(2 * IMAGES, 3, 2, 2)
    halves = [half[share] for half in x.chunk(2)]
    size = min(len(half) for half in halves)
    pair = torch.cat([half[:size] for half in halves])
    expected = torch.cat([again(half[:size]) for half in halves])
    torch.testing.assert_close(together(pair), expected)
    torch.testing.assert_close(together.running_mean, again.running_mean)


def check_halves(share: slice) -> None:
    _, layer = layers(activation="leaky_relu")
    layer.float()
    x = whole(IMAGES, 3, 2, 2)[share]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = x.to(dtype).requires_grad_()
        y = layer(leaf)
        assert y.dtype == dtype
        y.sum().backward()
        found.append((y.float(), leaf.grad.float()))
    for single, half in zip(*found, strict=True):
        torch.testing.assert_close(half, single, rtol=0.05, atol=0.05)


def check_compile(share: slice) -> None:
    _, layer = layers(activation="relu")
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager")
    x = whole(IMAGES, 3, 2, 2)[share]
    for _ in range(2):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [layer(inputs[0]), compiled(inputs[1])]
        torch.testing.assert_close(*outputs)
        for y in outputs:
            y.square().sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def check_ddp(share: slice) -> None:
    """A discriminator called twice before one backward equals one process over both halves."""
    torch.manual_seed(4)
    conv = nn.Conv2d(1, 3, 3)
    norm = BatchNorm2d(3, activation="leaky_relu")
    model = nn.Sequential(conv, norm, nn.Flatten(), nn.Linear(12, 1)).double()
    twin = copy.deepcopy(model)
    parallel = DistributedDataParallel(ganfast.convert_sync_batchnorm(model))
    real, fake = whole(8, 1, 4, 4), whole(16, 1, 4, 4)[8:]
    half = slice(0, 4) if share.start == 0 else slice(4, 8)
    criterion = GANLoss()
    for _ in range(2):
        for module, part in ((twin, slice(0, 8)), (parallel, half)):
            module.zero_grad()
            criterion.discriminator(module(real[part]), module(fake[part]))[0].backward()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


class AutoEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True))
        self.decode = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def vqgan(*, fuse: bool) -> tuple[AutoEncoder, nn.Sequential]:
    torch.manual_seed(5)
    autoencoder = AutoEncoder().double()
    discriminator = nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1), nn.LeakyReLU(0.2, True),
        nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2, True),
        nn.Conv2d(4, 1, 3, 1, 1),
    ).double()  # fmt: skip
    if fuse:
        assert len(ganfast.fuse(autoencoder, discriminator).fused) == 2
    return autoencoder, discriminator


def train_vqgan(
    autoencoder: nn.Module, discriminator: nn.Module, x: Tensor, last: Tensor, steps: int = 3
) -> list[Tensor]:
    """Train as VQGAN does: an adaptive weight, then the discriminator called twice."""
    criterion, lecam = GANLoss("hinge"), LeCamRegularization().double()
    optimizers = [
        torch.optim.SGD(network.parameters(), 0.05) for network in (autoencoder, discriminator)
    ]
    losses = []
    for _ in range(steps):
        y = autoencoder(x)
        reconstruction, adversarial = (y - x).abs().mean(), criterion.generator(discriminator(y))
        weight = ganfast.functional.adaptive_weight(reconstruction, adversarial, last)
        optimizers[0].zero_grad()
        (reconstruction + 0.8 * weight * adversarial).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        real, fake = discriminator(x), discriminator(y.detach())
        loss = criterion.discriminator(real, fake)[0] + 0.1 * lecam(real, fake)
        loss.backward()
        optimizers[1].step()
        losses += [weight, loss.detach()]
    return losses


def check_vqgan(share: slice) -> None:
    """Fused and synchronised networks train in DDP, with and without broadcast buffers."""
    x = whole(8, 1, 8, 8)[:4] if share.start == 0 else whole(8, 1, 8, 8)[4:]
    for broadcast_buffers in (True, False):
        for synchronised in (True, False):
            networks = vqgan(fuse=True)
            if synchronised:
                for network in networks:
                    ganfast.convert_sync_batchnorm(network)
            parallel = [
                DistributedDataParallel(network, broadcast_buffers=broadcast_buffers)
                for network in networks
            ]
            losses = train_vqgan(*parallel, x, networks[0].decode.weight)
            assert all(torch.isfinite(loss) for loss in losses)
            for parameter in (p for network in networks for p in network.parameters()):
                torch.testing.assert_close(summed(parameter.detach()) / 2, parameter.detach())
            if broadcast_buffers:
                continue
            # torch's own layers, which work in DDP if nothing is broadcast
            twins = vqgan(fuse=False)
            if synchronised:
                for twin in twins:
                    ganfast.convert_sync_batchnorm(twin)
            parallel = [DistributedDataParallel(t, broadcast_buffers=False) for t in twins]
            expected = train_vqgan(*parallel, x, twins[0].decode.weight)
            torch.testing.assert_close(losses, expected)
            for network, twin in zip(networks, twins, strict=True):
                torch.testing.assert_close(network.state_dict(), twin.state_dict())


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for name in sys.argv[1:] or CHECKS:
        CHECKS[name](SHARES[dist.get_rank()])
        dist.barrier()
        if dist.get_rank() == 0:
            print(f"{name} holds", flush=True)
    dist.destroy_process_group()
    # A process group that DistributedDataParallel has used outlives destroy_process_group, and its
    # threads outlive the interpreter, which aborts now and then ("terminate called without an
    # active exception"): end without finalising it.
    sys.stdout.flush()
    os._exit(0)
