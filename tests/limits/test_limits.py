"""An algorithm that becomes another one at the edge of its settings is, there, the other one: everything equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy import PROMPTS, RecordingSGD, ToyPolicy, context, iteration_of, rewards_of, trainer

from algorithms.awm import Awm
from algorithms.branch import Branch
from algorithms.branch_official import BranchOfficial
from algorithms.dance import Dance
from algorithms.flow import Flow
from algorithms.flow_fast import FlowFast
from algorithms.guard import Guard
from algorithms.mix import ARMS as MIX_ARMS
from algorithms.mix import Mix
from algorithms.nft import Nft
from algorithms.tempflow import TempFlow
from bench.contract import Algorithm, Context
from bench.policy import encoded
from bench.tree import fuse, log_share, path_sum
from bench.update import Iteration, update

CTX = context(steps=6, slots=3, group_size=5)
SAME: dict[str, Any] = {"kernel": "flow_sde", "eta": 0.7, "clip": 1e-3}


def made(algorithm: Algorithm, ctx: Context) -> tuple[Iteration, list[torch.Tensor]]:
    policy = ToyPolicy()
    it = iteration_of(policy, algorithm, ctx, encoded(policy, PROMPTS[: ctx.slots]))
    t = trainer(policy, needs=algorithm.needs)
    update(t, algorithm, it, updates=ctx.slots, chunk=7, anchor="rollout", clip=1e-3)
    assert isinstance(t.optimizer, RecordingSGD)
    return it, t.optimizer.seen


def trained_once(algorithm: Algorithm, ctx: Context) -> tuple[Iteration, torch.Tensor]:
    policy = ToyPolicy()
    it = iteration_of(policy, algorithm, ctx, encoded(policy, PROMPTS[: ctx.slots]))
    t = trainer(policy)
    update(t, algorithm, it, updates=1, chunk=7, anchor="rollout", clip=1e-3)
    assert isinstance(t.optimizer, RecordingSGD)
    return it, t.optimizer.seen[0]


def assert_the_same(one: Algorithm, other: Algorithm, ctx: Context = CTX) -> None:
    (a, gradients), (b, others) = made(one, ctx), made(other, ctx)
    for name in ("parent", "depth", "slot", "offset"):
        np.testing.assert_array_equal(getattr(a.plan.tree, name), getattr(b.plan.tree, name))
    np.testing.assert_allclose(a.plan.sigmas, b.plan.sigmas, rtol=0, atol=1e-12)
    for name in ("noise_level", "coupling", "noise_scale"):
        np.testing.assert_array_equal(getattr(a.plan, name), getattr(b.plan, name))
    assert (a.plan.kernel, a.plan.solver, a.plan.policy) == (b.plan.kernel, b.plan.solver, b.plan.policy)
    assert torch.equal(a.rollout.x0, b.rollout.x0)
    assert torch.equal(a.rollout.latent, b.rollout.latent)
    np.testing.assert_array_equal(a.rollout.log_prob, b.rollout.log_prob)
    edges = a.plan.tree.depth > 0  # a root has no incoming edge, and no advantage
    np.testing.assert_allclose(a.advantage[edges], b.advantage[edges], rtol=0, atol=1e-12)
    for name in ("read", "sigma", "draw", "unit", "item_query", "item_node", "weight"):
        np.testing.assert_array_equal(getattr(a.selection, name), getattr(b.selection, name))
    for gradient, expected in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert len(gradients) == ctx.slots
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("credit_by", ["depth", "leaf"])
def test_branch_with_one_split_at_step_0_of_independent_siblings_is_dance(credit_by):
    """Identity (vii)."""
    branch = Branch(splits=(0,), factor=5, s=float("inf"), credit_by=credit_by, **SAME)
    assert_the_same(branch, Dance(tf=1.0, **SAME))


@pytest.mark.parametrize("strategy", ["progressive", "random", "linear-decay", "exponential-decay", "frozen"])
def test_mix_with_a_window_over_all_stochastic_steps_is_dance(strategy):
    """Identity (viii), with one root: Flow-GRPO with its roots shared is this arm too."""
    assert_the_same(Mix(window=5, strategy=strategy, **SAME), Dance(tf=1.0, **SAME), context(slots=3, iteration=40))


def test_branch_mix_with_a_window_over_all_stochastic_steps_is_branch():
    ctx = context(slots=2, group_size=4)
    splits: dict[str, Any] = {"splits": (0, 2), **SAME}
    assert_the_same(Branch(mix=True, window=5, **splits), Branch(**splits), ctx)


def test_branch_with_one_split_in_the_middle_of_a_mix_window_is_mix_after_it():
    """Splitting where the window starts, stochastic nowhere else: Mix's window of one step."""
    ctx = context(slots=2, group_size=4, train_steps=(0,))
    branch = Branch(splits=(0,), factor=4, s=float("inf"), mix=True, window=1, **SAME)
    assert_the_same(branch, Mix(window=1, strategy="frozen", start=0, **SAME), ctx)


