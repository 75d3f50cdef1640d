"""Lemmas 1 and 2 and theorem 1, as reconstructed: a branching rollout's nodes have the marginals of a plain SDE's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy import stats

from bench.noise import Noise
from bench.plan import Plan, branching
from bench.theory.claim import ERRORS, Claim, branch_plan, farthest
from bench.theory.gaussian import GaussianData, Law, correlation, law, sampled

DATA = GaussianData(mean=np.array([0.7, -0.3, 0.1]), variance=np.array([0.25, 1.0, 0.04]))
SAMPLERS = {"dance_sde": 0.3, "flow_sde": 0.7, "cps": 0.8}
"""Kernel -> the noise level its paper publishes."""
NAMES = {"dance_sde": "Dance SDE", "flow_sde": "Flow SDE", "cps": "CPS"}
STEPS, SPLITS, S = 8, (0, 2), 4.0
OFFICIAL_SCALE = 4.0
COPIES = 10
"""Copies of a latent that a draw stands for: they cost less than trees."""


def claims(draws: int, seed: int) -> list[Claim]:
    """Return the rows about noise and marginals."""
    tree, copies = tree_of("dance_sde"), COPIES * draws
    widened = official(tree)
    return [
        *lemma_1(copies, seed),
        split_log_prob(tree, copies, seed),
        *(lemma_2(tree_of(kernel), copies, seed) for kernel in SAMPLERS),
        *(row for kernel in SAMPLERS for row in theorem_1(tree_of(kernel), copies, seed)),
        *(shared_path(tree, pair, copies, seed) for pair in ((0, 1), (0, 3))),
        split_log_prob(widened, copies, seed),
        theorem_1(widened, copies, seed)[1],
    ]


def tree_of(kernel: str) -> Plan:
    """Return BranchGRPO's tree with two nested splits under a kernel."""
    return branch_plan(STEPS, splits=SPLITS, s=S, kernel=kernel, eta=SAMPLERS[kernel])


def official(plan: Plan) -> Plan:
    """Return the plan with the official code's split noise: independent, 4 times the std that is scored."""
    split = np.isin(plan.tree.depth - 1, SPLITS)
    return replace(plan, coupling=np.zeros(len(plan.tree)), noise_scale=np.where(split, OFFICIAL_SCALE, 1.0))


def chain_of(plan: Plan) -> Plan:
    """Return the plain rollout that a tree branches: one path, the same kernel and noise levels."""
    first = [float(plan.noise_level[plan.tree.level(d)][0]) for d in range(1, plan.steps + 1)]
    return branching(plan.sigmas, slots=1, fanout=[1] * plan.steps, noise_level=first, kernel=plan.kernel)


def lemma_1(copies: int, seed: int) -> list[Claim]:
    """Return the rows about the noise of siblings, eq. (2)."""
    tree = branch_plan(STEPS, splits=SPLITS, factor=4, s=S)
    xi = split_noise(tree, copies, seed)
    rho = 1 / (1 + S**2)
    expected = correlation(tree.tree.parent[tree.tree.level(1)], tree.coupling[tree.tree.level(1)])
    covariance = xi @ xi.T / copies
    apart = ~np.eye(len(xi), dtype=bool)
    source = "lemma 1"
    statement = "A child's noise (xi_0 + s eta_b) / sqrt(1 + s^2) is standard normal, coupled with its siblings'."
    return [
        Claim(
            source=source,
            statement=statement,
            name="variance of a child's noise",
            condition="any s",
            claimed=1.0,
            expected=float(expected[0, 0]),
            measured=farthest(np.diag(covariance), 1.0),
            tolerance=ERRORS * math.sqrt(2 / copies),
        ),
        Claim(
            source=source,
            statement=statement,
            name="its distance from the normal (KS)",
            condition="any s",
            claimed=0.0,
            expected=0.0,
            measured=max(float(stats.kstest(row, "norm").statistic) for row in xi),
            tolerance=float(stats.kstwo.isf(2 * stats.norm.sf(ERRORS), copies)),
        ),
        Claim(
            source=source,
            statement=statement,
            name="covariance of two of 4 siblings",
            condition="it is 1/(1+s^2), any s",
            claimed=rho,
            expected=float(expected[0, 1]),
            measured=farthest(covariance[apart], rho),
            tolerance=ERRORS * math.sqrt((1 + rho**2) / copies),
        ),
    ]


def split_noise(plan: Plan, copies: int, seed: int) -> Float[np.ndarray, "child copy"]:
    """Return the noise of the root's children, one latent of `copies` dimensions each."""
    level = plan.tree.level(1)
    node = np.arange(level.start, level.stop)
    return Noise(seed=seed, iteration=0).edges(plan.tree, node, plan.coupling, (copies,)).astype(float)


