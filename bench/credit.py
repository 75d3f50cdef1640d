"""How rewards become advantages, where algorithms agree but for scope, ddof and eps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from bench.plan import Plan
from bench.tree import fuse, normalize

if TYPE_CHECKING:
    from bench.contract import Outcome


def group_relative(
    plan: Plan, outcome: Outcome, *, ddof: int, eps: float, std: Literal["group", "global"] = "group"
) -> Float[np.ndarray, " node"]:
    """Return (reward - mean of the prompt's) / (std + eps) of each leaf, on every edge of its path; GRPO's advantage.

    An edge that leads to several leaves has their mean, one that leads to no scored leaf NaN. The sources disagree on
    `ddof`, `eps` and whose std it is, the prompt's or that of all images of the iteration, so the caller states them.
    """
    slot = plan.tree.slot[outcome.leaf]
    spread = np.zeros_like(slot) if std == "global" else slot
    return fuse(plan.tree, outcome.leaf, normalize(outcome.reward, slot, spread=spread, ddof=ddof, eps=eps))
