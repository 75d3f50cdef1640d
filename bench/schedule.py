"""Sigma grids: noise levels from 1 (noise) to 0 (image), one entry a knot."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def shifted_sigmas(steps: int, shift: float) -> Float[np.ndarray, " knot"]:
    """Return linspace(1, 0, steps + 1) under sigma -> k*sigma / (1 + (k-1)*sigma), the grid of FLUX and SD3.

    Args:
        steps: denoising steps T, at least 2.
        shift: k, 1 for a plain grid; DanceGRPO, MixGRPO and BranchGRPO use 3.

    Raises:
        ValueError: for fewer than two steps or a shift that is not positive.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: a path needs at least 2 steps, one of them stochastic")
    if not shift > 0:
        raise ValueError(f"shift={shift}: the shift of a sigma grid is positive (1 leaves it plain)")
    sigma = np.linspace(1.0, 0.0, steps + 1)
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)
