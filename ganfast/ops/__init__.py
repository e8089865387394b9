"""The ops: one folder each, one file a backend in it. Importing this registers all of them."""

from ganfast.ops import _native, batch_norm_act

__all__ = ["batch_norm_act"]

_native.load()
batch_norm_act.register(python_autograd=not _native.is_loaded())
