"""Editing of images by a trained generator: projection, interpolation, inpainting, upscaling."""

from ganfast.applications.edit.blending import blend
from ganfast.applications.edit.holes import MASKS, context_weights, make_mask
from ganfast.applications.edit.inpainting import Inpainted, inpaint
from ganfast.applications.edit.projection import Projection, mix, project, ways
from ganfast.applications.edit.upscaling import Upscaled, resize, upscale
from ganfast.applications.latent_search import SearchOptions

__all__ = [
    "MASKS",
    "Inpainted",
    "Projection",
    "SearchOptions",
    "Upscaled",
    "blend",
    "context_weights",
    "inpaint",
    "make_mask",
    "mix",
    "project",
    "resize",
    "upscale",
    "ways",
]
