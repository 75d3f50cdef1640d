"""BranchGRPO's official code: what it computes, where that is not what its paper says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.loss import policy_gradient
from bench.noise import keyed
from bench.plan import Plan, branching
from bench.prune import place
from bench.select import Selection, trainable, trajectory
from bench.tree import deviation, fuse, has_valid_leaf, log_share, path_sum

TREES = 2  # of a rank: its train_batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchOfficial(Algorithm):
    """The official code with its script's defaults for FLUX. A rank is two prompts, in order.

    y = mean + 4 s xi at a split, xi ~ N(0, I) independent for every child, scored as of N(mean, s^2)
    r(n) = sum_m w_m r(m), over the children m of node n;  w = softmax_m(log p(m | n))
    A(n) = (r(n) - mean) / (std + eps), over the nodes of n's tree and depth; 0 where std < 1e-6
    L = sum over 12 edges of max(-A rho, -A clip(rho, 1-c, 1+c)) / (12 edges of a tree),  rho = p(y | x) / p_old(y | x)
    """

    info: ClassVar[Info] = Info(
        paper="BranchGRPO: Stable and Efficient GRPO with Structured Branching in Diffusion Models, arXiv 2509.06040",
        reference="Fredreic1849/BranchGRPO@19fbb9f (does not import)",
        deviations=(
            "the last step is deterministic and never trained; the code trains its edges, whose noise reaches no image",
            "updates are counted as in the code's first iteration, its last step's edges too; those trained cut evenly",
            "the fewer than `edges` edges that are left over make no step; the code takes one, without clipping",
            "keyed draws shuffle a rank's edges; an odd tree is half a rank; pruning never ends (pruning_step_ratio 1)",
            "every tree has an initial noise of its own; in the code all prompts of a rank share one",
            "latents are fp32 and the ratio starts at 1; the code rounds latents to bf16, and ratios by up to 8e-4",
            "failed leaves are left out; the code skips NaN edges, and may wait for ever where ranks then differ",
        ),
        owns=frozenset({"kernel", "eta", "updates_per_iteration"}),
    )

    splits: tuple[int, ...] = (0, 3, 6, 9)
    """Steps at which every path branches."""
    factor: int = 2
    """K, children at a split."""
    noise: float = 4.0
    """Std of a split's noise over the std that scores it (split_noise_scale)."""
    edges: int = 12
    """Edges of a rank that make an optimiser step (gradient_accumulation_steps)."""
    width: Literal["none", "mode1", "mode2"] = "none"
    """Edges trained below the last split: all; each chain's first half; a rank's best and worst quarter of them all."""
    depths: tuple[int, ...] = ()
    """Depths (of children: steps plus one) that are left out of training; the script's example is 15 to 18."""
    stop: int = 9
    """The depth at which the shallowest of `depths` comes to rest: they move up by one every `slide` iterations."""
    mix: bool = False
    """Whether steps are stochastic only at splits and where step mod `slide` is below `window`: it never moves."""
    window: int = 4
    """Steps of the Mix window."""
    slide: int = 30
    """Iterations between moves of `depths`; of Mix, steps between windows."""
    kernel: str = "dance_sde"
    eta: float = 0.3
    clip: float = 1e-3

    def __post_init__(self) -> None:
        if not self.splits or list(self.splits) != sorted(set(self.splits)) or self.splits[0] < 0:
            raise ValueError(f"splits={self.splits}: split steps are distinct, rising and at least 0")
        if self.factor < 2 or min(self.edges, self.window, self.slide) < 1 or self.noise <= 0:
            raise ValueError("factor is at least 2; edges, window and slide at least 1; noise is positive")

    def plan(self, ctx: Context) -> Plan:
        """One root, K children at every split with `noise` times the std; SDE on every step but the last, or Mix."""
        T = ctx.steps
        if self.splits[-1] > T - 2:
            raise ValueError(f"split at step {self.splits[-1]}: of {T} steps, the last that can branch is {T - 2}")
        if not {*self.depths} <= {*range(1, T + 1)}:
            raise ValueError(f"depths={self.depths}: those of {T} steps are 1 to {T}")
        inside = [not self.mix or k in self.splits or k % self.slide < self.window for k in range(T - 1)]
        plan = branching(
            ctx.sigmas,
            slots=ctx.slots,
            fanout=[self.factor if k in self.splits else 1 for k in range(T)],
            noise_level=[*np.where(inside, self.eta, 0.0), 0.0],
            kernel=self.kernel,
            solver=ctx.solver,
        )
        return replace(plan, noise_scale=np.where(np.isin(plan.tree.depth - 1, self.splits), self.noise, 1.0))

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """Fuse rewards upwards by siblings' shares; normalise them per tree and depth (unbiased std, eps 1e-8)."""
        tree, leaf = plan.tree, outcome.leaf
        value = fuse(tree, leaf, outcome.reward, path_sum(tree, log_share(tree, outcome.log_prob))[leaf])
        centred, std = deviation(value, tree.root() * (tree.steps + 1) + tree.depth, ddof=1)
        return np.where(np.isnan(value), np.nan, np.where(std < 1e-6, 0.0, centred / (std + 1e-8)))

    def updates(self, ctx: Context) -> int:
        """One every 12 edges of a rank, those that are left over aside; at most as many as there are edges to train."""
        plan = self.plan(replace(ctx, slots=1))
        kept = self.kept(plan, np.zeros(len(plan.tree)), plan.tree.depth > 0, 0)
        trained = kept & (plan.noise_level > 0) & np.isin(plan.tree.depth - 1, ctx.train_steps)
        return max(1, min(TREES * int(kept.sum()) // self.edges, TREES * int(trained.sum())))

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """A rank's edges, less the pruned ones, in random order and equal parts, one an optimiser step."""
        tree, rank = plan.tree, plan.tree.slot // TREES
        kept = self.kept(plan, advantage, has_valid_leaf(tree, outcome.leaf, outcome.reward), ctx.iteration)
        chosen, update = kept & trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps), np.zeros(len(tree), int)
        for mine in range(int(rank.max()) + 1):
            edge = np.flatnonzero(chosen & (rank == mine))
            order = keyed(ctx.seed, "select", ctx.iteration, mine).permutation(len(edge))
            update[edge] = order * ctx.updates // max(1, len(edge))
        weight = np.full(chosen.sum(), TREES / (self.edges * max(1, kept.sum())))
        return replace(trajectory(plan, chosen, update), weight=weight)

    def kept(
        self, plan: Plan, advantage: Float[np.ndarray, " node"], scored: Bool[np.ndarray, " node"], iteration: int
    ) -> Bool[np.ndarray, " node"]:
        """Return the scored edges that the code trains: with noise or, but for Mix, of the last step; less pruned."""
        tree, last = plan.tree, self.splits[-1]
        keep = scored & (tree.depth > 0) & ((plan.noise_level > 0) | (not self.mix))
        below = np.flatnonzero(keep & (tree.depth > last + 1))
        if self.width != "none":
            group = tree.ancestor(last + 1) if self.width == "mode1" else tree.slot // TREES
            at, size = place(group[below], advantage[below])
            keep[below] = at < size // 2 if self.width == "mode1" else (at < size // 4) | (at >= size - size // 4)
        moved = max(0, min(iteration // self.slide, min(self.depths, default=0) - self.stop))
        return keep & ~np.isin(tree.depth + moved, self.depths)

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate."""
        return policy_gradient(batch, velocity["live"], self.clip)


ARMS = {"branch-official": BranchOfficial()}
