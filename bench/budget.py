"""When a cell has had its share: arms may be compared at equal iterations, model calls, seconds or samples, or by the
time to a target reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from bench.record import Row

Budget = Literal["iterations", "calls", "seconds", "samples", "target"]

BACKWARD = 3
"""Forwards that a training call counts for: its own, and a backward pass as two."""
RECENT = 5
"""Iterations whose mean training reward is held against a target; one alone is noise."""


def spent(rows: Sequence[Row], budget: Budget) -> float:
    """Return what a cell has spent of its budget; for a target, the recent mean of the training reward."""
    if budget == "iterations":
        return float(len(rows))
    if budget == "samples":
        return float(sum(row["samples"] for row in rows))
    if budget == "seconds":
        return sum(sum(row["seconds"].values()) for row in rows)
    if budget == "target":
        return float(np.mean([row["reward_total"] for row in rows[-RECENT:]])) if len(rows) >= RECENT else -np.inf
    kinds = [(kind, count) for row in rows for kind, count in row["calls"].items()]
    return float(sum(count * (BACKWARD if kind == "update" else 1) for kind, count in kinds))


def exhausted(rows: Sequence[Row], budget: Budget, limit: float | None, iterations: int) -> bool:
    """Return whether a cell is at its end: `iterations` are the most under every budget."""
    return len(rows) >= iterations or (limit is not None and spent(rows, budget) >= limit)
