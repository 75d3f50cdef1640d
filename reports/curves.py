"""Training curves of an arm: mean reward and its range over seeds, against iterations, model calls and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bench.record import CellRecord, Row
from reports.arms import Arm

AXES = {
    "iterations": "iterations",
    "rollout_calls": "rollout calls (forward)",
    "update_calls": "update calls (forward and backward)",
    "seconds": "seconds of training",
}
"""Key -> axis title. Rollout and update calls cost differently, so they are two axes and never one sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """An arm's training reward, iteration by iteration."""

    label: str
    finished: bool
    seeds: int
    x: Mapping[str, Float[np.ndarray, " iteration"]]
    """By axis, cumulated; seconds are the mean over seeds."""
    mean: Float[np.ndarray, " iteration"]
    low: Float[np.ndarray, " iteration"]
    """Lowest seed."""
    high: Float[np.ndarray, " iteration"]


def curves(arms: Sequence[Arm]) -> list[Curve]:
    """Return the curve of each arm that has run at all: of its finished cells, or while it has none, of the others.

    Seeds are averaged over the iterations that all of them have, so that no seed enters or leaves within a curve.
    """
    found = []
    for arm in arms:
        cells = [cell for cell in arm.done or arm.cells if cell.rows]
        if cells:
            found.append(_curve(arm.label, cells, finished=bool(arm.done)))
    return found


def _curve(label: str, cells: Sequence[CellRecord], *, finished: bool) -> Curve:
    length = min(len(cell.rows) for cell in cells)
    rows = [cell.rows[:length] for cell in cells]
    reward = np.array([[row["reward_total"] for row in one] for one in rows], np.float64)
    # An iteration without one valid reward in any seed stays a gap in the line.
    valid = np.isfinite(reward)
    count = valid.sum(axis=0)
    total = np.where(valid, reward, 0.0).sum(axis=0)
    gap = count == 0
    return Curve(
        label=label,
        finished=finished,
        seeds=len(cells),
        x={axis: np.mean([np.cumsum([_spent(row, axis) for row in one]) for one in rows], axis=0) for axis in AXES},
        mean=np.where(gap, np.nan, total / np.maximum(count, 1)),
        low=np.where(gap, np.nan, np.where(valid, reward, np.inf).min(axis=0)),
        high=np.where(gap, np.nan, np.where(valid, reward, -np.inf).max(axis=0)),
    )


def _spent(row: Row, axis: str) -> float:
    if axis == "iterations":
        return 1.0
    if axis == "seconds":
        return sum(row["seconds"].values())
    return float(row["calls"]["rollout" if axis == "rollout_calls" else "update"])
