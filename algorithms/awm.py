"""Advantage Weighted Matching: flow matching on the policy's own images, weighted by their advantage."""

from __future__ import annotations

from collections.abc import Mapping
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

TINY = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Awm(Algorithm):
    """Advantage Weighted Matching with its published defaults.

    l = mean_D (v(x_t, t) - (eps - x0))^2,  x_t = (1-t) x0 + t eps;  log p = -(t / p) ((l + tiny)^p - tiny^p)
    A = clip((r - mean of the prompt's r) / (std of all r + eps), -a, a) / a;  rho = p / p_old
    L = max(-A rho, -A clip(rho, 1-c, 1+c)) + kl mean_D (v - v_ref)^2 + kl_ema mean_D (v - v_ema)^2
    """

    info: ClassVar[Info] = Info(
        paper="Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models, arXiv 2509.25050",
        reference="scxue/advantage_weighted_matching@be51372",
        deviations=(
            "rollouts are the suite's ODE; the code's SA-Solver adds noise in mid-path for some rewards",
            "times are of the whole grid, as published: the suite's train_steps speaks of transitions",
            "times are the same for all images of an iteration; in the code, for those of a micro-batch",
            "guidance is the suite's; the code samples and trains without",
            "losses are float32, the code's float64",
            "the first two iterations are trained; the code skips them",
        ),
        owns=frozenset({"clip"}),
        claims=frozenset({"group_size"}),
    )

    draws: int = 6
    """Times of an image, with noise of its own at each."""
    weighting: Literal["uniform", "t", "t2", "huber", "ghuber"] = "ghuber"
    """log p of l and t: -l, -t l, -t^2 l, -t (sqrt(l) - small), or the generalised Huber loss of the formula."""
    power: float = 0.25
    """p of the generalised Huber loss."""
    adv_max: float = 5.0
    """a: advantages are clipped to it, then scaled to 1."""
    kl: float = 0.001
    """Weight of the distance to the reference; published: 0.001 (GenEval), 0.003 (OCR), 0.0001 (PickScore)."""
    kl_ema: float = 1.0
    """Weight of the distance to the slow average of the policy."""
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.draws < 1 or self.power <= 0 or self.adv_max <= 0 or self.kl < 0 or self.kl_ema < 0:
            raise ValueError("draws is at least 1, power and adv_max are positive, kl and kl_ema not negative")

    @property
    def needs(self) -> frozenset[str]:
        """The policy as the iteration began, and those of penalties that have weight."""
        return frozenset({"old", *({"reference"} if self.kl else ()), *({"ema"} if self.kl_ema else ())})

    def plan(self, ctx: Context) -> Plan:
        """G deterministic paths."""
        return star(ctx)

    def credit(self, plan: Plan, outcome: Outcome, ctx: Context) -> Float[np.ndarray, " node"]:
        """A leaf's reward less its prompt's mean, over the std of all (population, eps 1e-4), in [-1, 1]."""
        value = group_relative(plan, outcome, std="global", ddof=0, eps=1e-4)
        return value.clip(-self.adv_max, self.adv_max) / self.adv_max

    def select(self, plan: Plan, outcome: Outcome, advantage: Float[np.ndarray, " node"], ctx: Context) -> Selection:
        """Every scored image at the same few times, strata of the grid's first nine tenths but for pure noise."""
        uniform = keyed(ctx.seed, "select", ctx.iteration).random(self.draws)
        sigma = ctx.sigmas[stratified(uniform, range(1, max(2, int(0.9 * ctx.steps))))]
        return forward(plan, outcome.leaf[~np.isnan(outcome.reward)], sigma[None], shared=False)

    def loss(self, batch: Batch, velocity: Velocity) -> Tensor:
        """The clipped surrogate of the weighted matching losses, and the distances to reference and average."""
        v, query = velocity["live"], batch.item_query.to(batch.x.device)
        log_ratio = self.log_prob(batch, v) - self.log_prob(batch, velocity["old"])
        loss = clipped_surrogate(log_ratio, batch.advantage, self.clip)
        for name, weight in (("reference", self.kl), ("ema", self.kl_ema)):
            if weight:
                loss = loss + weight * mean_square(v - velocity[name])[query]
        return (batch.weight * loss).sum()

    def log_prob(self, batch: Batch, velocity: Tensor) -> Tensor:
        """Return the stand-in for an image's log-prob at each of its times."""
        assert batch.eps is not None
        query = batch.item_query.to(batch.x.device)
        error = mean_square(velocity[query] - (batch.eps[query] - batch.target))
        t = batch.sigma[batch.item_query].to(error.device)
        return {
            "uniform": lambda: -error,
            "t": lambda: -t * error,
            "t2": lambda: -t.square() * error,
            "huber": lambda: -t * ((error + TINY).sqrt() - TINY**0.5),
            "ghuber": lambda: -t / self.power * ((error + TINY) ** self.power - TINY**self.power),
        }[self.weighting]()

    def decay(self, ctx: Context) -> Mapping[str, float]:
        """The average follows ever more slowly, by optimiser steps; the old policy is the iteration's first."""
        return {"ema": min(0.3, 0.001 * ctx.optimizer_steps)}


ARMS = {"awm": Awm()}
