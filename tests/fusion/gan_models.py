"""Small networks in the styles of public GAN code, and how many pairs each of them has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MODELS", "Style", "dcgan_discriminator", "dcgan_generator"]


class Style(NamedTuple):
    """A model, its input, and how many pairs each way of fusing finds in it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    fuse: int
    compile: int
    act_norm: int = 0  # pairs beyond those of `fuse` that act_norm=True finds


class DCGAN(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.main = nn.Sequential(*layers)
        self.apply(self.init)

    @staticmethod
    def init(module: nn.Module) -> None:
        if module.__class__.__name__.find("Conv") != -1:
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif module.__class__.__name__.find("BatchNorm") != -1:
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def dcgan_generator(nz: int = 8, ngf: int = 4, nc: int = 3) -> nn.Module:
    return DCGAN(
        nn.ConvTranspose2d(nz, ngf * 8, 4, 1, 0, bias=False),
        nn.BatchNorm2d(ngf * 8),
        nn.ReLU(True),
        nn.ConvTranspose2d(ngf * 8, ngf * 4, 4, 2, 1, bias=False),
        nn.BatchNorm2d(ngf * 4),
        nn.ReLU(True),
        nn.ConvTranspose2d(ngf * 4, ngf, 4, 2, 1, bias=False),
        nn.BatchNorm2d(ngf),
        nn.ReLU(True),
        nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def dcgan_discriminator(nc: int = 3, ndf: int = 4) -> nn.Module:
    return DCGAN(
        nn.Conv2d(nc, ndf, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(ndf, ndf * 2, 4, 2, 1, bias=False),
        nn.BatchNorm2d(ndf * 2),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(ndf * 2, ndf * 4, 4, 2, 1, bias=False),
        nn.BatchNorm2d(ndf * 4),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(ndf * 4, 1, 4, 1, 0, bias=False),
        nn.Sigmoid(),
    )


class Functional(nn.Module):
    """Layers as attributes, activations as functions, in every spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4 * 16)
        self.bn0 = nn.BatchNorm1d(4 * 16)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.fc(x))).view(-1, 4, 4, 4)
        spellings = (
            lambda t: F.leaky_relu(t, 0.2),
            lambda t: F.leaky_relu(t, negative_slope=0.3, inplace=True),
            torch.relu,
            lambda t: t.relu_(),
            lambda t: t.relu(),
            lambda t: F.leaky_relu_(t, 0.1),
        )
        for conv, norm, act in zip(self.convs, self.norms, spellings, strict=True):
            x = act(norm(conv(x)))
        return torch.tanh(x)


class SharedActivation(nn.Module):
    """One activation for the whole network; it also acts where no BatchNorm is."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.LeakyReLU(0.2, inplace=True)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), self.act)
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), self.act)
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), self.act)
        self.fourth = nn.Conv2d(8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fourth(self.third(self.second(self.first(x)))))


class PreActivation(nn.Module):
    """Residual blocks that normalise first."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
            self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv1(self.relu(self.bn1(x)))
            return x + self.conv2(self.relu(self.bn2(h)))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 4, 3), self.Block(4), self.Block(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ConditionalNorm(nn.Module):
    """Scale and shift come from a label, between the normalisation and the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.embed = nn.Embedding(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        labels = torch.arange(x.shape[0], device=x.device) % 5
        gamma, beta = self.embed(labels)[:, :, None, None].chunk(2, 1)
        return F.relu(gamma * self.norm(self.conv(x)) + beta)


class UNetBlock(nn.Module):
    """A recursive U-Net: the child's first activation changes the parent's output in place."""

    def __init__(self, inner: UNetBlock | None = None, outermost: bool = False) -> None:
        super().__init__()
        channels = 3 if outermost else 4
        down = [nn.Conv2d(channels, 4, 4, 2, 1)]
        up = [nn.ReLU(True), nn.ConvTranspose2d(8 if inner else 4, channels, 4, 2, 1)]
        if outermost:
            layers = [*down, inner, *up, nn.Tanh()]
        elif inner:
            dropout = nn.Dropout(0.5)
            down = [nn.LeakyReLU(0.2, True), *down, nn.BatchNorm2d(4)]
            layers = [*down, inner, *up, nn.BatchNorm2d(4), dropout]
        else:
            layers = [nn.LeakyReLU(0.2, True), *down, *up, nn.BatchNorm2d(4)]
        self.outermost = outermost
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class Blocks(nn.Module):
    """Sequential blocks with named children in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for width, out in ((3, 4), (4, 8)):
            block = nn.Sequential()
            block.add_module(f"conv{out}", nn.Conv2d(width, out, 3))
            block.add_module(f"batchnorm{out}", nn.BatchNorm2d(out))
            block.add_module(f"lrelu{out}", nn.LeakyReLU(0.2, inplace=True))
            self.blocks.append(block)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Indexed(nn.Module):
    """The forward takes children by number, and loops over them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.model[2](self.model[1](self.model[0](x)))
        for layer in self.model[3:]:
            x = layer(x)
        return x


def mlp() -> nn.Module:
    def block(width: int, out: int, normalize: bool = True) -> list[nn.Module]:
        norm = [nn.BatchNorm1d(out, 0.8)] if normalize else []
        return [nn.Linear(width, out), *norm, nn.LeakyReLU(0.2, inplace=True)]

    layers = [*block(6, 8, normalize=False), *block(8, 16), *block(16, 32), nn.Linear(32, 10)]
    return nn.Sequential(*layers, nn.Tanh())


def waves() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 1, 3))


