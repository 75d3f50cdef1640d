"""Losses of the field, weighted sums over a batch's items."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from bench.batch import Batch


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return max(-A*r, -A*clip(r, 1-c, 1+c)) an item, with r = exp(log_ratio): PPO's objective, negated.

    arXiv 1707.06347. All arguments have one entry an item.
    """
    ratio = log_ratio.exp()
    return (-advantage * ratio).maximum(-advantage * ratio.clamp(1 - clip, 1 + clip))


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean of the squares over each row's dimensions."""
    return difference.square().flatten(1).mean(1)


def policy_gradient(batch: Batch, velocity: Tensor, clip: float) -> Tensor:
    """Return the weighted sum of the clipped surrogate of each edge's transition under `velocity` [query, *latent]."""
    log_ratio = batch.log_prob(velocity) - batch.log_prob_old
    return (batch.weight * clipped_surrogate(log_ratio, batch.advantage, clip)).sum()
