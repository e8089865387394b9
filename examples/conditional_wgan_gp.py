"""Train a conditional WGAN-GP on digits: five updates of the critic for one of the generator.

    python examples/conditional_wgan_gp.py --steps 2000 --out digits.png

Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028: Wasserstein loss with a gradient penalty of
weight 10, Adam with betas (0, 0.9), a critic without BatchNorm. Labels are embedded in the latent
vector and projected on the critic's features (Miyato & Koyama 2018, https://arxiv.org/abs/1802.05637).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torchvision.utils import save_image

import ganfast
from ganfast.training import GANStep, load_images

CLASSES, LATENT, N_CRITIC = 10, 64, 5


class Generator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, LATENT)
        self.first = nn.Linear(LATENT, 4 * width * 16)
        self.norm1 = ganfast.nn.BatchNorm2d(4 * width, activation="relu")
        self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1)
        self.norm2 = ganfast.nn.BatchNorm2d(2 * width, activation="relu")
        self.up2 = nn.ConvTranspose2d(2 * width, 1, 4, 2, 1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        x = self.first(z * self.embedding(labels)).unflatten(1, (-1, 4, 4))
        return self.up2(self.norm2(self.up1(self.norm1(x)))).tanh()


class Critic(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4), nn.LeakyReLU(0.2), nn.Flatten(),
        )  # fmt: skip
        self.score = nn.Linear(4 * width, 1)
        self.embedding = nn.Embedding(CLASSES, 4 * width)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.features(x)
        return self.score(h).squeeze(1) + (h * self.embedding(labels)).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--out", default="digits.png")
    args = parser.parse_args()

    torch.manual_seed(0)
    data = load_images("digits", image_size=16)
    images, labels = data.images / 127.5 - 1, data.labels
    generator, critic = Generator(args.width), Critic(args.width)
    adams = [torch.optim.Adam(n.parameters(), 1e-4, (0.0, 0.9)) for n in (generator, critic)]
    step = GANStep(
        generator, critic, *adams, ganfast.nn.GANLoss("wasserstein"), (LATENT,),
        penalty=10.0, n_critic=N_CRITIC, ema=0.999,
    )  # fmt: skip
    for number in range(args.steps):
        chosen = torch.randint(len(images), (N_CRITIC * args.batch_size,))
        result = step(images[chosen], labels[chosen])
        if number % 100 == 0:
            print(f"step {number}: critic {result.d_loss:.3f}, generator {result.g_loss:.3f}")
    print(step.explain())
    rows = torch.arange(CLASSES).repeat_interleave(8)
    with torch.no_grad():
        fake = step.average.generator(torch.randn(len(rows), LATENT), rows)
    save_image(fake, args.out, nrow=8, normalize=True, value_range=(-1, 1))


if __name__ == "__main__":
    main()
