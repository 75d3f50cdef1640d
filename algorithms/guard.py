"""GRPO-Guard: the importance ratio centred and of one scale at every step, on top of any algorithm of transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from bench.contract import POLICIES, Algorithm, Batch, Context, Info, Memory, Outcome, Tensor, Velocity, host
from bench.loss import clipped_surrogate, mean_square
from bench.plan import Plan
from bench.select import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard(Algorithm):
    """GRPO-Guard with its published defaults: the host's plan, credit and selection, a loss of its own.

    log rho = (log p(y | x) - log p_old(y | x) + mean_D (mu - mu_old)^2 / (2 s^2)) s
    L = max(-A rho, -A clip(rho, 1-c, 1+c)) / d,  s the std of the step's noise, d the step's length in sigma
    """

    info: ClassVar[Info] = Info(
        paper="GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping,"
        " arXiv 2510.22319",
        reference="yifan123/flow_grpo@9745241",
        deviations=(
            "the ratio's bias is taken per sample; the code's mean over no dimensions is one number a micro-batch",
            "mu_old is the stored latent less its noise; the code stores it",
        ),
        owns=frozenset({"clip"}),
        claims=frozenset({"group_size", "zero_sum"}),
    )

    host: Algorithm = host("flow(kl=0,std=group)")
    """Whose plan, credit and selection are taken: guard(host=branch(splits=sparse))."""
    ratio_norm: bool = True
    """Whether the ratio is centred and scaled."""
    reweight: bool = True
    """Whether a step's loss is divided by its length."""
    clip: float = 2e-6

    def __post_init__(self) -> None:
        if isinstance(self.host, Guard):
            raise ValueError("a guard on a guard would be the outer one alone")

    @property
    def needs(self) -> frozenset[str]:
        """The edges' noise, from which the old mean is had, where the ratio is normalised."""
        return self.host.needs | ({"noise"} if self.ratio_norm else frozenset())

    def plan(self, ctx: Context) -> Plan:
        """The host's; it must have stochastic steps, and no penalty, which this loss would drop."""
        plan = self.host.plan(ctx)
        if not (plan.noise_level > 0).any():
            raise ValueError("guard normalises the ratio of transitions, and its host has none: choose one with an SDE")
        if self.host.needs & POLICIES:
            raise ValueError("guard takes the place of a clipped surrogate alone: choose a host without KL")
        return plan

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """The host's."""
        return self.host.credit(plan, outcome, ctx)

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """The host's."""
        return self.host.select(plan, outcome, advantage, ctx)

    def updates(self, ctx: Context) -> int:
        """The host's."""
        return self.host.updates(ctx)

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate of the normalised ratio, each step's divided by its length."""
        step = batch.transition(velocity["live"])
        log_ratio, weight = step.log_prob(batch.target) - batch.log_prob_old, batch.weight
        std = step.std.to(batch.x.device)
        if self.ratio_norm:
            assert batch.noise is not None
            mean_old = batch.target - std.view(-1, *[1] * (batch.noise.ndim - 1)) * batch.noise
            log_ratio = (log_ratio + mean_square(step.mean - mean_old) / (2 * std.square())) * std
        if self.reweight:
            weight = weight / (batch.sigma - batch.sigma_next)[batch.item_query].to(weight.device)
        return (weight * clipped_surrogate(log_ratio, batch.advantage, self.clip)).sum()

    def remember(self, plan: Plan, outcomes: Mapping[str, Outcome], ctx: Context) -> Memory:
        """The host's."""
        return self.host.remember(plan, outcomes, ctx)


ARMS = {"guard": Guard()}
