"""Intervals of improvements, paired by seed: how sure a table can be of a difference. Pure functions of scores.

The unit of replication is the training run. A run's prompts share its luck, so prompts are averaged first and runs are
what is resampled; only a single run falls back on its prompts, and its interval says so: it tells how the improvement
varies between prompts, and nothing of another run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
"""Of every interval."""
RESAMPLES = 10_000
FEW = 5
"""Seeds from which the interquartile mean and its bootstrap replace mean and t interval."""
SAME = 1e-12
"""Relative spread under which differences count as equal: rounding, not variation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A paired improvement and how far it is known."""

    mean: float
    """Mean over seeds; from 5 seeds their interquartile mean."""
    low: float
    """NaN where there is no interval, as is `high`."""
    high: float
    n: int
    """Seeds; with one seed, prompts."""
    seeds: int
    kind: str
    """How the interval was made, as reports print it."""

    @property
    def known(self) -> bool:
        """Return whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def interval(
    before: Float[np.ndarray, "seed prompt"], after: Float[np.ndarray, "seed prompt"], *, seed: int = 0
) -> Interval:
    """Return the mean of `after - before` with its 95 % interval, paired by seed and prompt.

    2 to 4 seeds: mean ± t·sd/√n of the seeds' mean differences. From 5: their interquartile mean and a percentile
    bootstrap that draws whole seeds (the stratum is the arm). One seed: a percentile bootstrap over prompts.
    A prompt whose score is NaN before or after is left out; so is a seed that has none left. There is no interval
    where there is nothing to vary: one seed and one prompt, or differences that are all equal.

    Args:
        before: scores of the base model, a row for each seed.
        after: scores of the trained model, in the same order.
        seed: of the bootstrap's random numbers.
    """
    assert before.shape == after.shape
    difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    valid = np.isfinite(difference)
    difference = np.where(valid, difference, np.nan)[valid.any(axis=1)]
    seeds = len(difference)
    if seeds == 0:
        return Interval(mean=np.nan, low=np.nan, high=np.nan, n=0, seeds=0, kind="no valid scores")
    if seeds == 1:
        return _over_prompts(difference[0][np.isfinite(difference[0])], seed)
    return _over_seeds(np.nanmean(difference, axis=1), seed)


def per_prompt(
    before: Float[np.ndarray, "prompt sample"], after: Float[np.ndarray, "prompt sample"]
) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]:
    """Return each prompt's mean before and after over the samples that have both scores; NaN where none has."""
    assert before.shape == after.shape
    both = np.isfinite(before) & np.isfinite(after)
    count = both.sum(axis=1)
    total = [np.where(both, scores, 0.0).sum(axis=1) for scores in (before, after)]
    mean = [np.divide(x, count, out=np.full(len(count), np.nan), where=count > 0) for x in total]
    return mean[0], mean[1]


def overlap(a: Interval, b: Interval) -> bool:
    """Return whether two intervals share a value; an improvement without an interval overlaps with any other."""
    return not (a.known and b.known) or (a.low <= b.high and b.low <= a.high)


def interquartile_mean(values: Float[np.ndarray, "row n"]) -> Float[np.ndarray, " row"]:
    """Return each row's mean without the lowest and the highest quarter, whole values cut on each side (n // 4)."""
    n = values.shape[-1]
    return np.sort(values, axis=-1)[..., n // 4 : n - n // 4].mean(axis=-1)


def _over_seeds(mean: Float[np.ndarray, " seed"], seed: int) -> Interval:
    n = len(mean)
    centre = float(mean.mean()) if n < FEW else float(interquartile_mean(mean[None])[0])
    if _equal(mean):
        return _unknown(centre, n, n, f"no interval: all {n} seeds are equal")
    if n < FEW:
        half = t_quantile(n - 1) * float(mean.std(ddof=1)) / math.sqrt(n)
        kind = f"95 % t interval over {n} seeds, paired"
        return Interval(mean=centre, low=centre - half, high=centre + half, n=n, seeds=n, kind=kind)
    low, high = _percentile(interquartile_mean(_resampled(mean, seed)))
    kind = f"interquartile mean, 95 % bootstrap over {n} seeds, paired"
    return Interval(mean=centre, low=low, high=high, n=n, seeds=n, kind=kind)


def _over_prompts(difference: Float[np.ndarray, " prompt"], seed: int) -> Interval:
    n, centre = len(difference), float(difference.mean())
    if n == 1:
        return _unknown(centre, n, 1, "no interval: one seed and one prompt")
    if _equal(difference):
        return _unknown(centre, n, 1, f"no interval: one seed, all {n} prompts are equal")
    low, high = _percentile(_resampled(difference, seed).mean(axis=-1))
    kind = f"95 % bootstrap over {n} prompts, one seed"
    return Interval(mean=centre, low=low, high=high, n=n, seeds=1, kind=kind)


def t_quantile(freedom: int) -> float:
    """Return Student's t that 95 % of the distribution lie within, both signs."""
    # Of scipy only this: scipy.stats takes seconds to import, and a report should not.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def _resampled(values: Float[np.ndarray, " n"], seed: int) -> Float[np.ndarray, "resample n"]:
    # Streams of bench.noise belong to runs; resampling is the reader's, and does not touch one.
    generator = np.random.default_rng(seed)  # noqa: TID251
    return values[generator.integers(len(values), size=(RESAMPLES, len(values)))]


def _percentile(statistics: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    low, high = np.quantile(statistics, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def _equal(values: Float[np.ndarray, " n"]) -> bool:
    return float(np.ptp(values)) <= SAME * max(1.0, float(np.abs(values).max()))


def _unknown(mean: float, n: int, seeds: int, kind: str) -> Interval:
    return Interval(mean=mean, low=np.nan, high=np.nan, n=n, seeds=seeds, kind=kind)
