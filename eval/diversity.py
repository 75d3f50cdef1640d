"""Distances between two sets of samples, in features of their images: how far training has moved them.

Both are squared maximum mean discrepancies with the unbiased estimator

    1/n(n-1) Σ_{i≠j} k(a_i, a_j) + 1/m(m-1) Σ_{i≠j} k(b_i, b_j) - 2/nm Σ_ij k(a_i, b_j)

in float64, over all samples (no subsets). Unbiased means that two sets of one distribution give 0 on average, so a
value may be negative. Features are taken as they are: scaling or normalising them is the scorer's business. A NaN
feature gives NaN.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def kid(a: Float[np.ndarray, "n feature"], b: Float[np.ndarray, "m feature"]) -> float:
    """Return the kernel distance with the cubic polynomial kernel (x·y/d + 1)³, d the number of features.

    It has no bandwidth. Published KID is often the mean over subsets of 1000, and in features of Inception; this is
    one value over all samples, in features of the reader's choice.
    """
    a, b = _float64(a, b)
    d = a.shape[1]
    return _unbiased((a @ a.T / d + 1) ** 3, (b @ b.T / d + 1) ** 3, (a @ b.T / d + 1) ** 3)


def mmd2(a: Float[np.ndarray, "n feature"], b: Float[np.ndarray, "m feature"], bandwidth: float) -> float:
    """Return the squared discrepancy with the RBF kernel exp(-|x - y|² / 2·bandwidth²).

    Args:
        a: features of the samples in question.
        b: features of the samples to compare with.
        bandwidth: length scale of the kernel, in feature units; `median_distance` of a fixed set makes values
            comparable between rows.
    """
    if bandwidth <= 0:
        raise ValueError(f"bandwidth {bandwidth} must be positive: equal samples have no scale of their own")
    a, b = _float64(a, b)
    scale = -0.5 / bandwidth**2
    aa, bb, ab = (np.exp(scale * _squared_distances(x, y)) for x, y in ((a, a), (b, b), (a, b)))
    return _unbiased(aa, bb, ab)


def median_distance(a: Float[np.ndarray, "n feature"]) -> float:
    """Return the median Euclidean distance between two different samples: the median heuristic for a bandwidth."""
    a, _ = _float64(a, a)
    above = np.triu_indices(len(a), k=1)
    return float(np.median(np.sqrt(_squared_distances(a, a)[above])))


def spread(features: Float[np.ndarray, "n feature"], group: Int[np.ndarray, " n"]) -> float:
    """Return the mean Euclidean distance between two different samples of one group, averaged over groups.

    Raises:
        ValueError: for a group of one, within which there is no distance.
    """
    means = []
    for one in np.unique(group):
        a, _ = _float64(features[group == one], features[group == one])
        means.append(np.sqrt(_squared_distances(a, a)[np.triu_indices(len(a), k=1)]).mean())
    return float(np.mean(means))


def _float64(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} samples: an unbiased distance needs two or more of each")
    return a.astype(np.float64), b.astype(np.float64)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "n m"]:
    # Centring first keeps |x|² + |y|² - 2x·y from cancelling where features sit far from the origin.
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    squared = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None, :] - 2 * x @ y.T
    return np.maximum(squared, 0.0)


def _unbiased(aa: Float[np.ndarray, "n n"], bb: Float[np.ndarray, "m m"], ab: Float[np.ndarray, "n m"]) -> float:
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (aa, bb)]
    return float(within[0] + within[1] - 2 * ab.mean())
