"""Given images and a trained generator: their latent vectors, ways between them, their holes."""

from ganfast.applications.editing.blending import blend
from ganfast.applications.editing.holes import MASKS, context_weights, make_mask
from ganfast.applications.editing.inpainting import Inpainted, inpaint
from ganfast.applications.editing.projection import Projection, project, ways
from ganfast.applications.editing.search import SearchOptions

__all__ = [
    "MASKS",
    "Inpainted",
    "Projection",
    "SearchOptions",
    "blend",
    "context_weights",
    "inpaint",
    "make_mask",
    "project",
    "ways",
]
