"""MixGRPO: a sliding window of SDE steps in an otherwise deterministic path; only the window is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.credit import group_relative
from bench.loss import policy_gradient
from bench.noise import keyed
from bench.plan import Plan, window, with_tail
from bench.select import Selection, trainable, trajectory

Strategy = Literal["progressive", "linear-decay", "exponential-decay", "random", "frozen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix(Algorithm):
    """MixGRPO with its published defaults for FLUX.

    y = x - d v outside the window;  y = x - d (v + g^2 / (2 sigma) x1') + g sqrt(d) xi in it,
    g = eta sqrt(sigma / (1-sigma)),  x1' = x + (1-sigma) v,  d the step's length in sigma
    start = stride floor(n / tau) at iteration n, while the window ends before the last step; then from 0 again
    A = (r - mean) / (std + eps), over the images of a prompt
    L = max(-A rho, -A clip(rho, 1-c, 1+c)),  rho = p(y | x) / p_old(y | x), on the window's steps
    """

    info: ClassVar[Info] = Info(
        paper="MixGRPO: Unlocking Flow-based GRPO Efficiency with Mixed ODE-SDE, arXiv 2507.21802",
        reference="Tencent-Hunyuan/MixGRPO@e5cdd6a",
        deviations=(
            "windows are full, from step 0 to T-1-window and back; the code's stop at T-3, shrink, and end empty",
            "a random window is the same on every process",
            "the deterministic prefix and the first window step run once a group, not once an image",
            "the image is the clean prediction of the last step, as for every arm here",
            "Flash takes ceil(ratio * n) steps after the window and ends at 0; its code one or two fewer",
        ),
        owns=frozenset({"kernel", "eta", "steps", "solver"}),
    )

    window: int = 4
    """Steps that are stochastic and trained."""
    stride: int = 1
    """Steps by which the window moves."""
    tau: int = 25
    """Iterations that the window stays; where it decays, at the start (official: 10 for linear decay)."""
    strategy: Strategy = "progressive"
    """How the window moves: by stays that are constant or decay, at random every iteration, or not at all."""
    start: int = 0
    """Where a frozen window stands."""
    tail: Literal["suite", "euler", "dpm"] = "suite"
    """After the window: the suite's steps and solver, or `tail_ratio` of the steps with this one (Flash)."""
    tail_ratio: float = 0.4
    kernel: str = "flow_sde"
    eta: float = 0.7
    clip: float = 1e-4

    def __post_init__(self) -> None:
        if self.window < 1 or self.stride < 1 or self.tau < 1 or self.start < 0:
            raise ValueError("window, stride and tau are at least 1, and start at least 0")
        if not 0 < self.tail_ratio <= 1:
            raise ValueError(f"tail_ratio={self.tail_ratio}: the fraction of steps kept lies in (0, 1]")

    def window_start(self, ctx: Context) -> int:
        """Return the first step of this iteration's window."""
        last = ctx.steps - 1 - self.window
        if self.strategy == "frozen" or last < 0:
            return self.start
        if self.strategy == "random":
            return int(keyed(ctx.seed, "select", ctx.iteration).integers(last + 1))
        starts = np.arange(0, last + 1, self.stride)
        ends = np.cumsum([self.dwell(int(start), ctx.steps) for start in starts])
        return int(starts[np.searchsorted(ends, ctx.iteration % ends[-1], side="right")])

    def dwell(self, start: int, steps: int) -> int:
        """Return how many iterations the window stays at a start: constant, or falling towards the image."""
        if self.strategy == "linear-decay":
            progress = start / max(1, steps - 2)
            return max(1, int(self.tau * (1 - progress) + progress))
        if self.strategy == "exponential-decay":
            return math.ceil(self.tau * math.exp(-0.1 * max(0, start - 13)))
        return self.tau

    def plan(self, ctx: Context) -> Plan:
        """One root; it fans out where the window starts, and is an ODE before and, perhaps in fewer steps, after."""
        start = self.window_start(ctx)
        if self.tail != "suite":
            ctx = with_tail(ctx, first=start + self.window, ratio=self.tail_ratio, solver=self.tail)
        return window(ctx, start=start, size=self.window, noise_level=self.eta, kernel=self.kernel)

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's reward, normalised in its prompt's group (unbiased std, eps 1e-8), on every edge of its path."""
        return group_relative(plan, outcome, ddof=1, eps=1e-8)

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """The window's edges."""
        return trajectory(plan, trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps))

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate."""
        return policy_gradient(batch, velocity["live"], self.clip)


ARMS = {
    "mix": Mix(),
    "mix-flash": Mix(tau=20, tail="dpm"),
    "mix-flash-star": Mix(strategy="frozen", tail="dpm", tail_ratio=0.2),
}
