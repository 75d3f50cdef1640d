"""Appendix B on fusion, as reconstructed: what a node's fused reward, eqs. (3) and (9), says of its leaves.

All of it is given the node, here the root: the law of the images that it may become.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import integrate, special

from bench.plan import Plan
from bench.theory.claim import ERRORS, Claim, branch_plan
from bench.theory.gaussian import GaussianData, law, sampled, to_leaf
from bench.tree import fuse, path_sum

LINE = GaussianData(mean=np.array([0.7]), variance=np.array([0.25]))
INDEPENDENT = math.inf
"""Branch noise s of siblings that share nothing."""
SDE = {"kernel": "flow_sde", "eta": 0.7}
TREES = (
    ("1x4 leaves, s = inf", {"splits": (0,), "factor": 4, "s": INDEPENDENT}, "independent leaves"),
    ("2x2 leaves, s = inf", {"splits": (2, 4), "s": INDEPENDENT}, "leaves share a path"),
    ("2x2 leaves, s = 4", {"splits": (2, 4), "s": 4.0}, "leaves share path and noise"),
)
"""What a tree is called, BranchGRPO's settings, and what that means for its leaves."""
FEW = 4
PROPOSAL = 2.0
"""Std of an explicit proposal over that of the transition."""


def claims(draws: int, seed: int) -> list[Claim]:
    """Return the rows about fusion."""
    bias, variance = zip(*(uniform(*tree, draws, seed) for tree in TREES), strict=True)
    return [*bias, *variance, *path_weighted(draws, seed)]


def uniform(name: str, settings: Mapping[str, Any], condition: str, draws: int, seed: int) -> tuple[Claim, Claim]:
    """Return the rows about eq. (9), the mean of a node's leaves, for a reward that is linear in the image."""
    plan = branch_plan(6, slots=draws, **SDE, **settings)
    found = sampled(LINE, plan, seed=seed)
    gain, shift = to_leaf(LINE, plan, 0)
    roots = np.arange(draws)
    fused = fuse(plan.tree, plan.tree.leaves(), found.x0.double().numpy()[:, 0])[roots]
    given = law(LINE, branch_plan(6, **SDE, **settings), root_variance=0.0)
    covariance = given.covariance[..., 0]
    sigma = math.sqrt(covariance[0, 0])
    off = (fused - (gain * found.at(roots).double().numpy() + shift)[:, 0]) / sigma
    expected = float(covariance.mean()) / sigma**2
    return (
        Claim(
            source="eq. (9)",
            name=f"bias / sigma, {name}",
            statement="The mean of a node's leaves is an unbiased estimate of its value.",
            condition="every tree",
            claimed=0.0,
            expected=float((given.mean - shift).mean()) / sigma,
            measured=float(off.mean()),
            tolerance=ERRORS * math.sqrt(expected / draws),
        ),
        Claim(
            source="eq. (9)",
            name=f"var. / sigma^2, {name}",
            statement="The variance of that mean is sigma^2 / |L|, with sigma^2 a leaf's given the node.",
            condition=condition,
            claimed=1 / len(covariance),
            expected=expected,
            measured=float(off.var()),
            tolerance=ERRORS * expected * math.sqrt(2 / draws),
        ),
    )


def path_weighted(draws: int, seed: int) -> list[Claim]:
    """Return the rows about eq. (3) as importance sampling: of E r = 1, r a leaf's squared distance from the mean."""
    p, wide, explicit = (1, 1.0), (64, 1.0), (1, PROPOSAL)
    return [
        weighted(FEW, p, "leaves drawn from p itself", draws, seed),
        weighted(draws, p, "leaves drawn from p itself", draws, seed),
        weighted(draws, wide, "barely: the exponent is beta/D", draws, seed),
        weighted(FEW, explicit, "few leaves, though consistent", draws, seed),
        weighted(draws, explicit, "many leaves, weights p/q", draws, seed),
    ]


