"""V-GRPO: GRPO on deterministic rollouts, with the denoising loss of the final image in the likelihood's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.credit import group_relative
from bench.loss import clipped_surrogate, mean_square
from bench.noise import keyed
from bench.plan import Plan, star
from bench.schedule import stratified
from bench.select import Selection, forward


@dataclass(frozen=True, slots=True, kw_only=True)
class VGrpo(Algorithm):
    """V-GRPO with its published defaults for FLUX.

    log p(o) = -mean_j l_j,  l = mean_D (x0' - o)^2 / sg(mean_D |x0' - o|),  x0' of (1-t_j) o + t_j eps_j
    A = b tanh((r - mean) / (std + eps) / b);  rho = p(o) / p_old(o)
    L = max(-A rho, -A clip(rho, 1-c, 1+c)) + kl mean_D (x0' - x0'_old)^2
    """

    info: ClassVar[Info] = Info(
        paper="V-GRPO, arXiv 2604.23380",
        reference="none: tang-bd/v-grpo could not be had; from the paper and notes about it",
        deviations=(
            "scope, ddof and eps of the std are not published: the prompt's group, unbiased, 1e-8",
            "times are of the whole grid, as published: the suite's train_steps speaks of transitions",
            "times are drawn anew every iteration, the same for all prompts; the paper says: for the group",
            "noise is shared by the images of a prompt; the code shares it between prompts too",
            "on the first of an iteration's updates the old policy is the live one, and asks for no pass",
        ),
        owns=frozenset({"clip", "solver"}),
        claims=frozenset({"group_size"}),
    )

    draws: int = 4
    """(t, eps) of an image, the same for the whole group; fewer than 4 fail, by the paper."""
    bound: float = 3.0
    """b of the advantage's soft clip; published: 3 to 5."""
    kl: float = 0.3
    """Weight of the clean predictions' distance to the old policy's."""
    solver: Literal["euler", "dpm2m"] = "dpm2m"
    """Of the rollout."""
    clip: float = 1e-2

    def __post_init__(self) -> None:
        if self.draws < 1 or self.bound <= 0 or self.kl < 0:
            raise ValueError("draws is at least 1, bound positive, and kl not negative")

    @property
    def needs(self) -> frozenset[str]:
        """The policy as the iteration began."""
        return frozenset({"old"})

    def plan(self, ctx: Context) -> Plan:
        """G deterministic paths."""
        return star(ctx)

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's reward, normalised in its prompt's group (unbiased std, eps 1e-8) and softly clipped."""
        return self.bound * np.tanh(group_relative(plan, outcome, ddof=1, eps=1e-8) / self.bound)

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """Every scored image at the same few draws, a time from each stratum of the grid; they are one unit."""
        uniform = keyed(ctx.seed, "select", ctx.iteration).random(self.draws)
        sigma = ctx.sigmas[stratified(uniform, range(ctx.steps))]
        return forward(plan, outcome.leaf[~np.isnan(outcome.reward)], sigma[None], shared=True, together=True)

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate of the images' ratio, and the distance to the old predictions."""
        here, there = (batch.clean_prediction(velocity[name]) for name in ("live", "old"))
        gained = batch.over_unit(self.denoising(there, batch.target) - self.denoising(here, batch.target))
        loss = clipped_surrogate(gained, batch.advantage, self.clip) + self.kl * mean_square(here - there)
        return (batch.weight * loss).sum()

    def denoising(self, x0: Tensor, image: Tensor) -> Tensor:
        """Return the self-normalised denoising loss of each draw."""
        off = x0 - image
        return mean_square(off) / off.detach().abs().flatten(1).mean(1).clamp(min=1e-5)


ARMS = {"vgrpo": VGrpo()}