def volumes() -> nn.Module:
    layers = [nn.ConvTranspose3d(4, 3, 4), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 1, 3)]
    return nn.Sequential(*layers, nn.Sigmoid())


def spectral() -> nn.Module:
    norms = (nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm)
    layers: list[nn.Module] = []
    for normalise in norms:
        conv = nn.Conv2d(3 if not layers else 4, 4, 3)
        layers += [normalise(conv), nn.BatchNorm2d(4), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def other_followers() -> nn.Module:
    followers = [nn.Dropout2d(0.3), nn.Upsample(scale_factor=2), nn.Tanh(), nn.PReLU(), nn.ReLU6()]
    layers: list[nn.Module] = []
    for follower in followers:
        layers += [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), follower]
    return nn.Sequential(*layers, nn.BatchNorm2d(3))


def activation_first() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.LeakyReLU(0.2, inplace=True), nn.BatchNorm2d(4, 0.8),
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4),
    )  # fmt: skip


def cyclegan_generator(ngf: int = 4, blocks: int = 2) -> nn.Module:
    """CycleGAN's and CUT's generator; with a shared activation and blocks, pix2pixHD's."""
    return _ResNetGenerator(ngf, blocks, lambda: nn.ReLU(True))


def pix2pixhd_generator(ngf: int = 4, blocks: int = 2) -> nn.Module:
    shared = nn.ReLU(True)
    return _ResNetGenerator(ngf, blocks, lambda: shared)


class _ResNetGenerator(nn.Module):
    def __init__(self, ngf: int, blocks: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        norm = partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3), nn.Conv2d(3, ngf, 7), norm(ngf), act(),
            nn.Conv2d(ngf, 2 * ngf, 3, 2, 1), norm(2 * ngf), act(),
        ]  # fmt: skip
        layers += [_ResNetBlock(2 * ngf, norm, act()) for _ in range(blocks)]
        layers += [nn.ConvTranspose2d(2 * ngf, ngf, 3, 2, 1, output_padding=1), norm(ngf), act()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _ResNetBlock(nn.Module):
    def __init__(self, channels: int, norm: Callable[..., nn.Module], act: nn.Module) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), norm(channels), act,
            nn.Dropout(0.5),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), norm(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def patch_discriminator(ndf: int = 4) -> nn.Module:
    """The 70x70 discriminator of CycleGAN and pix2pix."""
    layers: list[nn.Module] = [nn.Conv2d(3, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for inputs, outputs, stride in (
        (ndf, 2 * ndf, 2),
        (2 * ndf, 4 * ndf, 2),
        (4 * ndf, 8 * ndf, 1),
    ):
        layers += [nn.Conv2d(inputs, outputs, 4, stride, 1), nn.InstanceNorm2d(outputs)]
        layers += [nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * ndf, 1, 4, 1, 1))


class NNUNetBlock(nn.Module):
    """nnU-Net's convolution, whose layers are attributes and members of a Sequential at once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, 1, 1)
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(inplace=True)
        self.all_modules = nn.Sequential(self.conv, self.norm, self.nonlin)

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


def tracked_instances() -> nn.Module:
    norms = (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.InstanceNorm1d(4))
    return nn.Sequential(
        nn.Conv1d(3, 4, 3), norms[0], nn.ReLU(), nn.Conv1d(4, 4, 3), norms[1], nn.LeakyReLU(0.3)
    )


MODELS = {
    "dcgan generator": Style(dcgan_generator, (4, 8, 1, 1), 3, 3),
    "dcgan discriminator": Style(dcgan_discriminator, (4, 3, 32, 32), 2, 2),
    "functional": Style(Functional, (4, 6), 0, 7),
    "shared activation": Style(SharedActivation, (4, 3, 9, 9), 2, 2),
    "pre-activation": Style(PreActivation, (4, 3, 8, 8), 0, 4),
    "conditional norm": Style(ConditionalNorm, (4, 3, 8, 8), 0, 0),
    "u-net": Style(lambda: UNetBlock(UNetBlock(UNetBlock()), True), (2, 3, 16, 16), 0, 0),
    "module list": Style(Blocks, (4, 3, 8, 8), 2, 2),
    "indexed": Style(Indexed, (4, 3, 8, 8), 2, 2),
    "mlp": Style(mlp, (6, 6), 2, 2),
    "1d": Style(waves, (4, 2, 12), 1, 1),
    "3d": Style(volumes, (2, 4, 2, 2, 2), 1, 1),
    "spectral norm": Style(spectral, (4, 3, 8, 8), 2, 2),
    "other followers": Style(other_followers, (4, 3, 6, 6), 0, 0),
    "activation first": Style(activation_first, (4, 3, 12, 12), 1, 1, 2),
    "cyclegan generator": Style(cyclegan_generator, (2, 3, 16, 16), 5, 5),
    "pix2pixhd generator": Style(pix2pixhd_generator, (1, 3, 16, 16), 5, 5),
    "patch discriminator": Style(patch_discriminator, (2, 3, 32, 32), 3, 3),
    "nnu-net": Style(
        lambda: nn.Sequential(NNUNetBlock(2, 3), NNUNetBlock(3, 4)), (2, 2, 5, 4, 6), 0, 2
    ),
    "tracked instances": Style(tracked_instances, (3, 3, 12), 2, 2),
}