def split_log_prob(plan: Plan, copies: int, seed: int) -> Claim:
    """Return the row about how a split's edges are scored: their mean log-prob is minus a normal's entropy."""
    level = plan.tree.level(1)
    scale, s = float(plan.noise_scale[level][0]), float(plan.std()[level][0])
    normal = -math.log(s) - 0.5 * math.log(2 * math.pi)
    expected = normal - 0.5 * scale**2
    return Claim(
        source="lemma 1" if scale == 1 else "official split noise",
        name="mean log-prob of a split's edge",
        statement="A split's transition is the plain step's, so its log-prob is on average -1/2 - ln s - ln(2 pi)/2.",
        condition="split noise by eq. (2)" if scale == 1 else f"noise x{scale:g} scored as x1",
        claimed=normal - 0.5,
        expected=expected,
        measured=farthest(sampled(DATA, plan, seed=seed, copies=(copies,)).log_prob[level], expected),
        tolerance=ERRORS * scale**2 * math.sqrt(0.5 / (copies * len(DATA.mean))),
    )


def lemma_2(plan: Plan, copies: int, seed: int) -> Claim:
    """Return the row about nodes some steps after the last split, before the images."""
    depth = SPLITS[-1] + 3
    level = plan.tree.level(depth)
    plain, tree = law(DATA, chain_of(plan), depth=depth), law(DATA, plan, depth=depth)
    found = sampled(DATA, plan, seed=seed, copies=(copies,)).at(np.arange(level.start, level.stop)).double().numpy()
    expected = float(tree.variance().sum(1)[0])
    return Claim(
        source="lemma 2",
        name=f"variance at depth {depth} of {STEPS}, {NAMES[plan.kernel]}",
        statement="Going on after a split, a path keeps the marginals of the SDE: the step sees the latent alone.",
        condition="every kernel",
        claimed=float(plain.variance().sum()),
        expected=expected,
        measured=farthest(found.var(1).sum(1), expected),
        tolerance=ERRORS * variance_error(tree, copies),
    )


def theorem_1(plan: Plan, copies: int, seed: int) -> tuple[Claim, Claim]:
    """Return the rows about a leaf's mean and variance, each summed over dimensions."""
    plain, tree = law(DATA, chain_of(plan)), law(DATA, plan)
    leaf = sampled(DATA, plan, seed=seed, copies=(copies,)).x0.double().numpy()
    scaled = bool((plan.noise_scale != 1).any())
    mean, variance = float(tree.mean.sum(1)[0]), float(tree.variance().sum(1)[0])
    source = "official split noise" if scaled else "theorem 1"
    statement = "Every leaf has the marginal law of an image of the plain SDE."
    condition = f"noise x{plan.noise_scale.max():g} at splits" if scaled else "every kernel"
    return (
        Claim(
            source=source,
            name=f"mean of a leaf, {NAMES[plan.kernel]}",
            statement=statement,
            condition=condition,
            claimed=float(plain.mean.sum()),
            expected=mean,
            measured=farthest(leaf.mean(1).sum(1), mean),
            tolerance=ERRORS * math.sqrt(variance / copies),
        ),
        Claim(
            source=source,
            name=f"variance of a leaf, {NAMES[plan.kernel]}",
            statement=statement,
            condition=condition,
            claimed=float(plain.variance().sum()),
            expected=variance,
            measured=farthest(leaf.var(1).sum(1), variance),
            tolerance=ERRORS * variance_error(tree, copies),
        ),
    )


def variance_error(of: Law, copies: int) -> float:
    """Return the standard error of a node's variance, summed over dimensions."""
    return math.sqrt(2 * float((of.variance()[0] ** 2).sum()) / copies)


def shared_path(plan: Plan, pair: tuple[int, int], copies: int, seed: int) -> Claim:
    """Return the row about two leaves of a tree: what their paths share they have in common."""
    tree = law(DATA, plan)
    leaf = sampled(DATA, plan, seed=seed, copies=(copies,)).x0.double().numpy()[list(pair)]
    one, other = leaf - leaf.mean(1, keepdims=True)
    covariance, variance = tree.covariance[pair], tree.variance()[0]
    parted = max(d for d in range(STEPS) if len({int(plan.tree.ancestor(d)[plan.tree.leaves()[i]]) for i in pair}) == 1)
    return Claim(
        source="leaves jointly",
        name=f"covariance of leaves parted at step {parted}",
        statement="The images of a tree are an independent sample.",
        condition="they share root and noise",
        claimed=0.0,
        expected=float(covariance.sum()),
        measured=float((one * other).mean(0).sum()),
        tolerance=ERRORS * math.sqrt(float((variance**2 + covariance**2).sum()) / copies),
    )
