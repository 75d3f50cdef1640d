"""Appendix B on the sibling baseline, eq. (10), as reconstructed; and what eq. (4) makes of two siblings.

The gradient is that of E r with respect to the mean of a split's transition, in units of its std: E[r xi], and by
Stein's identity E[dr/dxi]. For siblings whose noises correlate by rho, E[r(b') xi_b] = rho E[dr/dxi].
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from bench.contract import Outcome
from bench.noise import Noise, keyed
from bench.plan import Plan
from bench.theory.claim import ERRORS, Claim, branch, branch_plan, context, farthest
from bench.theory.fusion import INDEPENDENT, LINE
from bench.theory.gaussian import law, sampled, to_leaf
from bench.tree import fuse

S = 4.0
ETA = 1.5
"""So much noise that it outweighs what the root decides."""
FAR = 3.0
"""Distance of a reward's mean from 0, in the example where a baseline pays."""


def claims(draws: int, seed: int) -> list[Claim]:
    """Return the rows about the sibling baseline and the depths' normalisation."""
    return [
        expectation(2, S, draws, seed, leave_one_out=False),
        expectation(4, S, draws, seed, leave_one_out=False),
        expectation(2, S, draws, seed, leave_one_out=True),
        expectation(2, INDEPENDENT, draws, seed, leave_one_out=True),
        variance("a reward around 0", 0.0, "rewards centred already", draws, seed),
        variance(f"a reward around {FAR:g}", FAR, "rewards far from 0", draws, seed),
        two_siblings(seed),
    ]


def split(K: int, s: float, slots: int = 1) -> Plan:
    """Return trees that split once, one deterministic step before their images."""
    return branch_plan(2, slots=slots, splits=(0,), factor=K, s=s, eta=ETA)


def family(
    K: int, s: float, draws: int, seed: int
) -> tuple[Plan, Float[np.ndarray, "draw sibling"], Float[np.ndarray, "draw sibling"]]:
    """Return the plan of `draws` trees, the noise of each one's siblings, and their images."""
    plan = split(K, s, draws)
    level = plan.tree.level(1)
    noise = Noise(seed=seed, iteration=0).edges(plan.tree, np.arange(level.start, level.stop), plan.coupling, (1,))
    image = sampled(LINE, plan, seed=seed).x0.double().numpy()
    return plan, noise.astype(float).reshape(draws, K), image.reshape(draws, K)


def advantages(
    plan: Plan, reward: Float[np.ndarray, "draw sibling"], *, leave_one_out: bool
) -> Float[np.ndarray, "draw sibling"]:
    """Return eq. (10): each child's fused reward less the mean of its parent's children, or of its siblings alone."""
    value = fuse(plan.tree, plan.tree.leaves(), reward.ravel())
    child = plan.tree.level(1)
    K = reward.shape[1]
    advantage = (value[child] - value[plan.tree.parent[child]]).reshape(reward.shape)
    return advantage * K / (K - 1) if leave_one_out else advantage


def expectation(K: int, s: float, draws: int, seed: int, *, leave_one_out: bool) -> Claim:
    """Return the row about the estimate's mean over the gradient, for a reward x + x^2 / 2."""
    plan, xi, image = family(K, s, draws, seed)
    per_noise = float(to_leaf(LINE, plan, 1)[0][0] * plan.std()[plan.tree.level(1)][0])
    gradient = per_noise * (1 + float(law(LINE, split(K, s)).mean[0, 0]))
    estimate = (advantages(plan, image + image**2 / 2, leave_one_out=leave_one_out) * xi).mean(1) / gradient
    rho = 1 / (1 + s**2)
    exact, whose = leave_one_out and rho == 0, "others' mean" if leave_one_out else "mean of all"
    return Claim(
        source="eq. (10)",
        name=f"E / gradient, {whose}, K={K}, s={s:g}",
        statement="Siblings' mean is a baseline that leaves the gradient unbiased.",
        condition="leave-one-out and rho = 0" if exact else f"it is {'' if leave_one_out else '(1-1/K)'}(1-rho)",
        claimed=1.0,
        expected=(1 if leave_one_out else 1 - 1 / K) * (1 - rho),
        measured=float(estimate.mean()),
        tolerance=ERRORS * float(estimate.std(ddof=1)) / math.sqrt(draws),
    )


def variance(name: str, centre: float, condition: str, draws: int, seed: int) -> Claim:
    """Return the row about the variance with the baseline, rescaled to be unbiased, over that without.

    With K = 2 and a linear reward k xi + c, they are 2 k^2 and k^2 (1 + rho^2) + E[c^2] (1 + rho) / 2.
    """
    plan, xi, image = family(2, S, draws, seed)
    rho = 1 / (1 + S**2)
    k = float(to_leaf(LINE, plan, 1)[0][0] * plan.std()[plan.tree.level(1)][0])
    root = float(to_leaf(LINE, plan, 0)[0][0])
    reward = image - float(law(LINE, split(2, S)).mean[0, 0]) + centre
    with_it = (advantages(plan, reward, leave_one_out=True) * xi).mean(1) / (1 - rho)
    without = (reward * xi).mean(1)
    expected = 2 * k**2 / (k**2 * (1 + rho**2) + (centre**2 + root**2) * (1 + rho) / 2)
    measured = float(with_it.var() / without.var())
    return Claim(
        source="eq. (10)",
        name=f"variance ratio, {name}",
        statement="Siblings' mean reduces the gradient's variance: with over without, both unbiased.",
        condition=condition,
        claimed=1.0,
        relation="at most",
        expected=expected,
        measured=measured,
        tolerance=ERRORS * measured * (relative_error(with_it) + relative_error(without)),
    )


def relative_error(sample: Float[np.ndarray, " n"]) -> float:
    """Return the standard error of a sample's variance over that variance."""
    centred = (sample - sample.mean()) ** 2
    return float(centred.std() / centred.mean()) / math.sqrt(len(sample))


def two_siblings(seed: int) -> Claim:
    """Return the row about the first split's advantages under eq. (4), for rewards of very different spreads."""
    plan = branch_plan(6, slots=200, splits=(0, 2), fusion="uniform")
    leaf = plan.tree.leaves()
    draw = keyed(seed, "eval", 0)
    spread = np.repeat(10.0 ** draw.uniform(-2, 2, 200), len(leaf) // 200)
    outcome = Outcome(log_prob=np.zeros(len(plan.tree)), reward=spread * draw.standard_normal(len(leaf)), leaf=leaf)
    first = replace(branch(), splits=(0, 2), fusion="uniform").credit(plan, outcome, context(6, 200))
    expected = math.sqrt(0.5)
    return Claim(
        source="eq. (4)",
        name="|A| of a first split's children, K = 2",
        statement="Two nodes of a depth have advantages +-1/sqrt(2): which one is better, not by how much.",
        condition="whatever the rewards",
        claimed=expected,
        expected=expected,
        measured=farthest(np.abs(first[plan.tree.level(1)]), expected),
        tolerance=1e-3,  # of the std's eps, 1e-8, where two rewards are nearly equal
    )