@pytest.mark.parametrize("fusion", ["path", "uniform"])
def test_branchs_official_code_with_one_split_scored_as_sampled_and_one_update_is_branch_at_another_scale(fusion):
    ctx = context(slots=2, group_size=4)
    official = BranchOfficial(splits=(0,), factor=4, noise=1.0, edges=10_000, **SAME)
    plain = Branch(splits=(0,), factor=4, s=float("inf"), fusion=fusion, **SAME)
    assert official.updates(ctx) == 1
    (a, mine), (b, theirs) = trained_once(official, ctx), trained_once(plain, ctx)
    assert torch.equal(a.rollout.x0, b.rollout.x0)
    np.testing.assert_array_equal(a.selection.item_node, b.selection.item_node)
    np.testing.assert_allclose(a.advantage[1:], b.advantage[1:], rtol=0, atol=1e-12)
    scale = a.selection.weight[0] / b.selection.weight[0]
    assert scale == pytest.approx(
        2 / (10_000 * 48) * 2 * 20
    )  # 48 edges with the last step's, and 20 trained ones a tree
    torch.testing.assert_close(mine / scale, theirs, rtol=1e-4, atol=1e-6)


def test_branchs_official_code_weighs_leaves_as_eq_3_does_from_the_last_split_on_and_not_above_it():
    ctx = context(slots=2, group_size=4)
    a, _ = trained_once(BranchOfficial(splits=(0, 2), noise=1.0, **SAME), ctx)
    b, _ = trained_once(Branch(splits=(0, 2), s=float("inf"), **SAME), ctx)
    assert torch.equal(a.rollout.x0, b.rollout.x0)
    below = a.plan.tree.depth >= 3
    np.testing.assert_allclose(a.advantage[below], b.advantage[below], rtol=0, atol=1e-6)
    reward, leaf = rewards_of(a.plan), a.plan.tree.leaves()
    by_edge = fuse(a.plan.tree, leaf, reward, path_sum(a.plan.tree, log_share(a.plan.tree, a.rollout.log_prob))[leaf])
    by_path = fuse(a.plan.tree, leaf, reward, path_sum(a.plan.tree, a.rollout.log_prob)[leaf])
    assert np.abs(by_edge - by_path)[a.plan.tree.depth == 1].min() > 1e-6


def test_path_weights_at_beta_0_are_uniform():
    ctx = context(slots=2, group_size=4)
    splits: dict[str, Any] = {"splits": (0, 2), **SAME}
    assert_the_same(Branch(fusion="path", beta=0.0, **splits), Branch(fusion="uniform", **splits), ctx)


def test_path_weights_at_beta_1_are_not_uniform():
    ctx = context(slots=2, group_size=4)
    splits: dict[str, Any] = {"splits": (0, 2), **SAME}
    path, _ = made(Branch(fusion="path", **splits), ctx)
    uniform, _ = made(Branch(fusion="uniform", **splits), ctx)
    assert np.abs(path.advantage - uniform.advantage).max() > 1e-6


LIKE_DANCE: dict[str, Any] = {**SAME, "std": "group", "ddof": 1, "eps": 1e-8}
"""Dance's scope, ddof and eps."""


def test_mix_with_a_window_over_all_stochastic_steps_is_flow_with_one_root():
    """Identity (viii)."""
    assert_the_same(Mix(window=5, **SAME), Flow(roots="shared", kl=0.0, **LIKE_DANCE), context(slots=3, iteration=40))


def test_flow_fast_that_splits_at_step_0_and_is_stochastic_everywhere_is_dance():
    """Identity (viii)."""
    assert_the_same(FlowFast(version="split", start=0, window=5, **LIKE_DANCE), Dance(tf=1.0, **SAME))


def test_flow_fast_without_a_shared_prefix_and_a_window_over_all_steps_is_flow():
    assert_the_same(FlowFast(version="window", start=0, window=5, **SAME), Flow(kl=0.0, **SAME))


