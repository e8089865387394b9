"""An autoencoder with MONAI's PatchDiscriminator and PatchAdversarialLoss, fused in one call.

    pip install ganfast[examples]
    python examples/monai_patchgan.py --steps 20

``--no-fuse`` trains the same without ganfast: the losses are equal up to rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import AutoEncoder, PatchDiscriminator

import ganfast


def train(steps: int, fuse: bool) -> list[tuple[float, float]]:
    """Return the losses of the autoencoder and of the discriminator."""
    torch.manual_seed(0)
    autoencoder = AutoEncoder(
        spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 16), strides=(2, 2),
        act=("LEAKYRELU", {"negative_slope": 0.2}), norm="BATCH",
    )  # fmt: skip
    discriminator = PatchDiscriminator(spatial_dims=2, channels=8, in_channels=1, num_layers_d=2)
    adversarial = PatchAdversarialLoss(criterion="bce")
    if fuse:
        print(ganfast.fuse(autoencoder, discriminator, adversarial))
    adam_g, adam_d = (
        torch.optim.Adam(network.parameters(), 1e-3) for network in (autoencoder, discriminator)
    )
    losses = []
    for _ in range(steps):
        images = torch.rand(8, 1, 32, 32)
        adam_g.zero_grad()
        reconstructed = autoencoder(images)
        scores = discriminator(reconstructed)[-1]  # before it: the features
        loss_g = adversarial(scores, target_is_real=True, for_discriminator=False)
        loss_g = (reconstructed - images).abs().mean() + 0.01 * loss_g
        loss_g.backward()
        adam_g.step()
        adam_d.zero_grad()
        fake, real = (discriminator(x.contiguous())[-1] for x in (reconstructed.detach(), images))
        loss_d = adversarial(fake, target_is_real=False, for_discriminator=True)
        loss_d = loss_d + adversarial(real, target_is_real=True, for_discriminator=True)
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
    print("autoencoder {:.6f}, discriminator {:.6f}".format(*losses[-1]))
    return losses


if __name__ == "__main__":
    main()
