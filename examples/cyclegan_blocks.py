"""CycleGAN's blocks: InstanceNorm and its activation fused, in generators and discriminators.

    python examples/cyclegan_blocks.py --steps 20

``--no-fuse`` trains the same with torch's layers: the losses are equal up to rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import ganfast
from ganfast.nn import GANLoss


class ResNetBlock(nn.Module):
    """Add to the input what two convolutions make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width),
            nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def generator(width: int = 8) -> nn.Sequential:
    """Build CycleGAN's generator with one step down, one block and one step up."""
    return nn.Sequential(
        nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU(True),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(True),
        ResNetBlock(2 * width),
        nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), nn.InstanceNorm2d(width), nn.ReLU(True),
        nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh(),
    )  # fmt: skip


def discriminator(width: int = 8) -> nn.Sequential:
    """Build CycleGAN's patch discriminator, two layers deep."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, True),
        nn.Conv2d(width, 2 * width, 4, 2, 1), nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2, True),
        nn.Conv2d(2 * width, 1, 4, 1, 1),
    )  # fmt: skip


def train(steps: int, fuse: bool) -> list[tuple[float, float]]:
    """Return the losses of the generators and of the discriminators."""
    torch.manual_seed(0)
    there, back, judge_a, judge_b = generator(), generator(), discriminator(), discriminator()
    if fuse:
        print(ganfast.fuse(there, back, judge_a, judge_b))
    adam_g, adam_d = (
        torch.optim.Adam([*a.parameters(), *b.parameters()], 2e-4, (0.5, 0.999))
        for a, b in ((there, back), (judge_a, judge_b))
    )
    criterion = GANLoss("lsgan")
    losses = []
    for _ in range(steps):
        a, b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
        fake_b, fake_a = there(a), back(b)
        cycle = (back(fake_b) - a).abs().mean() + (there(fake_a) - b).abs().mean()
        adversarial = criterion.generator(judge_b(fake_b)) + criterion.generator(judge_a(fake_a))
        loss_g = adversarial + 10 * cycle
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        loss_d = sum(
            0.5 * criterion.discriminator(judge(real), judge(fake.detach()))[0]
            for judge, real, fake in ((judge_a, a, fake_a), (judge_b, b, fake_b))
        )
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        losses.append((loss_g.item(), loss_d.item()))
    return losses


def main(words: Sequence[str] | None = None) -> list[tuple[float, float]]:
    """Train as the command line says, and print the last losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--no-fuse", dest="fuse", action="store_false")
    args = parser.parse_args(words)
    losses = train(args.steps, args.fuse)
    print("generator {:.6f}, discriminator {:.6f}".format(*losses[-1]))
    return losses


if __name__ == "__main__":
    main()
