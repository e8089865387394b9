"""Editing of images by a trained generator: projection, interpolation and inpainting."""

from ganfast.applications.edit.blending import blend
from ganfast.applications.edit.holes import MASKS, context_weights, make_mask
from ganfast.applications.edit.inpainting import Inpainted, inpaint
from ganfast.applications.edit.projection import Projection, project, ways
from ganfast.applications.latent_search import SearchOptions

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
