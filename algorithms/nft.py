"""DiffusionNFT: no path, no likelihood; good images pull the velocity of the forward process, bad ones push it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from bench.contract import Algorithm, Batch, Context, Info, Outcome, Tensor, Velocity
from bench.credit import group_relative
from bench.loss import mean_square
from bench.noise import keyed
from bench.plan import Plan, star
from bench.select import Selection, forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Nft(Algorithm):
    """DiffusionNFT with its published defaults, sampled by the old policy.

    v+ = beta v + (1-beta) v_old,  v- = (1+beta) v_old - beta v,  x0 of each = x_t - t v
    r = clip(A / (2 c) + 1/2, 0, 1);  l = mean_D (x0' - x0)^2 / sg(mean_D |x0' - x0|)
    L = (c / beta) (r l+ + (1-r) l-) + kl mean_D (v - v_ref)^2
    """

    info: ClassVar[Info] = Info(
        paper="DiffusionNFT: Online Diffusion Reinforcement with Forward Process, arXiv 2509.16117",
        reference="NVlabs/DiffusionNFT@24af555",
        deviations=(
            "times are of the whole grid, as published: the suite's train_steps speaks of transitions",
            "guidance is the suite's; the code samples and trains without",
            "where the old policy is the live one its velocity is taken from the live pass; the code runs both",
        ),
        owns=frozenset({"solver"}),
        claims=frozenset({"group_size", "zero_sum"}),
    )

    beta: float = 1.0
    """How far the implicit policies stand from the old one; published: 1, and 0.1 for OCR and several rewards."""
    adv_max: float = 5.0
    """c: advantages from -c to c become rewards from 0 to 1."""
    kl: float = 1e-4
    """Weight of the distance to the reference; 0 leaves it unasked."""
    schedule: Literal["ramp", "late"] = "ramp"
    """How much the old policy keeps: min(n / 1000, 1/2) after n steps, or 0 for 75 steps, then 0.0075 (n-75)."""
    solver: Literal["euler", "dpm2m"] = "dpm2m"
    """Of the rollout."""

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.adv_max <= 0 or self.kl < 0:
            raise ValueError("beta and adv_max are positive, and kl not negative")

    @property
    def needs(self) -> frozenset[str]:
        """The old policy, and the reference for a penalty that has weight."""
        return frozenset({"old", "reference"} if self.kl else {"old"})

    def plan(self, ctx: Context) -> Plan:
        """G deterministic paths of the old policy."""
        return star(ctx, policy="old")

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's reward less its prompt's mean, over the std of all (population, eps 1e-4)."""
        return group_relative(plan, outcome, std="global", ddof=0, eps=1e-4)

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """Every scored image, noised afresh to T-1 of the grid's T times, drawn for each image."""
        scored = np.flatnonzero(~np.isnan(outcome.reward))
        times = [keyed(ctx.seed, "select", ctx.iteration, int(row)).permutation(ctx.steps)[:-1] for row in scored]
        sigma = ctx.sigmas[np.asarray(times, int).reshape(len(scored), ctx.steps - 1)]
        return forward(plan, outcome.leaf[scored], sigma, shared=False)

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The two-sided regression, and the distance to the reference."""
        v, old = velocity["live"], velocity["old"]
        good = self.distance(batch, self.beta * v + (1 - self.beta) * old)
        bad = self.distance(batch, (1 + self.beta) * old - self.beta * v)
        r = (batch.advantage / (2 * self.adv_max) + 0.5).clamp(0, 1)
        loss = self.adv_max / self.beta * (r * good + (1 - r) * bad)
        if self.kl:
            loss = loss + self.kl * mean_square(v - velocity["reference"])[batch.item_query.to(v.device)]
        return (batch.weight * loss).sum()

    def distance(self, batch: Batch, velocity: Tensor) -> Tensor:
        """Return each image's squared distance from its clean prediction, over its mean distance."""
        off = batch.clean_prediction(velocity) - batch.target
        return mean_square(off) / off.detach().abs().flatten(1).mean(1).clamp(min=1e-5)

    def decay(self, ctx: Context) -> Mapping[str, float]:
        """The old policy follows the live one ever more slowly."""
        n = ctx.optimizer_steps
        late = min(max(0.0, 0.0075 * (n - 75)), 0.999)
        return {"old": late if self.schedule == "late" else min(0.001 * n, 0.5)}


ARMS = {"nft": Nft()}
