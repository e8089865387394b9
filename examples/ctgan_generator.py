"""CTGAN's generator, whose forward calls its layers itself, through the compile backend.

    pip install ganfast[examples]
    python examples/ctgan_generator.py --steps 20

``options={"inner": "eager"}`` works with gradient penalties, on GPUs too. ``--no-fuse`` trains
without ganfast: the losses are equal up to rounding.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import torch
from ctgan.synthesizers.ctgan import Discriminator, Generator


def train(steps: int, fuse: bool) -> list[tuple[float, float]]:
    """Return the losses of the generator and of the discriminator."""
    torch.manual_seed(0)
    columns, pac = 6, 10
    generator = Generator(16, (32, 32), columns)
    discriminator = Discriminator(columns, (32, 32), pac)
    compiled = generator
    if fuse:
        compiled = torch.compile(generator, backend="ganfast", options={"inner": "eager"})
    adam_g, adam_d = (
        torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.9))
        for network in (generator, discriminator)
    )
    losses = []
    for _ in range(steps):
        real = torch.randn(50, columns).tanh()
        fake = compiled(torch.randn(50, 16)).tanh()
        penalty = discriminator.calc_gradient_penalty(real, fake, "cpu", pac)
        loss_d = discriminator(fake).mean() - discriminator(real).mean() + penalty
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        loss_g = -discriminator(compiled(torch.randn(50, 16)).tanh()).mean()
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        losses.append((loss_g.item(), loss_d.item()))
    return losses


def main(words: Sequence[str] | None = None) -> list[tuple[float, float]]:
    """Train as the command line says, and print what was fused and the last losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--no-fuse", dest="fuse", action="store_false")
    args = parser.parse_args(words)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ganfast.fusion.graph").setLevel(logging.INFO)
    losses = train(args.steps, args.fuse)
    print("generator {:.6f}, discriminator {:.6f}".format(*losses[-1]))
    return losses


if __name__ == "__main__":
    main()
