"""How a check says what is wrong."""

from __future__ import annotations

import numpy as np

from bench.plan import Plan
from bench.select import Selection


class ContractError(AssertionError):
    """An algorithm does not keep to the contract."""


def require(holds: object, said: str) -> None:
    """Raise ContractError, saying why, unless the condition holds."""
    if not holds:
        raise ContractError(said)


def close(found: np.ndarray, expected: np.ndarray, said: str, within: float = 1e-6) -> None:
    """Raise ContractError unless two arrays agree."""
    far = float(np.abs(found - expected).max(initial=0.0))
    require(far <= within, f"{said}: they differ by up to {far:.3g}")


def of_transitions(plan: Plan, s: Selection) -> bool:
    """Return whether a selection's items are the edges below its queries."""
    return bool((s.draw < 0).all()) and np.array_equal(s.read[s.item_query], plan.tree.parent[s.item_node])
