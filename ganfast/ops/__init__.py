"""The ops: a folder for each family, its backends side by side. Importing this registers them."""

from ganfast.ops import batch_norm_act, extension, losses, registry, triton_launch

__all__ = ["batch_norm_act", "losses"]

extension.load()
for family in (batch_norm_act, losses):
    family.register(python_autograd=not extension.is_loaded())
if not triton_launch.why_not("cuda"):
    registry.fill_with_triton()
