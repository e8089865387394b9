"""VQGAN's adversarial part: patch discriminator, hinge loss, adaptive weight, LeCam, DDP.

    python examples/vqgan_discriminator.py --steps 20
    torchrun --nproc-per-node 2 examples/vqgan_discriminator.py --steps 20

``--no-fuse`` trains the same with torch's layers: the losses are equal up to rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ganfast
from ganfast.functional import adaptive_weight
from ganfast.nn import GANLoss, LeCamRegularization


class VectorQuantised(nn.Module):
    """A small autoencoder with a codebook; returns images and the codebook's loss."""

    def __init__(self, width: int = 16, codes: int = 32) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )  # fmt: skip
        self.codebook = nn.Embedding(codes, width)
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.last = nn.Conv2d(width, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(x).movedim(1, -1)
        nearest = torch.cdist(z.flatten(0, -2), self.codebook.weight).argmin(1)
        q = self.codebook(nearest).view_as(z)
        loss = (q - z.detach()).square().mean() + 0.25 * (q.detach() - z).square().mean()
        q = z + (q - z).detach()  # the gradient passes straight through
        return self.last(self.decode(q.movedim(-1, 1))), loss


def patch_discriminator(width: int = 16) -> nn.Sequential:
    """Build VQGAN's NLayerDiscriminator, two layers deep."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for stride in (2, 1):
        layers += [nn.Conv2d(width, 2 * width, 4, stride, 1, bias=False)]
        layers += [nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, True)]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))


def train(steps: int, fuse: bool) -> list[tuple[float, float]]:
    """Return the losses of the autoencoder and of the discriminator."""
    torch.manual_seed(0)
    autoencoder, discriminator = VectorQuantised(), patch_discriminator()
    if fuse:
        print(ganfast.fuse(autoencoder, discriminator))
    last = autoencoder.last.weight
    networks: list[nn.Module] = [autoencoder, discriminator]
    if dist.is_initialized():
        networks = [
            DistributedDataParallel(ganfast.convert_sync_batchnorm(network)) for network in networks
        ]
        torch.manual_seed(dist.get_rank())  # each process has images of its own
    generate, judge = networks
    adam_g, adam_d = (torch.optim.Adam(n.parameters(), 2e-4, (0.5, 0.9)) for n in networks)
    criterion, lecam = GANLoss("hinge"), LeCamRegularization()
    losses = []
    for _ in range(steps):
        images = torch.rand(8, 1, 32, 32)
        reconstructed, loss_codebook = generate(images)
        loss_pixels = (reconstructed - images).abs().mean()
        loss_adversarial = criterion.generator(judge(reconstructed))
        weight = adaptive_weight(loss_pixels, loss_adversarial, last)
        loss_g = loss_pixels + loss_codebook + 0.8 * weight * loss_adversarial
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        real, fake = judge(images), judge(reconstructed.detach())  # twice before one backward
        # VQGAN takes half of the hinge loss.
        loss_d = 0.5 * criterion.discriminator(real, fake)[0] + 0.001 * lecam(real, fake)
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
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    losses = train(args.steps, args.fuse)
    print("autoencoder {:.6f}, discriminator {:.6f}".format(*losses[-1]), flush=True)
    if dist.is_initialized():
        dist.barrier()  # the processes leave together
        dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
