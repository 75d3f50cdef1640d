from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import PROMPTS, ToyPolicy, context

from bench import kernel
from bench.cost import nfe
from bench.noise import Noise
from bench.plan import branching, window
from bench.policy import encoded
from bench.rollout import rollout
from bench.schedule import shifted_sigmas
from bench.select import trajectory

SIGMAS = shifted_sigmas(6, 3.0)
NOISE = Noise(seed=3, iteration=1)
POLICY = ToyPolicy()
CONDITION = encoded(POLICY, PROMPTS[:2])
TREE = branching(
    SIGMAS, slots=2, fanout=[2, 1, 2, 1, 1, 1], noise_level=[0.5] * 5 + [0.0], kernel="dance_sde", coupling=0.2
)


def test_the_size_of_a_micro_batch_changes_no_number():
    whole = rollout(POLICY, TREE, CONDITION, NOISE, keep=range(6), chunk=1000)
    for chunk in (1, 3):
        parts = rollout(POLICY, TREE, CONDITION, NOISE, keep=range(6), chunk=chunk)
        torch.testing.assert_close(parts.latent, whole.latent, rtol=0, atol=1e-6)
        torch.testing.assert_close(parts.x0, whole.x0, rtol=0, atol=1e-6)
        np.testing.assert_allclose(parts.log_prob, whole.log_prob, rtol=0, atol=5e-6)


def test_no_call_has_more_rows_than_the_micro_batch():
    policy = ToyPolicy()
    rollout(policy, TREE, CONDITION, NOISE, chunk=3)
    assert max(policy.calls) <= 3
    assert sum(policy.calls) == nfe(TREE, trajectory(TREE, TREE.noise_level > 0)).rollout_calls * 8


def test_the_deterministic_prefix_of_a_group_is_evaluated_once():
    policy = ToyPolicy()
    plan = window(context(sigmas=SIGMAS, slots=2, group_size=4), start=3, size=2, noise_level=0.7, kernel="flow_sde")
    found = rollout(policy, plan, CONDITION, NOISE, chunk=1000)
    assert policy.calls == [2, 2, 2, 2, 8, 8]
    assert found.calls == 24


def test_a_prompts_rollout_does_not_depend_on_the_other_prompts():
    alone = branching(
        SIGMAS, slots=1, fanout=[2, 1, 2, 1, 1, 1], noise_level=[0.5] * 5 + [0.0], kernel="dance_sde", coupling=0.2
    )
    together = rollout(POLICY, TREE, CONDITION, NOISE, chunk=1000)
    one = rollout(POLICY, alone, CONDITION.rows(torch.tensor([0])), NOISE, chunk=1000)
    torch.testing.assert_close(one.x0, together.x0[:4], rtol=0, atol=1e-6)


def test_the_leaf_is_the_clean_prediction_of_the_last_step():
    found = rollout(POLICY, TREE, CONDITION, NOISE, keep=[5], chunk=1000)
    last = np.arange(len(TREE.tree))[TREE.tree.level(5)]
    x, sigma = found.at(last), float(SIGMAS[5])
    slot = torch.from_numpy(TREE.tree.slot[last])
    v = POLICY.velocity(x, torch.full((len(x),), sigma), CONDITION.rows(slot))
    torch.testing.assert_close(found.x0, x - sigma * v)


def test_the_log_prob_is_that_of_the_latent_as_stored():
    found = rollout(POLICY, TREE, CONDITION, NOISE, keep=range(6), chunk=1000)
    node = np.arange(len(TREE.tree))[TREE.tree.level(3)]
    parent = TREE.tree.parent[node]
    x, sigma = found.at(parent), torch.full((len(node),), float(SIGMAS[2]))
    v = POLICY.velocity(x, sigma, CONDITION.rows(torch.from_numpy(TREE.tree.slot[node])))
    gauss = kernel.dance_sde(v, x, float(SIGMAS[2]), float(SIGMAS[3]), 0.5)
    np.testing.assert_allclose(found.log_prob[node], gauss.log_prob(found.at(node)).detach().numpy(), atol=1e-6)


def test_ode_edges_and_roots_have_no_log_prob():
    found = rollout(POLICY, TREE, CONDITION, NOISE, chunk=1000)
    assert np.isnan(found.log_prob).tolist() == (TREE.noise_level == 0).tolist()


def test_both_ends_of_a_kept_step_are_kept_and_nothing_else():
    found = rollout(POLICY, TREE, CONDITION, NOISE, keep=[2], chunk=1000)
    assert sorted(set(TREE.tree.depth[found.row >= 0].tolist())) == [2, 3]
    assert len(found.latent) == (found.row >= 0).sum()
    with pytest.raises(KeyError, match="was not kept"):
        found.at(np.array([0]))


def test_nothing_is_kept_where_nothing_is_trained():
    assert len(rollout(POLICY, TREE, CONDITION, NOISE, chunk=1000).latent) == 0


def test_one_rollout_after_another_gives_the_same():
    first, second = (rollout(POLICY, TREE, CONDITION, NOISE, keep=range(6), chunk=4) for _ in range(2))
    assert torch.equal(first.x0, second.x0)
    np.testing.assert_array_equal(first.log_prob, second.log_prob)


def test_a_rollout_has_no_gradient():
    found = rollout(POLICY, TREE, CONDITION, NOISE, keep=range(6), chunk=1000)
    assert not found.x0.requires_grad
    assert not found.latent.requires_grad
