"""Deterministic steps of higher order: DPM-Solver++(2M), midpoint, for rectified flow (arXiv 2211.01095)."""

from __future__ import annotations

import math

from torch import Tensor

from bench.kernel import clean_prediction


def dpm2m(
    velocity: Tensor,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    x0_previous: Tensor | None = None,
    sigma_previous: float | None = None,
) -> Tensor:
    """Return the next latent of the data-prediction multistep solver.

    With lambda = ln((1-sigma)/sigma) and h = lambda' - lambda:
    x' = (sigma'/sigma) x - (1-sigma') (e^-h - 1) (m + D1/2), D1 = (m - m_previous) / r0, r0 = h_previous / h.
    First order (equal to Euler) without history and on the step to sigma 0, where h is infinite.

    Args:
        velocity: of the policy at (x, sigma).
        x: latents, one a row.
        sigma: where x stands.
        sigma_next: where it goes.
        x0_previous: clean prediction of the step before, gathered for the same rows.
        sigma_previous: where that prediction was made.
    """
    m = clean_prediction(velocity, x, sigma)
    if sigma_next == 0:
        return m
    ratio = math.exp(-(_log_snr(sigma_next) - _log_snr(sigma)))  # e^-h; 0 from sigma = 1
    if x0_previous is not None and sigma_previous is not None and sigma_previous < 1 and sigma < 1:
        h, h_previous = _log_snr(sigma_next) - _log_snr(sigma), _log_snr(sigma) - _log_snr(sigma_previous)
        m = m + 0.5 * (m - x0_previous) * (h / h_previous)
    return (sigma_next / sigma) * x - (1 - sigma_next) * (ratio - 1) * m


def _log_snr(sigma: float) -> float:
    return -math.inf if sigma >= 1 else math.log((1 - sigma) / sigma)
