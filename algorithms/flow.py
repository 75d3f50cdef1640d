"""Flow-GRPO: independent SDE paths, rewards normalised by a global std, a penalty for leaving the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.credit import group_relative
from bench.loss import mean_square, policy_gradient
from bench.plan import Plan, window
from bench.select import Selection, trainable, trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow(Algorithm):
    """Flow-GRPO with its published defaults.

    A = (r - mean of the prompt's r) / (std of all r + eps)
    L = max(-A rho, -A clip(rho, 1-c, 1+c)) + kl * KL,  rho = p(y | x) / p_old(y | x)
    KL = mean_D (mu - mu_ref)^2 / (2 s^2),  s^2 = g^2 d the variance of the step's noise
    """

    info: ClassVar[Info] = Info(
        paper="Flow-GRPO: Training Flow Matching Models via Online RL, arXiv 2505.05470",
        reference="yifan123/flow_grpo@ac4c86e",
        deviations=(
            "KL is the paper's, of the whole step, at a tenth of the published weight: that is calibrated to the code's"
            " KL, which leaves out the step's length d, a tenth on average (kl_std=diffusion)",
            "the image is the clean prediction of the last step; the code decodes the noisy end of the path",
            "samples of zero advantage stay in the batch, for their KL; the code drops them",
            "prompts are told apart by their slot, not by their text: equal prompts of an iteration stay two groups",
        ),
        owns=frozenset({"kernel", "eta", "roots"}),
    )

    roots: Literal["independent", "shared"] = "independent"
    """One initial noise an image, or one a group."""
    std: Literal["global", "group"] = "global"
    """Whose std normalises: of all images of the iteration, or of the prompt's."""
    ddof: int = 0
    eps: float = 1e-4
    kl: float = 0.004
    """Weight of the penalty; 0 leaves the reference unasked. Published for kl_std=diffusion: 0.04, 0.01 (PickScore), 0
    (FLUX); ten steps of length 0.1 make the first 0.004 here."""
    kl_std: Literal["step", "diffusion"] = "step"
    """Of the KL: the step's s, or the code's g, without the square root of d."""
    kernel: str = "flow_sde"
    eta: float = 0.7
    clip: float = 1e-4

    @property
    def needs(self) -> frozenset[str]:
        """The reference, for a penalty that has weight."""
        return frozenset({"reference"} if self.kl else ())

    def plan(self, ctx: Context) -> Plan:
        """G roots, SDE everywhere but on the last step; with a shared root it fans out at step 0."""
        return window(ctx, start=0, size=ctx.steps - 1, noise_level=self.eta, kernel=self.kernel, roots=self.roots)

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's reward less its prompt's mean, over the std of all (population, eps 1e-4), on its whole path."""
        return group_relative(plan, outcome, std=self.std, ddof=self.ddof, eps=self.eps)

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """All steps but the last."""
        return trajectory(plan, trainable(plan, outcome.leaf, outcome.reward, ctx.train_steps))

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate and the KL to the reference."""
        surrogate = policy_gradient(batch, velocity["live"], self.clip)
        if not self.kl:
            return surrogate
        here, there = batch.transition(velocity["live"]), batch.transition(velocity["reference"])
        duration = (batch.sigma - batch.sigma_next)[batch.item_query]
        variance = here.std.square() / (duration if self.kl_std == "diffusion" else 1)
        distance = mean_square(here.mean - there.mean) / (2 * variance.to(here.mean.device))
        return surrogate + self.kl * (batch.weight * distance).sum()


ARMS = {"flow": Flow()}
