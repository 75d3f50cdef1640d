"""DanceGRPO: SDE rollouts from one initial noise, the group's normalised reward on every step of a path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.loss import policy_gradient
from bench.noise import keyed
from bench.plan import Plan, window
from bench.select import Selection, trainable, trajectory
from bench.tree import fuse, normalize


@dataclass(frozen=True, slots=True, kw_only=True)
class Dance(Algorithm):
    """DanceGRPO with its published defaults for FLUX.

    y = x - d (v + eta^2 / (2 sigma) x1') + eta sqrt(d) xi,  x1' = x + (1-sigma) v,  d the step's length in sigma
    A = (r - mean) / (std + eps), over the images of a prompt
    L = max(-A rho, -A clip(rho, 1-c, 1+c)),  rho = p(y | x) / p_old(y | x), on the steps drawn for the image
    """

    info: ClassVar[Info] = Info(
        paper="DanceGRPO: Unleashing GRPO on Visual Generation, arXiv 2505.07818",
        reference="XueZeyue/DanceGRPO@15cc71d",
        deviations=(
            "a prompt's group shares its initial noise; in the code all prompts of a process share one",
            "with a shared root the first step's forward runs once a group, not once an image",
        ),
        owns=frozenset({"kernel", "eta", "roots"}),
    )

    tf: float = 1.0
    """Fraction of the T-1 usable steps that is trained, drawn anew for every image."""
    roots: Literal["shared", "independent"] = "shared"
    """One initial noise a group, or one an image."""
    scope: Literal["group", "global"] = "group"
    """Whose mean and std normalise a reward: the prompt's, or those of all images of the iteration."""
    kernel: str = "dance_sde"
    eta: float = 0.3
    clip: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.tf <= 1:
            raise ValueError(f"tf={self.tf}: the fraction of trained steps lies in (0, 1]")

    def plan(self, ctx: Context) -> Plan:
        """SDE everywhere but on the last step; one root fans out at step 0, or every image has its own."""
        return window(ctx, start=0, size=ctx.steps - 1, noise_level=self.eta, kernel=self.kernel, roots=self.roots)

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's normalised reward (unbiased std, eps 1e-8), the same on every edge of its path."""
        slot = plan.tree.slot[outcome.leaf]
        scope = slot if self.scope == "group" else np.zeros_like(slot)
        return fuse(plan.tree, outcome.leaf, normalize(outcome.reward, scope, ddof=1, eps=1e-8))

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """int((T-1)*tf) of the usable steps, a random choice of its own for every image."""
        tree, usable = plan.tree, ctx.steps - 1
        chosen = np.zeros((len(outcome.leaf), ctx.steps), bool)
        for row, slot in enumerate(tree.slot[outcome.leaf].tolist()):
            draw = keyed(ctx.seed, "select", ctx.iteration, slot, row % ctx.group_size)
            chosen[row, draw.permutation(usable)[: int(usable * self.tf)]] = True
        mine = chosen[tree.first_leaf(), tree.depth - 1]
        return trajectory(plan, mine & trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps))

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate."""
        return policy_gradient(batch, velocity["live"], self.clip)


ARMS = {"dance": Dance()}
