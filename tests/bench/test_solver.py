from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from toy import normal

from bench.solver import dpm2m


def test_the_first_order_step_is_euler():
    v, x = normal(2, 5, key=1).double(), normal(2, 5, key=2).double()
    torch.testing.assert_close(dpm2m(v, x, 0.8, 0.5), x - 0.3 * v)
    torch.testing.assert_close(dpm2m(v, x, 1.0, 0.9), x - 0.1 * v)


def test_the_second_order_step_is_the_midpoint_rule_of_dpm_solver_plus_plus():
    v, x, before = (normal(2, 5, key=k).double() for k in (1, 2, 3))
    lam = {s: math.log((1 - s) / s) for s in (0.8, 0.6, 0.3)}
    h, h_before = lam[0.3] - lam[0.6], lam[0.6] - lam[0.8]
    m = x - 0.6 * v
    slope = (m - before) / (h_before / h)
    expected = (0.3 / 0.6) * x - (1 - 0.3) * math.expm1(-h) * (m + 0.5 * slope)
    torch.testing.assert_close(dpm2m(v, x, 0.6, 0.3, before, 0.8), expected)


def test_history_from_sigma_one_is_infinitely_far_and_adds_nothing():
    v, x, before = (normal(2, 5, key=k) for k in (1, 2, 3))
    torch.testing.assert_close(dpm2m(v, x, 0.9, 0.8, before, 1.0), dpm2m(v, x, 0.9, 0.8))


def test_the_last_step_returns_the_clean_prediction():
    v, x, before = (normal(2, 5, key=k) for k in (1, 2, 3))
    torch.testing.assert_close(dpm2m(v, x, 0.2, 0.0, before, 0.4), x - 0.2 * v)


@pytest.mark.parametrize("steps", [8, 16])
def test_with_history_the_error_on_a_curved_path_falls_at_least_as_the_square_of_the_step(steps):
    # x(sigma) of N(0, c^2) data under the probability-flow ODE is x(1) * sqrt(V(sigma) / V(1)).
    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        variance = (1 - sigma) ** 2 * 0.25 + sigma**2
        return (sigma - (1 - sigma) * 0.25) / variance * x

    def error(n: int) -> float:
        grid = [0.9 - 0.7 * i / n for i in range(n + 1)]
        x, before, at = torch.ones(1, 1, dtype=torch.float64), None, None
        for sigma, after in pairwise(grid):
            v = velocity(x, sigma)
            x, before, at = dpm2m(v, x, sigma, after, before, at), x - sigma * v, sigma
        exact = math.sqrt(((0.8 * 0.5) ** 2 + 0.2**2) / ((0.1 * 0.5) ** 2 + 0.9**2))
        return abs(float(x) - exact)

    assert error(steps) / error(2 * steps) > 3.5  # a first-order solver's halves
