"""TempFlow-GRPO: one deterministic trunk, branches of one stochastic step each, so that a step earns its own reward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.loss import policy_gradient
from bench.noise import keyed
from bench.plan import Plan, noise_std, trunk
from bench.select import Selection, trainable, trajectory
from bench.tree import fuse, normalize


@dataclass(frozen=True, slots=True, kw_only=True)
class TempFlow(Algorithm):
    """TempFlow-GRPO: trajectory branching, noise-aware weights, groups of one seed.

    A = (r - mean) / (std + eps), over the K branches that leave one point of a trunk
    L = w_k max(-A rho, -A clip(rho, 1-c, 1+c)),  w_k = s_k / mean_j s_j,  s_k the std of the noise of step k
    """

    info: ClassVar[Info] = Info(
        paper="TempFlow-GRPO: When Timing Matters for GRPO in Flow Models, arXiv 2508.04324",
        reference="none: Shredded-Pork/TempFlow-GRPO has no code; from the paper and notes about it",
        deviations=(
            "one trunk serves all branching steps of an iteration; its steps run once, not once a branching step",
            "`points` branching steps are drawn an iteration, so that leaves are a group's; the paper takes all steps",
            "a group is the branches of one point (prompt, seed and step), as the rule of its own step's reward asks;"
            " the paper's wording leaves open whether its groups span steps",
            "a prompt has one trunk (seeds=1) and all branches leave it; published are four seeds of six branches",
            "the std's ddof and eps are not published: unbiased and 1e-8",
        ),
        owns=frozenset({"kernel", "eta"}),
    )

    points: int = 4
    """Branching steps an iteration; K = group_size / (points * seeds) branches leave the trunk at each."""
    seeds: int = 1
    """Trunks a prompt, each from a root of its own."""
    noise_aware: bool = True
    """Whether steps weigh by the std of their noise; the weights' mean over the trained steps is 1."""
    ddof: int = 1
    eps: float = 1e-8
    kernel: str = "flow_sde"
    eta: float = 0.7
    clip: float = 1e-4

    def __post_init__(self) -> None:
        if self.points < 1 or self.seeds < 1:
            raise ValueError("points and seeds are at least 1")

    def branching_steps(self, ctx: Context) -> Int[np.ndarray, " point"]:
        """Return this iteration's branching steps, drawn from those that may be trained."""
        usable = np.asarray(ctx.train_steps)
        if self.points > len(usable):
            raise ValueError(f"points={self.points} branching steps, but only {len(usable)} steps may be trained")
        drawn = keyed(ctx.seed, "select", ctx.iteration).permutation(len(usable))[: self.points]
        return np.sort(usable[drawn])

    def plan(self, ctx: Context) -> Plan:
        """ODE trunks, off which K branches take one SDE step and are ODEs to their image."""
        factor, rest = divmod(ctx.group_size, self.points * self.seeds)
        if rest or factor < 2:
            trunks = f"points * seeds = {self.points} * {self.seeds}"
            raise ValueError(f"group_size {ctx.group_size} is not {trunks} times 2 or more branches")
        steps = self.branching_steps(ctx).tolist()
        return trunk(ctx, at=steps, factor=factor, noise_level=self.eta, kernel=self.kernel, roots=self.seeds)

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A branch's reward, normalised among those that leave the trunk at its point (unbiased std, eps 1e-8)."""
        edge = np.flatnonzero(plan.noise_level > 0)
        point = np.empty(len(outcome.leaf), int)
        point[plan.tree.first_leaf()[edge]] = plan.tree.parent[edge]
        return fuse(plan.tree, outcome.leaf, normalize(outcome.reward, point, ddof=self.ddof, eps=self.eps))

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """The branches' stochastic edges, weighted by the std of their noise."""
        chosen = trajectory(plan, trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps))
        if not self.noise_aware:
            return chosen
        step = np.asarray(ctx.train_steps)
        mean = noise_std(self.kernel, ctx.sigmas, step, np.full(len(step), self.eta)).mean()
        return replace(chosen, weight=chosen.weight * plan.std()[chosen.item_node] / mean)

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate."""
        return policy_gradient(batch, velocity["live"], self.clip)


ARMS = {"tempflow": TempFlow()}
