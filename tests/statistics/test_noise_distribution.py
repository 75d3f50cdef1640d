"""Keyed noise is distributed as the mathematics says, whatever the key. Seeds are fixed: nothing here is flaky."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.noise import STREAMS, Noise, keyed
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
@pytest.mark.parametrize("K", [2, 3, 4])
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


@pytest.mark.parametrize("stream", STREAMS)
def test_the_first_numbers_of_a_streams_keys_are_standard_normals(stream):
    drawn = [keyed(0, stream, slot, depth).standard_normal() for slot in range(200) for depth in range(10)]
    assert stats.kstest(drawn, "norm").pvalue > 1e-3


def test_no_two_streams_correlate_under_equal_keys():
    drawn = np.array([[keyed(0, stream, key).standard_normal() for key in range(1500)] for stream in STREAMS])
    found = np.corrcoef(drawn) - np.eye(len(STREAMS))
    assert np.abs(found).max() < 4.5 / np.sqrt(1500)


@pytest.mark.parametrize("rho", [0.0, 1 / 17, 0.5])
def test_every_edge_of_a_branching_tree_is_a_standard_normal_and_only_siblings_correlate(rho):
    levels = [0.3] * 3 + [0.0]
    plan = branching(SIGMAS, slots=2, fanout=[2, 2, 1, 1], noise_level=levels, kernel="dance_sde", coupling=rho)
    node = np.flatnonzero(plan.noise_level > 0)
    xi = NOISE.edges(plan.tree, node, plan.coupling, (DIMENSIONS,)).astype(float)
    assert min(stats.kstest(row, "norm").pvalue for row in xi) > 1e-4  # 20 tests
    parent, split = plan.tree.parent[node], plan.coupling[node] > 0
    siblings = (parent[:, None] == parent) & split[:, None] & ~np.eye(len(node), dtype=bool)
    expected = np.where(siblings, rho, 0.0) + np.eye(len(node))
    assert np.abs(xi @ xi.T / DIMENSIONS - expected).max() < 5 * np.sqrt(2 / DIMENSIONS)


def test_roots_of_a_slot_have_the_covariance_of_their_coupling():
    """Neighbor GRPO's roots: correlated within a slot, independent across slots."""
    tree, rho = forest([1], slots=2, roots=3), 0.91
    xi = NOISE.roots(tree, np.full(len(tree), rho), (DIMENSIONS,)).astype(float)
    same = np.kron(np.eye(2), np.ones((3, 3)))
    expected = rho * same + (1 - rho) * np.eye(6)
    assert np.abs(xi @ xi.T / DIMENSIONS - expected).max() < 5 * np.sqrt(2 / DIMENSIONS)
