"""Gaussian data, exact velocity: every sampler is linear, so the mean, variance and covariance of its leaves follow.

Data N(m, c^2) in each dimension on its own. With v = a(sigma) x + b(sigma), a step is
x' = k x + l + s eps, k and l from the textbook's form of the step; moments follow by recursion in float64. The
latent has many dimensions, all independent: one chain is a large sample.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from toy import context

from bench.noise import Noise
from bench.plan import Plan, branching, star, window
from bench.policy import encoded
from bench.rollout import rollout
from bench.schedule import shifted_sigmas
from bench.theory.gaussian import GaussianData, GaussianPolicy

MEAN, STD, DIMENSIONS = 0.7, 0.5, 100_000
SIGMAS = shifted_sigmas(8, 3.0)
DATA = GaussianData(mean=np.array([MEAN]), variance=np.array([STD**2]))
POLICY = GaussianPolicy(DATA, copies=(DIMENSIONS,))
CONDITION = encoded(POLICY, ["one prompt"])
SAMPLERS = [("dance_sde", 0.3), ("dance_sde", 1.0), ("flow_sde", 0.7), ("cps", 0.8), ("dance_sde", 0.0)]


def line(sigma: float) -> tuple[float, float]:
    """Return (a, b) of the exact velocity: E[noise | x] - E[image | x], from the regression of each on x."""
    variance = ((1 - sigma) * STD) ** 2 + sigma**2
    slope_image, slope_noise = (1 - sigma) * STD**2 / variance, sigma / variance
    middle = (1 - sigma) * MEAN
    return slope_noise - slope_image, -slope_noise * middle - (MEAN - slope_image * middle)


def affine(kernel: str, level: float, step: int) -> tuple[float, float, float]:
    """Return (k, l, s) of x' = k x + l + s eps."""
    sigma, after = float(SIGMAS[step]), float(SIGMAS[step + 1])
    a, b = line(sigma)
    d = sigma - after
    if level == 0 or step == len(SIGMAS) - 2:
        return 1 - d * a, -d * b, 0.0
    if kernel == "cps":
        s = after * math.sin(level * math.pi / 2)
        B = after * math.cos(level * math.pi / 2)
        return (
            (1 - after) * (1 - sigma * a) + B * (1 + (1 - sigma) * a),
            -(1 - after) * sigma * b + B * (1 - sigma) * b,
            s,
        )
    g = level if kernel == "dance_sde" else level * math.sqrt(sigma / (1 - (SIGMAS[1] if step == 0 else sigma)))
    drift = g**2 / (2 * sigma)
    return 1 - d * (a + drift * (1 + (1 - sigma) * a)), -d * b * (1 + drift * (1 - sigma)), g * math.sqrt(d)


def moments(kernel: str, levels: list[float]) -> tuple[float, float]:
    """Return mean and variance of a leaf, from N(0, 1) noise."""
    mean, variance = 0.0, 1.0
    for step, level in enumerate(levels):
        k, shift, s = affine(kernel, level, step)
        mean, variance = k * mean + shift, k**2 * variance + s**2
    return mean, variance


def sampled(plan: Plan, seed: int = 0) -> np.ndarray:
    return rollout(POLICY, plan, CONDITION, Noise(seed=seed, iteration=0), chunk=100).x0.double().numpy()[..., 0]


def assert_moments(leaf: np.ndarray, mean: float, variance: float) -> None:
    assert leaf.mean() == pytest.approx(mean, abs=4.5 * math.sqrt(variance / DIMENSIONS))
    assert leaf.var() == pytest.approx(variance, abs=4.5 * variance * math.sqrt(2 / DIMENSIONS))


def levels_of(level: float) -> list[float]:
    return [level] * 7 + [0.0]


@pytest.mark.parametrize(("kernel", "level"), SAMPLERS)
def test_a_chains_leaf_has_the_closed_forms_mean_and_variance(kernel, level):
    plan = window(
        context(sigmas=SIGMAS, slots=1, group_size=1), start=0, size=len(SIGMAS) - 2, noise_level=level, kernel=kernel
    )
    assert_moments(sampled(plan)[0], *moments(kernel, levels_of(level)))


