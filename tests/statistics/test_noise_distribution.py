"""Keyed noise is distributed as the mathematics says, whatever the key. Seeds are fixed: nothing here is flaky."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.noise import Noise
from bench.plan import branching
from bench.schedule import shifted_sigmas
from bench.tree import forest

SIGMAS = shifted_sigmas(4, 3.0)
DIMENSIONS = 20_000
NOISE = Noise(seed=11, iteration=2)


def siblings(K: int, rho: float) -> np.ndarray:
    """Return the noise of K siblings, one row each."""
    plan = branching(
        SIGMAS, slots=1, fanout=[1, K, 1, 1], noise_level=[0.3] * 3 + [0.0], kernel="dance_sde", coupling=rho
    )
    return NOISE.edges(plan.tree, np.arange(len(plan.tree))[plan.tree.level(2)], plan.coupling, (DIMENSIONS,))


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("K", [2, 4])
def test_siblings_have_the_covariance_of_equation_two(K, s):
    """Identity (vi): (1 - rho) I + rho 11^T with rho = 1/(1 + s^2)."""
    rho = 1 / (1 + s**2)
    xi = siblings(K, rho).astype(float)
    found = xi @ xi.T / DIMENSIONS
    expected = (1 - rho) * np.eye(K) + rho * np.ones((K, K))
    standard_error = np.sqrt((1 + rho**2 + np.eye(K)) / DIMENSIONS)
    assert (np.abs(found - expected) < 4.5 * standard_error).all()


@pytest.mark.parametrize("s", [0.5, 4.0])
def test_every_sibling_alone_is_a_standard_normal(s):
    for row in siblings(3, 1 / (1 + s**2)):
        assert stats.kstest(row, "norm").pvalue > 1e-3


@pytest.mark.parametrize("stream", ["root", "eval", "eval-reference"])
def test_the_first_numbers_of_many_keys_are_standard_normals(stream):
    tree = forest([1], slots=500, roots=4)
    drawn = Noise(seed=3, iteration=0, root_stream=stream).roots(tree, np.zeros(len(tree)), (2,))
    assert stats.kstest(drawn[:, 0], "norm").pvalue > 1e-3
    assert stats.kstest(drawn[:, 1], "norm").pvalue > 1e-3


def test_the_first_numbers_of_neighbouring_edges_slots_and_iterations_are_independent():
    plan = branching(
        SIGMAS, slots=200, fanout=[2, 2, 1, 1], noise_level=[0.3] * 3 + [0.0], kernel="dance_sde", coupling=0.0
    )
    node = np.flatnonzero(plan.noise_level > 0)
    drawn = np.stack([Noise(seed=0, iteration=i).edges(plan.tree, node, plan.coupling, (1,))[:, 0] for i in range(3)])
    table = drawn.reshape(3, 10, 200)  # iterations, and edges in their order: neighbours are siblings, then slots
    limit = 4.5 / np.sqrt(table[0].size)
    for one, other in [(table[0], table[1]), (table[:, 1:], table[:, :-1]), (table[..., 1:], table[..., :-1])]:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < limit
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3


def test_forward_draws_are_standard_normals():
    drawn = NOISE.forward(np.repeat(np.arange(100), 20), np.tile(np.arange(20), 100), (3,))
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
