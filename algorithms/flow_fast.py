"""Flow-GRPO-Fast: a few stochastic steps of a path are enough, with the steps before them shared by a group or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.credit import group_relative
from bench.loss import policy_gradient
from bench.noise import keyed
from bench.plan import Plan, window
from bench.select import Selection, trainable, trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFast(Algorithm):
    """Flow-GRPO-Fast in both published versions, which have nothing but the window in common.

    A = (r - mean of the prompt's r) / (std of all r + eps)
    L = max(-A rho, -A clip(rho, 1-c, 1+c)),  rho = p(y | x) / p_old(y | x), on the window's steps
    """

    info: ClassVar[Info] = Info(
        paper="Flow-GRPO: Training Flow Matching Models via Online RL, arXiv 2505.05470; Fast is of its code alone",
        reference="yifan123/flow_grpo@7fa84b6 (version=split), yifan123/flow_grpo@3d02fd9 (version=window)",
        deviations=(
            "the window is drawn anew every iteration, for all prompts, among those whose steps the suite trains;"
            " the first code draws one and keeps it",
            "under CPS the log-prob is the true Gaussian's; the code's, which its clip is for, leaves out 1/(2 s^2)",
            "a group has one window; in the second code its images, on several processes, have windows of their own",
            "a group is one tree of K = group_size branches; the first code has mini-groups of 9",
            "the image is the clean prediction of the last step, as for every arm here",
        ),
        owns=frozenset({"kernel", "eta"}),
    )

    version: Literal["split", "window"] = "split"
    """One path that splits K-fold where the window starts, or K paths from roots of their own."""
    window: int = 2
    """Steps that are stochastic and trained."""
    start: int | None = None
    """Where the window stands; none draws it anew every iteration."""
    until: float = 0.5
    """Fraction of the path by which a drawn window starts (split) or ends (window)."""
    std: Literal["global", "group"] = "global"
    """Whose std normalises: of all images of the iteration, or of the prompt's."""
    ddof: int = 0
    eps: float = 1e-4
    kernel: str = "flow_sde"
    eta: float = 0.7
    clip: float = 1e-4

    def __post_init__(self) -> None:
        if self.window < 1 or not 0 < self.until <= 1:
            raise ValueError("window is at least 1, and until a fraction of the path")

    def window_start(self, ctx: Context) -> int:
        """Return the first step of this iteration's window."""
        if self.start is not None:
            return self.start
        last = int(ctx.steps * self.until) - (self.window if self.version == "window" else 0)
        trained = set(ctx.train_steps)
        starts = [k for k in range(last + 1) if trained.issuperset(range(k, k + self.window))]
        if not starts:
            raise ValueError(f"no window of {self.window} trained steps starts in the first {self.until:g} of the path")
        return starts[int(keyed(ctx.seed, "select", ctx.iteration).integers(len(starts)))]

    def plan(self, ctx: Context) -> Plan:
        """An ODE but for the window; the group splits where it starts, or has been apart from its roots on."""
        return window(
            ctx,
            start=self.window_start(ctx),
            size=self.window,
            noise_level=self.eta,
            kernel=self.kernel,
            roots="shared" if self.version == "split" else "independent",
        )

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's reward less its prompt's mean, over the std of all (population, eps 1e-4), on its whole path."""
        return group_relative(plan, outcome, std=self.std, ddof=self.ddof, eps=self.eps)

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """The window's edges."""
        return trajectory(plan, trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps))

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate."""
        return policy_gradient(batch, velocity["live"], self.clip)


ARMS = {
    "flow-fast": FlowFast(),
    "flow-fast-window": FlowFast(version="window", window=3, kernel="cps", eta=0.8, clip=1e-5),
}
