"""BranchGRPO: paths branch at a few steps, rewards flow back through the tree, depths compare like with like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.credit import group_relative
from bench.loss import policy_gradient
from bench.plan import Plan, branching, with_tail
from bench.prune import above_extremes, below_best_child, sliding
from bench.select import Selection, trainable, trajectory
from bench.tree import fuse, has_valid_leaf, normalize, path_sum

SPLITS = {"dense": (0, 3, 6, 9), "mixed": (0, 4, 8, 12), "sparse": (0, 5, 10, 15)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch(Algorithm):
    """BranchGRPO with its published defaults for FLUX; pruning and the Mix hybrid by option.

    (2) xi_b = (xi_0 + s zeta_b) / sqrt(1 + s^2), the noise of child b of a split;  xi_0, zeta_b ~ N(0, I)
    (3) r(n) = sum_l w_l r_l, over the leaves l below node n;  w = softmax_l(beta log p(l | n))
    (4) A(n) = (r(n) - mean) / (std + eps), over the nodes of n's tree and depth
    (5) L = mean over a tree's edges of max(-A rho, -A clip(rho, 1-c, 1+c)),  rho = p(y | x) / p_old(y | x)
    """

    info: ClassVar[Info] = Info(
        paper="BranchGRPO: Stable and Efficient GRPO with Structured Branching in Diffusion Models, arXiv 2509.06040",
        reference="Fredreic1849/BranchGRPO@19fbb9f (does not import)",
        deviations=(
            "split noise is eq. (2), sampled as it is scored; the code samples 4 times the std it scores",
            "path weights are eq. (3), over whole paths (log-prob a mean over dimensions), the code's over one edge",
            "Parent-Top1 keeps the better child's chain, and both split edges; the code the five steps below the split",
            "Extreme ranks a tree's leaves by raw reward; the code ranks the edges of a process's trees by advantage",
            "depth and Mix windows slide towards the image; the code's slide back, or stand still",
            "the last step is never trained: its noise cannot reach the image that is scored",
            "optimiser steps are the suite's updates_per_iteration; the code takes one every 12 edges, 36 an iteration",
        ),
        owns=frozenset({"kernel", "eta", "steps", "solver"}),
    )

    splits: Literal["dense", "mixed", "sparse"] | tuple[int, ...] = "dense"
    """Steps at which every path branches."""
    factor: int = 2
    """K, children at a split."""
    s: float = 4.0
    """Branch noise of eq. (2): siblings correlate by 1/(1+s^2); inf makes them independent."""
    fusion: Literal["path", "uniform"] = "path"
    beta: float = 1.0
    """Of eq. (3): 0 is uniform, 1 weighs a leaf by its path's probability."""
    credit_by: Literal["depth", "leaf"] = "depth"
    """Eq. (4), fused rewards normalised per depth; or the mean of a node's leaves' group-normalised rewards."""
    width: Literal["none", "parent-top1", "extreme"] = "none"
    """Which chains below the last split are trained."""
    depth: bool = False
    """Whether a window of depths below the last split is left out of training."""
    mix: bool = False
    """Whether paths are stochastic only at splits and in a sliding window."""
    window: int = 4
    """Steps of the depth or Mix window."""
    slide: int = 30
    """Iterations after which that window moves one step on."""
    tail: Literal["suite", "euler", "dpm"] = "suite"
    """Mix: after the last stochastic step, the suite's steps and solver, or `tail_ratio` of the steps with this one."""
    tail_ratio: float = 0.5
    kernel: str = "dance_sde"
    eta: float = 0.3
    clip: float = 1e-4

    def __post_init__(self) -> None:
        steps = self.split_steps
        if not steps or list(steps) != sorted(set(steps)) or steps[0] < 0:
            raise ValueError(f"splits={self.splits}: split steps are distinct, rising and at least 0")
        if self.factor < 2 or self.window < 1 or self.slide < 1:
            raise ValueError("factor is at least 2; window and slide at least 1")
        if self.s < 0 or self.beta < 0 or not 0 < self.tail_ratio <= 1:
            raise ValueError("s and beta are not negative, and tail_ratio is in (0, 1]")
        if self.tail != "suite" and not self.mix:
            raise ValueError("tail: without mix every step but the last is stochastic, and no tail is left")

    @property
    def split_steps(self) -> tuple[int, ...]:
        """Return the steps that branch."""
        return SPLITS[self.splits] if isinstance(self.splits, str) else self.splits

    def plan(self, ctx: Context) -> Plan:
        """One root, K children at every split; SDE everywhere, or at splits and in the Mix window alone."""
        T, splits, slots, rho = ctx.steps, self.split_steps, ctx.slots, 1 / (1 + self.s**2)
        if splits[-1] > T - 2:
            raise ValueError(f"split at step {splits[-1]}: of {T} steps, the last that can branch is {T - 2}")
        stochastic = {*splits, *sliding(0, self.window, self.slide, ctx.iteration, T)} if self.mix else {*range(T - 1)}
        if self.tail != "suite":
            ctx = with_tail(ctx, first=max(stochastic) + 1, ratio=self.tail_ratio, solver=self.tail)
        fanout = [self.factor if k in splits else 1 for k in range(ctx.steps)]
        eta = [self.eta if k in stochastic else 0.0 for k in range(ctx.steps)]
        return branching(
            ctx.sigmas, slots=slots, fanout=fanout, noise_level=eta, kernel=self.kernel, coupling=rho, solver=ctx.solver
        )

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """Eqs. (3) and (4): fuse rewards upwards, normalise them per tree and depth (unbiased std, eps 1e-8)."""
        tree, leaf = plan.tree, outcome.leaf
        if self.credit_by == "leaf":
            return group_relative(plan, outcome, ddof=1, eps=1e-8)
        beta = self.beta if self.fusion == "path" else 0.0
        value = fuse(tree, leaf, outcome.reward, beta * path_sum(tree, outcome.log_prob)[leaf])
        return normalize(value, tree.root() * (tree.steps + 1) + tree.depth, ddof=1, eps=1e-8)

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """All stochastic edges, less those that width or depth pruning takes below the last split."""
        tree, last = plan.tree, self.split_steps[-1]
        chain = tree.depth > last + 1
        keep = trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps)
        if self.width == "parent-top1":
            scored = has_valid_leaf(tree, outcome.leaf, outcome.reward)
            keep &= ~chain | below_best_child(tree, np.where(scored, advantage, -np.inf), last + 1)
        if self.width == "extreme":
            keep &= ~chain | above_extremes(tree, outcome.leaf, outcome.reward)
        if self.depth:
            keep &= ~np.isin(tree.depth - 1, sliding(last + 1, self.window, self.slide, ctx.iteration, ctx.steps))
        return trajectory(plan, keep)

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """Eq. (5): the clipped surrogate, a mean over each tree's edges."""
        return policy_gradient(batch, velocity["live"], self.clip)


ARMS = {
    "branch": Branch(),
    "branch-widpru": Branch(width="parent-top1"),
    "branch-widpru-extreme": Branch(width="extreme"),
    "branch-deppru": Branch(depth=True),
    "branch-mix": Branch(mix=True),
    "branch-mix-dpm": Branch(mix=True, tail="dpm"),
}
