from __future__ import annotations

import math

import torch

from bench.loss import clipped_surrogate


def test_the_surrogate_is_ppos_objective_negated():
    log_ratio = torch.tensor([0.0, 0.5, 0.5, -0.5, -0.5])
    advantage = torch.tensor([2.0, 1, -1, 1, -1])
    expected = [-2, -1.1, math.exp(0.5), -math.exp(-0.5), 0.9]
    torch.testing.assert_close(clipped_surrogate(log_ratio, advantage, 0.1), torch.tensor(expected))


def test_only_a_ratio_that_left_the_range_the_way_its_advantage_pushes_stops_the_gradient():
    log_ratio = torch.tensor([0.0, 0.5, 0.5, -0.5, -0.5], requires_grad=True)
    advantage = torch.tensor([2.0, 1, -1, 1, -1])
    clipped_surrogate(log_ratio, advantage, 0.1).sum().backward()
    expected = [-2, 0, math.exp(0.5), -math.exp(-0.5), 0]
    torch.testing.assert_close(log_ratio.grad, torch.tensor(expected))