@pytest.mark.parametrize(("kernel", "level"), SAMPLERS[:4])
@pytest.mark.parametrize("s", [0.5, 4.0])
def test_every_branched_leaf_has_the_marginal_of_a_plain_chain(kernel, level, s):
    plan = branching(
        SIGMAS,
        slots=1,
        fanout=[2, 1, 1, 2, 1, 1, 1, 1],
        noise_level=levels_of(level),
        kernel=kernel,
        coupling=1 / (1 + s**2),
    )
    for leaf in sampled(plan, seed=1):
        assert_moments(leaf, *moments(kernel, levels_of(level)))


def test_leaves_covary_by_what_their_paths_share():
    s, level, split = 1.5, 1.0, {0: 2, 3: 2}
    rho = 1 / (1 + s**2)
    fanout = [split.get(k, 1) for k in range(8)]
    plan = branching(SIGMAS, slots=1, fanout=fanout, noise_level=levels_of(level), kernel="dance_sde", coupling=rho)
    leaf = sampled(plan, seed=2)
    found = np.cov(leaf)
    for other, parting in ((1, 3), (2, 0), (3, 0)):
        covariance = 1.0  # of the shared root
        for step in range(8):
            k, _, noise = affine("dance_sde", level if step < 7 else 0.0, step)
            shared = 1.0 if step < parting else rho if step == parting else 0.0
            covariance = k**2 * covariance + shared * noise**2
        variance = moments("dance_sde", levels_of(level))[1]
        standard_error = math.sqrt((variance**2 + covariance**2) / DIMENSIONS)
        assert found[0, other] == pytest.approx(covariance, abs=4.5 * standard_error)


def test_a_window_of_noise_in_a_deterministic_path_has_the_closed_forms_moments():
    plan = window(context(sigmas=SIGMAS, slots=1, group_size=2), start=2, size=3, noise_level=0.7, kernel="flow_sde")
    levels = [0.7 if 2 <= k < 5 else 0.0 for k in range(8)]
    for leaf in sampled(plan, seed=3):
        assert_moments(leaf, *moments("flow_sde", levels))


def test_the_multistep_solver_maps_noise_to_images_by_the_closed_forms_line_and_better_than_euler():
    """Every latent is k z + l with z the root's noise; so is every clean prediction, and the solver mixes two."""
    plan = star(context(sigmas=SIGMAS, slots=1, group_size=1, solver="dpm2m"))
    start = Noise(seed=0, iteration=0).roots(plan.tree, plan.coupling, (DIMENSIONS, 1))[0, :, 0]
    at, before = np.array([1.0, 0.0]), None  # (k, l)
    lam = [-math.inf, *(math.log((1 - s) / s) for s in SIGMAS[1:-1].tolist()), math.inf]
    for step in range(8):
        sigma, after = SIGMAS[step], SIGMAS[step + 1]
        a, b = line(float(sigma))
        clean = at - sigma * (a * at + np.array([0.0, b]))
        mixed = clean
        if before is not None and 2 <= step < 7:
            r = (lam[step] - lam[step - 1]) / (lam[step + 1] - lam[step])
            mixed = clean + (clean - before) / (2 * r)
        at = clean if step == 7 else after / sigma * at - (1 - after) * math.expm1(lam[step] - lam[step + 1]) * mixed
        before = clean
    np.testing.assert_allclose(sampled(plan)[0], at[0] * start + at[1], atol=1e-5)
    euler = 1.0
    for step in range(8):
        euler *= affine("cps", 0.0, step)[0]
    assert abs(at[0] - STD) < abs(euler - STD)  # the exact flow maps N(0, 1) to m + c z


def test_the_exact_velocity_is_the_regression_of_noise_minus_image():
    for sigma in (0.1, 0.5, 0.95):
        np.testing.assert_allclose(np.ravel(DATA.line(sigma)), line(sigma))
