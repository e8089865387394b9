"""The losses of GANs: ``binary_cross_entropy`` (bce.py) and ``gan_loss`` (gan.py).

Both consist of the same functions of one score. ``form`` names such a function, in the op
``gan_loss`` as in Triton's kernels and csrc; a kind of GAN loss, such as "lsgan", consists of the
forms that ``functional.losses.GAN_LOSSES`` lists.
"""

from ganfast.ops.losses import bce, gan

__all__ = ["bce", "gan", "register"]


def register(*, python_autograd: bool) -> None:
    """Register the autograd forms: all of them, or only what the extension leaves to Python."""
    bce.register(python_autograd=python_autograd)
    gan.register(python_autograd=python_autograd)
