"""The gradient of the loss, one edge after the other: a forward and a backward each, nothing shared."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from oracle.walk import transition
from torch import Tensor

from bench.policy import Policy
from bench.update import Iteration


def edge_gradient(policy: Policy, it: Iteration, slots: Collection[int] | None = None) -> Tensor:
    """Return -sum w A grad log p over the trained edges (of some slots): the policy gradient where the ratio is 1."""
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters))
    tree = it.plan.tree
    for node, weight in zip(it.selection.item_node.tolist(), it.selection.weight.tolist(), strict=True):
        if slots is not None and int(tree.slot[node]) not in slots:
            continue
        value = log_prob(policy, it, node)
        parts = torch.autograd.grad(value, parameters, allow_unused=True)
        flat = [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, parts, strict=True)]
        total -= weight * float(it.advantage[node]) * torch.cat(flat)
    return total


def log_prob(policy: Policy, it: Iteration, node: int) -> Tensor:
    """Return the log-prob of one edge under the live policy, from the textbook's density."""
    plan, parent = it.plan, int(it.plan.tree.parent[node])
    step = int(plan.tree.depth[parent])
    sigma, after = float(plan.sigmas[step]), float(plan.sigmas[step + 1])
    x, y = (it.rollout.at(np.array([n]))[0] for n in (parent, node))
    slot = it.condition.rows(torch.tensor([int(plan.tree.slot[node])]))
    v = policy.velocity(x[None], torch.tensor([sigma]), slot)[0]
    mean, s = transition(plan, sigma, after, x, v, float(plan.noise_level[node]))
    density = -((y - mean) ** 2) / (2 * s**2) - math.log(s) - 0.5 * math.log(2 * math.pi)
    return density.mean()
