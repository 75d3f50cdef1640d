"""A claim about branching rollouts: what is claimed, what a closed form says, what the harness's own code gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Context
from bench.plan import Plan
from bench.registry import load
from bench.schedule import shifted_sigmas

ERRORS = 4.5
"""Standard errors between a measured value and its closed form: passed by chance once in 150,000 comparisons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row of the table."""

    source: str
    name: str
    statement: str
    condition: str
    """When, or why not; stands behind "holds:" or "does not hold:"."""
    claimed: float
    relation: Literal["equal", "at most"] = "equal"
    """Of the value to what is claimed."""
    expected: float
    """Closed form."""
    measured: float
    tolerance: float
    """Largest difference of `measured` from `expected` that chance explains."""

    @property
    def agrees(self) -> bool:
        """Return whether the simulation confirms the closed form; NaN confirms nothing."""
        return bool(abs(self.measured - self.expected) <= self.tolerance)

    @property
    def holds(self) -> bool:
        """Return whether the closed form is what is claimed."""
        slack = 1e-9 * max(1.0, abs(self.claimed))
        excess = self.expected - self.claimed
        return excess <= slack and (self.relation == "at most" or excess >= -slack)

    @property
    def verdict(self) -> str:
        """Return what is to be said of the claim."""
        if not self.agrees:
            return "open: simulation and closed form differ"
        return f"{'holds' if self.holds else 'does not hold'}: {self.condition}"


def farthest(values: Float[np.ndarray, "..."], expected: float) -> float:
    """Return the value that is farthest from what is expected of all of them."""
    return float(values.flat[np.abs(values - expected).argmax()])


@cache
def branch() -> Any:
    """Return BranchGRPO as the registry has it."""
    return load("algorithms").get("branch")


def context(steps: int, slots: int = 1) -> Context:
    """Return the context of a first iteration on the papers' grid, all steps but the last trainable."""
    train_steps = tuple(range(steps - 1))
    return Context(
        iteration=0,
        seed=0,
        sigmas=shifted_sigmas(steps, 3.0),
        slots=slots,
        group_size=2,
        train_steps=train_steps,
        shift=3.0,
    )


def branch_plan(steps: int, slots: int = 1, **settings: Any) -> Plan:
    """Return BranchGRPO's plan with some settings, as a run would get it."""
    algorithm: Algorithm = replace(branch(), **settings)
    return algorithm.plan(context(steps, slots))
