"""TEMPLATE: say in one line what it does, and what is new in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.credit import group_relative
from bench.loss import policy_gradient
from bench.plan import Plan, window
from bench.select import Selection, trainable, trajectory

# An algorithm is a frozen value with four choices about a tree: plan, credit, select, loss. It decides on numpy
# arrays, sees no model, optimiser or file, and draws random numbers from bench.noise.keyed alone. What it asks of
# the harness beyond these four is in bench/contract.py: other policies (needs, decay), memory (remember).


@dataclass(frozen=True, slots=True, kw_only=True)
class Template(Algorithm):
    """Template: the paper's equations, as they are computed here.

    A = (r - mean of the prompt's r) / (std of the prompt's r + eps)
    L = max(-A rho, -A clip(rho, 1-c, 1+c)),  rho = p(y | x) / p_old(y | x)
    """

    info: ClassVar[Info] = Info(
        paper="title, arXiv number",
        reference="repository@commit, or why there is none",
        deviations=("where this differs from the paper or its code, and why; reports print it",),
        owns=frozenset({"kernel", "eta"}),  # shared keys that an arm may set: template(eta=0.5)
    )

    # Settings: each is a key of template(...) and of --set template.key=value. The line below a field is its help.
    size: int = 4
    """Steps that are stochastic and trained."""
    kernel: str = "flow_sde"
    eta: float = 0.7
    clip: float = 1e-4

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: at least one step is trained")

    def plan(self, ctx: Context) -> Plan:
        """One root a prompt, which fans out at step 0; SDE in the first steps, ODE after them."""
        # Other plans: branching (splits), star (independent ODE paths), trunk; or a Plan of your own arrays.
        return window(ctx, start=0, size=self.size, noise_level=self.eta, kernel=self.kernel)

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's reward, normalised in its prompt's group (unbiased std, eps 1e-8), on every edge of its path."""
        # One entry a node, an edge being its child node. A failed leaf's reward is NaN and stays out of all statistics.
        return group_relative(plan, outcome, ddof=1, eps=1e-8)

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """The stochastic edges."""
        # trainable() knows train_steps and failed leaves. Objectives on noised images select with forward() instead.
        return trajectory(plan, trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps))

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate."""
        # A sum over items; weights are already divided. velocity has "live", and the policies that `needs` names.
        return policy_gradient(batch, velocity["live"], self.clip)


ARMS = {"template": Template()}
