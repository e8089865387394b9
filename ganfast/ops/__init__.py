"""The ops: one folder each, one file a backend in it. Importing this registers all of them."""

from ganfast.ops import (
    batch_norm_act,
    binary_cross_entropy,
    extension,
    gan_loss,
    registry,
    triton_launch,
)

__all__ = ["batch_norm_act", "binary_cross_entropy", "gan_loss"]

extension.load()
for op in (batch_norm_act, binary_cross_entropy, gan_loss):
    op.register(python_autograd=not extension.is_loaded())
if not triton_launch.why_not("cuda"):
    registry.fill_with_triton()