def test_a_kl_of_any_weight_has_no_gradient_while_the_policy_is_its_reference():
    ctx = context(slots=1, group_size=5)  # one update: the reference is still the live policy
    assert_the_same(Flow(kl=10.0, **SAME), Flow(kl=0.0, **SAME), ctx)


HOSTS = [Dance(**SAME), Mix(**SAME), Branch(splits=(0,), factor=5, **SAME), TempFlow(points=1, **SAME)]


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: type(host).__name__)
def test_guard_with_ratio_normalisation_and_reweighting_off_is_its_host(host):
    """Identity (viii)."""
    assert_the_same(Guard(host=host, ratio_norm=False, reweight=False, clip=SAME["clip"]), host)


def test_guard_is_not_its_host():
    ctx = context(slots=1, group_size=5)
    _, (guarded,) = made(Guard(host=Dance(**SAME), ratio_norm=False), ctx)
    _, (plain,) = made(Dance(**SAME), ctx)
    assert not torch.allclose(guarded, plain, rtol=0.5)


def test_mix_flash_of_first_order_that_leaves_out_no_step_is_mix():
    flash = replace(MIX_ARMS["mix-flash"], tail="euler", tail_ratio=1.0, tau=25, **SAME)
    for iteration in (0, 30):
        assert_the_same(flash, Mix(**SAME), context(steps=8, slots=2, iteration=iteration))


def test_tempflow_at_one_step_is_mix_with_a_window_of_one():
    ctx = context(slots=3, group_size=5, train_steps=(2,))
    assert_the_same(TempFlow(points=1, **SAME), Mix(window=1, strategy="frozen", start=2, **SAME), ctx)


def test_branch_with_one_split_at_one_step_is_tempflow_there():
    ctx = context(slots=3, group_size=5, train_steps=(0,))
    branch = Branch(splits=(0,), factor=5, s=float("inf"), mix=True, window=1, **SAME)
    assert_the_same(branch, TempFlow(points=1, **SAME), ctx)


def test_nft_with_rewards_of_one_half_has_no_policy_gradient_at_the_old_policy():
    _, (gradient,) = at_advantage(Nft(kl=0.0), 0.0)
    _, (other,) = at_advantage(Nft(kl=0.0), 1.0)
    assert float(gradient.abs().max()) < 1e-6 * float(other.abs().max())


def test_awm_on_policy_is_reward_weighted_flow_matching():
    awm = Awm(weighting="uniform", kl=0.0, kl_ema=0.0)
    policy = ToyPolicy()
    it = iteration_of(policy, awm, CTX, encoded(policy, PROMPTS[:3]))
    t = trainer(policy, needs=awm.needs)
    update(t, awm, it, updates=1, chunk=7, anchor="rollout", clip=None)
    assert isinstance(t.optimizer, RecordingSGD)

    policy, s, loss = ToyPolicy(), it.selection, torch.zeros(())
    for query, (leaf, sigma, draw) in enumerate(zip(s.read.tolist(), s.sigma.tolist(), s.draw.tolist(), strict=True)):
        slot, row = int(it.plan.tree.slot[leaf]), int(it.plan.tree.first_leaf()[leaf])
        image = it.rollout.x0[row : row + 1]
        eps = torch.from_numpy(it.noise.forward(np.array([slot]), np.array([draw]), image.shape[1:]))
        noised = (1 - sigma) * image + sigma * eps
        v = policy.velocity(noised, torch.tensor([sigma]), it.condition.rows(torch.tensor([slot])))
        loss = loss + s.weight[query] * it.advantage[leaf] * (v - (eps - image)).square().mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    torch.testing.assert_close(t.optimizer.seen[0], expected, rtol=1e-4, atol=1e-6)


def at_advantage(algorithm: Algorithm, advantage: float) -> tuple[Iteration, list[torch.Tensor]]:
    """Return the gradient of a first update in which every image has the same advantage."""
    policy = ToyPolicy()
    it = iteration_of(policy, algorithm, CTX, encoded(policy, PROMPTS[:3]))
    it = replace(it, advantage=np.full(len(it.advantage), advantage))
    t = trainer(policy, needs=algorithm.needs)
    update(t, algorithm, it, updates=1, chunk=7, anchor="rollout", clip=None)
    assert isinstance(t.optimizer, RecordingSGD)
    return it, t.optimizer.seen
