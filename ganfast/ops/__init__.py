"""The ops: one folder each, one file a backend in it. Importing this registers all of them."""

from ganfast.ops import _library, _native, _triton, batch_norm_act, binary_cross_entropy, gan_loss

__all__ = ["batch_norm_act", "binary_cross_entropy", "gan_loss"]

_native.load()
for op in (batch_norm_act, binary_cross_entropy, gan_loss):
    op.register(python_autograd=not _native.is_loaded())
if not _triton.why_not("cuda"):
    _library.fill_with_triton()
