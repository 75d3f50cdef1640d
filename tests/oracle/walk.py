"""A rollout walked path by path: one node at a time, the textbook's formulas, no levels and no arrays of nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from oracle.recursive import TreeNode, grow
from toy import ToyPolicy

from bench.noise import Noise
from bench.plan import Plan
from bench.policy import Condition


@dataclass
class Walk:
    """Every node's latent, every stochastic edge's log-prob, and how often the policy was asked."""

    latent: dict[int, np.ndarray] = field(default_factory=dict)
    log_prob: dict[int, float] = field(default_factory=dict)
    calls: int = 0


def walk(policy: ToyPolicy, plan: Plan, condition: Condition, noise: Noise) -> Walk:
    """Return the plan's rollout, visited depth first."""
    found = Walk()
    start = noise.roots(plan.tree, plan.coupling, policy.latent_shape).astype(np.float64)
    for root in grow(plan.tree):
        _visit(policy, plan, condition, noise, root, start[root.index], [], found)
    return found


def _visit(
    policy: ToyPolicy,
    plan: Plan,
    condition: Condition,
    noise: Noise,
    node: TreeNode,
    x: np.ndarray,
    history: list[tuple[float, np.ndarray]],
    found: Walk,
) -> None:
    """Record a node at x, then visit its children; `history` holds (sigma, clean prediction) of the steps above."""
    found.latent[node.index] = x
    if not node.children:
        return
    sigma, after = float(plan.sigmas[node.depth]), float(plan.sigmas[node.depth + 1])
    slot = condition.rows(torch.tensor([node.slot]))
    with torch.no_grad():
        v = policy.velocity(torch.from_numpy(x).float()[None], torch.tensor([sigma]), slot)[0].double().numpy()
    found.calls += 1
    x0 = x - sigma * v
    for child in node.children:
        level = float(plan.noise_level[child.index])
        if level == 0:
            y = _ode(plan, node.depth, x, v, x0, history)
        else:
            eps = noise.edges(plan.tree, np.array([child.index]), plan.coupling, x.shape)[0].astype(np.float64)
            mean, s = transition(plan, sigma, after, x, v, level)
            y = mean + s * float(plan.noise_scale[child.index]) * eps
            density = -((y - mean) ** 2) / (2 * s**2) - math.log(s) - 0.5 * math.log(2 * math.pi)
            found.log_prob[child.index] = float(density.mean())
        _visit(policy, plan, condition, noise, child, y, [*history, (sigma, x0)], found)


def transition(plan: Plan, sigma: float, after: float, x: Any, v: Any, level: float) -> tuple[Any, float]:
    """Return mean and std of a stochastic step, from its paper."""
    x0, x1 = x - sigma * v, x + (1 - sigma) * v
    if plan.kernel == "cps":
        angle = level * math.pi / 2
        return (1 - after) * x0 + after * math.cos(angle) * x1, after * math.sin(angle)
    g = level
    if plan.kernel == "flow_sde":
        g = level * math.sqrt(sigma / (1 - (float(plan.sigmas[1]) if sigma == 1 else sigma)))
    return x + (v + g**2 / (2 * sigma) * x1) * (after - sigma), g * math.sqrt(sigma - after)


def _ode(plan, step, x, v, x0, history):
    sigma, after = float(plan.sigmas[step]), float(plan.sigmas[step + 1])
    if plan.solver[step] == "euler" or after == 0:
        return x + (after - sigma) * v
    slope = 0.0
    if history and history[-1][0] < 1:
        before, x0_before = history[-1]
        h, h_before = _lam(after) - _lam(sigma), _lam(sigma) - _lam(before)
        slope = (x0 - x0_before) * (h / h_before)
    decay = after * (1 - sigma) / (sigma * (1 - after))  # e^-h, also where sigma is 1
    return after / sigma * x - (1 - after) * (decay - 1) * (x0 + 0.5 * slope)


def _lam(sigma: float) -> float:
    return math.log((1 - sigma) / sigma)
