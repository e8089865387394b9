"""Poisson blending: fill a hole with the gradients of one image and the border of another."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

__all__ = ["blend"]


def blend(images: Tensor, fillings: Tensor, missing: Tensor) -> Tensor:
    """Fill the missing pixels so that they meet the known ones without a seam.

    The result has the known pixels of ``images``, and inside the hole the least sum of squared
    differences between its gradients and those of ``fillings``; beyond the edge of the image there
    is nothing to meet.

    Args:
        images: ``[N, C, H, W]`` in [-1, 1].
        fillings: of the same shape.
        missing: bool ``[H, W]``; at least one pixel must be known.

    Returns:
        Images of the same shape, dtype and device, in [-1, 1].

    Source:
        Perez, Gangnet and Blake 2003, equation 3, https://doi.org/10.1145/882262.882269;
        Yeh et al. 2017, equation 6, https://arxiv.org/abs/1607.07539

    Examples:
        >>> import torch
        >>> from ganfast.applications.edit import blend
        >>> missing = torch.tensor([[False, True, True, False]])
        >>> blend(torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4), missing)
        tensor([[[[0., 0., 0., 0.]]]])
    """
    from scipy.sparse.linalg import splu

    laplacian = _laplacian(*missing.shape)
    hole = missing.cpu().numpy().ravel()
    rows = laplacian[hole]
    # L (x - f) = 0 in the hole, where x - f is known outside of it.
    apart = (images - fillings).cpu().double().flatten(2).flatten(0, 1).numpy().T  # [HW, NC]
    known = numpy.where(hole[:, None], 0.0, apart)
    inside = splu(rows[:, hole].tocsc()).solve(-(rows @ known))
    known[hole] = inside
    offset = torch.from_numpy(known.T.copy()).reshape(images.shape).to(images)
    return images.where(~missing.to(images.device), (fillings + offset).clamp(-1, 1))


def _laplacian(height: int, width: int) -> Any:
    """Return the graph Laplacian of a grid of pixels, sparse ``[HW, HW]``."""
    from scipy import sparse

    def path(length: int) -> Any:
        step = sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(length - 1, length))
        return step.T @ step

    down, along = sparse.eye_array(height), sparse.eye_array(width)
    return sparse.csr_array(sparse.kron(path(height), along) + sparse.kron(down, path(width)))