def weighted(leaves: int, drawn: tuple[int, float], condition: str, draws: int, seed: int) -> Claim:
    """Return the row about the self-normalised mean of `leaves` children of a root, one stochastic step away.

    Args:
        leaves: of a tree; there are as many trees as make `draws` leaves.
        drawn: dimensions D, and the std that is sampled over the std of p. At 1 the weights are eq. (3)'s at beta = 1,
            else p/q with q what is sampled.
        condition: of the verdict.
        draws: leaves in all.
        seed: of the noise.
    """
    dims, scale = drawn
    data = GaussianData(mean=np.full(dims, LINE.mean[0]), variance=np.full(dims, LINE.variance[0]))
    plan = star_of(leaves, draws // leaves, scale)
    reward, log_weight = scored(data, plan, seed)
    tree, leaf = plan.tree, plan.tree.leaves()
    values = fuse(tree, leaf, reward, log_weight)[tree.level(0)]
    power = (
        1 / dims if scale == 1 else scale**2 - 1
    )  # log w = -power/2 |xi|^2 + const, xi the noise in units of its std
    expected = scale**2 * (1 / (1 + power) if len(values) == 1 else self_normalised(leaves, dims, power))
    if len(values) == 1:
        weight = np.exp(log_weight - log_weight.max())
        error = float(np.sqrt((weight**2 * (reward - values[0]) ** 2).sum()) / weight.sum())
    else:
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
    weights = "path weights" if scale == 1 else f"p/q, q {scale:g}x as wide"
    count = "many" if leaves == draws else str(leaves)
    return Claim(
        source="eq. (3)",
        name=f"{weights}, {count} leaves, D = {dims}",
        statement="Self-normalised path weights estimate a node's value; here that is 1.",
        condition=condition,
        claimed=1.0,
        expected=expected,
        measured=float(values.mean()),
        tolerance=ERRORS * error,
    )


def star_of(leaves: int, trees: int, scale: float) -> Plan:
    """Return trees whose leaves are independent given their root, sampled with `scale` times the std that is scored."""
    plan = branch_plan(2, slots=trees, splits=(0,), factor=leaves, s=INDEPENDENT, eta=1.0)
    return replace(plan, noise_scale=np.where(plan.noise_level > 0, scale, 1.0))


def scored(data: GaussianData, plan: Plan, seed: int) -> tuple[Float[np.ndarray, " leaf"], Float[np.ndarray, " leaf"]]:
    """Return each leaf's reward, its squared distance from its root's mean image in units of p's, and log weight."""
    found, leaf = sampled(data, plan, seed=seed), plan.tree.leaves()
    gain, shift = to_leaf(data, plan, 0)
    roots = found.at(plan.tree.root()[leaf]).double().numpy()
    spread = to_leaf(data, plan, 1)[0] * plan.std()[plan.tree.level(1)][0]
    reward = (((found.x0.double().numpy() - gain * roots - shift) / spread) ** 2).mean(1)
    log_p, scale = path_sum(plan.tree, found.log_prob)[leaf], float(plan.noise_scale.max())
    return reward, log_p if scale == 1 else log_p - log_proposal(log_p, plan, scale)


def log_proposal(log_p: Float[np.ndarray, " leaf"], plan: Plan, scale: float) -> Float[np.ndarray, " leaf"]:
    """Return the log-density of N(mean, (scale s)^2) where that of N(mean, s^2) is `log_p`."""
    constant = math.log(float(plan.std()[plan.tree.level(1)][0])) + 0.5 * math.log(2 * math.pi)
    return (log_p + constant) / scale**2 - constant - math.log(scale)


def self_normalised(leaves: int, dims: int, power: float) -> float:
    """Return E[sum w q / sum w] / dims over independent q ~ chi^2(dims), with w = exp(-power q / 2).

    By 1 / x = integral of exp(-t x) over t > 0, in which the leaves factorise.
    """
    node, weight = special.roots_genlaguerre(100, dims / 2 - 1)
    q, weight = 2 * node, weight / weight.sum()
    w = np.exp(-power * q / 2)

    def over(y: float) -> float:
        t = math.exp(y)
        decay = weight * np.exp(-t * w)
        return t * float((decay * w * q).sum()) * float(decay.sum()) ** (leaves - 1)

    return leaves * integral(over) / dims


def integral(function: Callable[[float], float]) -> float:
    """Return the integral over the logarithm of t, from where t does nothing to where nothing is left."""
    return float(integrate.quad(function, -20.0, 60.0, limit=400)[0])
