"""The losses of GANs: ``binary_cross_entropy`` (bce.py) and ``gan_loss`` (gan.py).

Both are made of the same functions of one score. The op ``gan_loss`` takes the ``kind`` of this
function, which is how Triton's kernels and csrc name it as well; ``functional.losses`` says which
kinds of GAN loss consist of which.
"""

from ganfast.ops.losses import bce, gan

__all__ = ["bce", "gan", "register"]


def register(*, python_autograd: bool) -> None:
    """Register the autograd forms: all of them, or only what the extension leaves to Python."""
    bce.register(python_autograd=python_autograd)
    gan.register(python_autograd=python_autograd)
