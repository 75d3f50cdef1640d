"""Sigma grids: noise levels from 1 (noise) to 0 (image), one entry a knot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


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
    return _shifted(np.linspace(1.0, 0.0, steps + 1), shift)


def double_shifted_sigmas(steps: int, shift: float) -> Float[np.ndarray, " knot"]:
    """Return the grid that diffusers' FlowMatchEulerDiscreteScheduler makes of a number of steps, as SD3's pipelines
    ask it: even between sigmas that are shifted already, then shifted again.

    Its last forward but none is at a sigma of .009 (shift 3), where nothing is left to do.

    Raises:
        ValueError: as `shifted_sigmas`.
    """
    least = shifted_sigmas(1000, shift)[-2]  # of the scheduler's thousand training times
    checked = shifted_sigmas(steps, shift)
    return np.r_[_shifted(np.linspace(1.0, least, len(checked) - 1), shift), 0.0]


def sigma_grid(steps: int, shift: float, grid: str) -> Float[np.ndarray, " knot"]:
    """Return the grid of that name: plain or double-shift."""
    return double_shifted_sigmas(steps, shift) if grid == "double-shift" else shifted_sigmas(steps, shift)


def respaced(sigmas: Float[np.ndarray, " knot"], shift: float, first: int, steps: int) -> Float[np.ndarray, " new"]:
    """Return the grid with `steps` steps in place of those from step `first` on, even before the shift.

    MixGRPO-Flash's grid (arXiv 2507.21802), counted in steps and ending at 0; its code counts points.

    Raises:
        ValueError: unless 0 <= first < T and steps is at least 1.
    """
    if not 0 <= first < len(sigmas) - 1 or steps < 1:
        raise ValueError(f"{steps} steps cannot take the place of those from {first} on of {len(sigmas) - 1}")
    time = sigmas[first] / (shift - (shift - 1.0) * sigmas[first])
    return np.r_[sigmas[: first + 1], _shifted(np.linspace(time, 0.0, steps + 1), shift)[1:]]


def stratified(draw: Float[np.ndarray, " draw"], choices: Sequence[int]) -> Int[np.ndarray, " draw"]:
    """Return one of `choices` from each of as many equal strata of them as there are uniform numbers `draw`."""
    edge = np.linspace(0, len(choices), len(draw) + 1).astype(int)
    low, high = edge[:-1], np.maximum(edge[1:], edge[:-1] + 1)  # more strata than choices: some choices serve twice
    return np.asarray(choices)[np.minimum(low + (draw * (high - low)).astype(int), high - 1)]


def _shifted(time: np.ndarray, shift: float) -> np.ndarray:
    return shift * time / (1.0 + (shift - 1.0) * time)
