"""The level-batched rollout equals walking every path alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle.walk import walk
from toy import PROMPTS, ToyPolicy, context

from bench.noise import Noise
from bench.plan import Plan, branching, star, trunk, window, with_tail
from bench.policy import encoded
from bench.rollout import rollout
from bench.schedule import shifted_sigmas
from bench.tree import Tree

SIGMAS = shifted_sigmas(6, 3.0)
NOISE = Noise(seed=3, iteration=1)


def tree(kernel: str, level: float, **more) -> Plan:
    return branching(
        SIGMAS,
        slots=2,
        fanout=[2, 1, 3, 1, 1, 1],
        noise_level=[level, 0.0, level, 0.0, level, 0.0],
        kernel=kernel,
        coupling=0.2,
        **more,
    )


def own_levels() -> Plan:
    """Siblings of several noise levels, one of them ODE, one sampled with four times the std that is scored."""
    return Plan(
        tree=Tree(
            parent=np.array([-1, -1, 0, 0, 0, 1, 2, 3, 4, 5]),
            depth=np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
            slot=np.array([0, 1, 0, 0, 0, 1, 0, 0, 0, 1]),
            offset=np.array([0, 2, 6, 10]),
        ),
        sigmas=shifted_sigmas(2, 1.0),
        kernel="flow_sde",
        solver=("euler", "euler"),
        noise_level=np.array([0, 0, 0, 0.7, 0.5, 0.7, 0, 0, 0, 0]),
        coupling=np.array([0, 0, 0.3, 0.3, 0.3, 0, 0, 0, 0, 0]),
        noise_scale=np.array([1.0, 1, 1, 4, 1, 1, 1, 1, 1, 1]),
    )


def flash(ratio: float) -> Plan:
    """A window of SDE steps, then multistep steps whose history begins in it."""
    ctx = with_tail(context(steps=8, slots=2, group_size=3), first=3, ratio=ratio, solver="dpm")
    return window(ctx, start=1, size=2, noise_level=0.7, kernel="flow_sde")


PLANS = {
    "dance": lambda: tree("dance_sde", 0.3),
    "flow": lambda: tree("flow_sde", 0.7),
    "cps": lambda: tree("cps", 0.8),
    "dpm2m": lambda: tree("dance_sde", 1.0, solver="dpm2m"),
    "dpm2m-window": lambda: window(
        context(slots=2, group_size=3, solver="dpm2m"), start=2, size=1, noise_level=0.7, kernel="flow_sde"
    ),
    "dpm2m-alone": lambda: star(context(slots=2, group_size=2, solver="dpm2m")),
    "independent": lambda: window(
        context(slots=3, group_size=2), start=1, size=3, noise_level=0.5, kernel="dance_sde", roots="independent"
    ),
    "trunk": lambda: trunk(context(slots=2), roots=2, at=[0, 2, 3], factor=2, noise_level=0.5, kernel="flow_sde"),
    "flash": lambda: flash(ratio=0.5),
    "own-levels": own_levels,
}


@pytest.mark.parametrize("name", PLANS)
def test_a_rollout_is_its_paths_walked_one_by_one(name):
    plan, policy = PLANS[name](), ToyPolicy()
    condition = encoded(policy, PROMPTS[:3])
    expected = walk(policy, plan, condition, NOISE)
    found = rollout(policy, plan, condition, NOISE, keep=range(plan.steps), chunk=5)
    every = np.flatnonzero(plan.tree.depth < plan.steps)
    latent = torch.from_numpy(np.stack([expected.latent[n] for n in every.tolist()])).float()
    torch.testing.assert_close(found.at(every), latent, rtol=1e-5, atol=1e-5)
    leaves = torch.from_numpy(np.stack([expected.latent[n] for n in plan.tree.leaves().tolist()])).float()
    torch.testing.assert_close(found.x0, leaves, rtol=1e-5, atol=1e-5)
    stochastic = sorted(expected.log_prob)
    assert np.flatnonzero(~np.isnan(found.log_prob)).tolist() == stochastic
    np.testing.assert_allclose(found.log_prob[stochastic], [expected.log_prob[n] for n in stochastic], atol=2e-5)
    assert found.calls == expected.calls
