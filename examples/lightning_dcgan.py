"""A DCGAN in PyTorch Lightning: manual optimization around ganfast's training step.

    pip install ganfast[train] lightning
    python examples/lightning_dcgan.py --data digits --steps 200

Then look at runs/lightning/samples.png. Lightning keeps its part: devices, logging, checkpoints,
callbacks. Each ``training_step`` is one GANStep, which updates both networks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torchvision.utils import save_image

from ganfast.models import dcgan
from ganfast.nn import GANLoss
from ganfast.training import Batches, GANStep, load_images


class LightningDCGAN(L.LightningModule):
    """A DCGAN, its optimizers, and one step of both."""

    def __init__(
        self, image_size: int = 32, channels: int = 1, width: int = 32, lr: float = 5e-4
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False  # two optimizers, and losses that take turns
        gan = dcgan(image_size=image_size, channels=channels, width=width)
        self.generator, self.discriminator = gan.generator, gan.discriminator
        self.latent = gan.latent

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the generator and for the discriminator, as Radford et al. 2015 have."""
        return [
            torch.optim.Adam(network.parameters(), self.hparams.lr, (0.5, 0.999), fused=True)
            for network in (self.generator, self.discriminator)
        ]

    def on_fit_start(self) -> None:
        """Make the step, now that the networks are on their device and the optimizers exist."""
        # Lightning's wrapped optimizers, because their step() is what Lightning counts: with
        # self.optimizers(use_pl_optimizer=False) its global_step stays 0, max_steps never comes
        # and no checkpoint is due. A CUDA graph replays without calling step(), hence "never".
        # GANStep calls backward itself and not manual_backward: leave the Trainer's precision at
        # 32-true and give GANStep precision="bf16" instead, and train in one process.
        optimizer_g, optimizer_d = self.optimizers()
        self.step = GANStep(
            self.generator,
            self.discriminator,
            optimizer_g,
            optimizer_d,
            GANLoss(),
            self.latent,
            capture="never",
        )

    def training_step(self, real: Tensor, batch_index: int) -> None:
        """Update both networks for real images ``[N, C, H, W]`` in [-1, 1]."""
        self.log_dict(self.step(real)._asdict(), prog_bar=True)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Return images ``[count, C, H, W]`` in [-1, 1]."""
        self.eval()
        return self.generator(torch.randn(count, *self.latent, device=self.device))


def main(words: list[str] | None = None) -> LightningDCGAN:
    """Train, and draw 64 images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="digits", help="as of ganfast train (default: digits)")
    parser.add_argument("--root", help="where mnist, fashion-mnist, cifar10 lie")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--accelerator", default="auto", help="as of Lightning's Trainer")
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"))
    args = parser.parse_args(words)

    L.seed_everything(0)
    images = load_images(args.data, root=args.root, image_size=args.image_size)
    batches = Batches(images, args.batch_size)  # endless: max_steps ends the training
    module = LightningDCGAN(args.image_size, images.image_shape[0], args.width)
    trainer = L.Trainer(
        max_steps=2 * args.steps,  # Lightning counts the steps of each optimizer
        accelerator=args.accelerator,
        devices=1,
        logger=CSVLogger(args.out),
        log_every_n_steps=10,
    )
    trainer.fit(module, batches)
    save_image(module.sample(64), args.out / "samples.png", normalize=True, value_range=(-1, 1))
    print(f"see {args.out / 'samples.png'}")
    return module


if __name__ == "__main__":
    main()
