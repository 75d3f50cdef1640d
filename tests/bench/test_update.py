from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle.edges import edge_gradient, log_prob
from toy import PROMPTS, RecordingSGD, ToyPolicy, context, iteration_of, rewards_of, trainer

from algorithms.branch import Branch
from algorithms.dance import Dance
from bench.noise import Noise
from bench.policy import encoded
from bench.select import Selection
from bench.update import Iteration, Trainer, Updated, build_batch, micro_batches, shards, update

TREE = Branch(splits=(0, 2), eta=0.5, clip=1e-3)
CTX = context(slots=4)


def made(policy: ToyPolicy, algorithm: Branch | Dance = TREE, reward: np.ndarray | None = None) -> Iteration:
    return iteration_of(policy, algorithm, CTX, encoded(policy, PROMPTS[: CTX.slots]), reward)


def run(
    t: Trainer, it: Iteration, algorithm: Branch | Dance = TREE, *, updates=1, chunk=1000, anchor="rollout"
) -> Updated:
    return update(t, algorithm, it, updates=updates, chunk=chunk, anchor=anchor, clip=algorithm.clip)


def seen(t: Trainer) -> list[torch.Tensor]:
    return cast(RecordingSGD, t.optimizer).seen


def weights(policy: ToyPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters() if p.requires_grad])


def drifted(it: Iteration, by: float) -> Iteration:
    """Return the iteration as if the rollout's log-probs had been rounded by that much."""
    return replace(it, rollout=replace(it.rollout, log_prob=it.rollout.log_prob + by))


@pytest.mark.parametrize("kernel_name", ["dance_sde", "flow_sde", "cps"])
@pytest.mark.parametrize("algorithm", [TREE, Dance(tf=0.6, eta=0.5)])
def test_the_first_update_is_the_policy_gradient_and_sharing_parents_does_not_change_it(algorithm, kernel_name):
    """Identity (ix): one pass for all children of a parent gives the sum of the gradients of single edges."""
    policy, algorithm = ToyPolicy(), replace(algorithm, kernel=kernel_name)
    it = made(policy, algorithm)
    assert len(it.selection.read) < len(it.selection.item_node)
    expected, t = edge_gradient(policy, it), trainer(policy)
    run(t, it, algorithm)
    torch.testing.assert_close(seen(t)[0], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_size_of_a_micro_batch_does_not_change_the_gradient():
    gradients = []
    for chunk in (1, 3, 1000):
        policy = ToyPolicy()
        t = trainer(policy)
        run(t, made(policy), chunk=chunk)
        gradients.append(seen(t)[0])
    scale = float(gradients[0].abs().max())
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("updates", [1, 2, 4])
def test_the_slots_are_cut_into_equal_shards_in_keyed_random_order(updates):
    parts = shards(Noise(seed=1, iteration=2), 8, updates)
    assert [len(p) for p in parts] == [8 // updates] * updates
    assert sorted(np.concatenate(parts)) == list(range(8))
    again, other = shards(Noise(seed=1, iteration=2), 8, updates), shards(Noise(seed=1, iteration=3), 8, updates)
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(parts))
    assert not np.array_equal(np.concatenate(other), np.concatenate(parts))


def test_every_shard_takes_one_step_by_the_gradient_of_its_own_slots():
    policy = ToyPolicy()
    it, t = made(policy), trainer(policy, lr=0.0)  # weights that stay make every shard's gradient comparable
    updated = run(t, it, updates=2)
    assert len(seen(t)) == t.optimizer_steps == 2
    for gradient, slots in zip(seen(t), shards(it.noise, 4, 2), strict=True):
        expected = 2 * edge_gradient(policy, it, set(slots.tolist()))  # a shard holds half the trees
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(sum(seen(t)) / 2, edge_gradient(policy, it), rtol=1e-4, atol=1e-6)
    assert updated.calls == len(it.selection.read)


def test_on_policy_the_loss_is_minus_the_weighted_advantages():
    policy = ToyPolicy()
    it = made(policy, Dance(eta=0.5))
    it = replace(it, advantage=it.advantage + 0.3)  # a group's own sum to 0, which has no sign
    updated = run(trainer(policy), it, Dance(eta=0.5))
    expected = -(it.selection.weight * it.advantage[it.selection.item_node]).sum()
    assert abs(expected) > 0.1
    assert updated.loss == pytest.approx(expected, abs=1e-6)
    assert updated.clip_fraction == 0


def test_in_float32_rollout_and_training_agree():
    policy = ToyPolicy()
    updated = run(trainer(policy), made(policy), chunk=3)
    assert 0 <= (updated.drift or 0) < 1e-5


def test_the_first_shards_ratio_is_one_whatever_the_rollout_says_and_the_drift_is_measured():
    clean, rounded = ToyPolicy(), ToyPolicy()
    t, u = trainer(clean), trainer(rounded)
    run(t, made(clean))
    updated = run(u, drifted(made(rounded), 0.25))
    assert updated.drift == pytest.approx(0.25, abs=1e-5)
    assert updated.log_ratio_max == 0
    assert torch.equal(seen(t)[0], seen(u)[0])


def test_later_shards_take_their_ratio_from_the_rollout():
    policy = ToyPolicy()
    it = made(policy)
    t = trainer(policy, lr=0.05)
    updated = run(t, it, updates=2)
    late = set(shards(it.noise, 4, 2)[1].tolist())
    moved = ToyPolicy()
    with torch.no_grad():  # the weights after the first step alone
        start = weights(moved) - 0.05 * seen(t)[0]
        torch.nn.utils.vector_to_parameters(start, [p for p in moved.model.parameters() if p.requires_grad])
    items = [n for n in it.selection.item_node.tolist() if int(it.plan.tree.slot[n]) in late]
    ratios = [log_prob(moved, it, n).item() - it.rollout.log_prob[n] for n in items]
    assert updated.log_ratio_max == pytest.approx(np.abs(ratios).max(), abs=1e-5)
    outside = sum(abs(np.expm1(r)) > TREE.clip for r in ratios)
    assert outside > 0
    assert updated.clip_fraction == pytest.approx(outside / len(it.selection.item_node))


def test_a_clipped_edge_has_no_gradient():
    policy = ToyPolicy()
    it, t = made(policy), trainer(policy, lr=0.0)
    run(t, drifted(it, -0.5), updates=2)  # later shards: every ratio is e^.5
    falling = it.advantage < 0
    kept = falling[it.selection.item_node]
    only = replace(it, selection=replace(it.selection, weight=np.where(kept, it.selection.weight, 0.0)))
    expected = 2 * np.exp(0.5) * edge_gradient(policy, only, set(shards(it.noise, 4, 2)[1].tolist()))
    torch.testing.assert_close(seen(t)[1], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_anchor_recompute_takes_one_counted_pass_and_removes_the_drift():
    policy = ToyPolicy()
    it = drifted(made(policy), 0.25)
    plain = run(trainer(policy, lr=0.0), it, updates=2)
    anchored = run(trainer(policy, lr=0.0), it, updates=2, anchor="recompute", chunk=3)
    late = np.isin(it.plan.tree.slot[it.selection.read], shards(it.noise, 4, 2)[1])
    assert plain.log_ratio_max == pytest.approx(0.25, abs=1e-5)
    assert plain.anchor_calls == 0
    assert 0 <= (anchored.log_ratio_max or 0) < 1e-5
    assert anchored.anchor_calls == late.sum()
    assert run(trainer(policy, lr=0.0), it, anchor="recompute").anchor_calls == 0  # one shard needs no anchor


def test_failed_leaves_are_not_trained():
    policy = ToyPolicy()
    plan = TREE.plan(CTX)
    reward = rewards_of(plan)
    reward[[0, 1, 4, 5, 6, 7]] = np.nan  # half of the first slot's leaves, all of the second's
    it = made(policy, reward=reward)
    failed = np.isnan(reward)[plan.tree.first_leaf()[it.selection.item_node]]
    below_split = plan.tree.depth[it.selection.item_node] > 3
    assert not (failed & below_split).any()
    assert 1 not in plan.tree.slot[it.selection.item_node]
    expected, t = edge_gradient(policy, it), trainer(policy)
    run(t, it)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(seen(t)[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_shard_without_a_trained_edge_changes_no_weight_but_is_a_step():
    policy = ToyPolicy()
    plan = TREE.plan(CTX)
    gone = np.isin(plan.tree.slot[plan.tree.leaves()], shards(Noise(seed=5, iteration=0), 4, 2)[1])
    it, t = made(policy, reward=np.where(gone, np.nan, rewards_of(plan))), trainer(policy)
    run(t, it, updates=2)
    assert t.optimizer_steps == 2
    assert seen(t)[0].abs().max() > 0
    assert seen(t)[1].abs().max() == 0


def test_the_gradient_is_clipped_and_its_norm_reported_as_it_was():
    free, bound = ToyPolicy(), ToyPolicy()
    t, u = trainer(free), trainer(bound, max_grad_norm=1e-3)
    run(t, made(free))
    norm = float(seen(t)[0].norm())
    updated = run(u, made(bound))
    assert norm > 1e-2
    assert updated.grad_norm == pytest.approx(norm, rel=1e-4)
    assert float(seen(u)[0].norm()) == pytest.approx(1e-3, rel=1e-3)


def test_the_moving_average_warms_up_and_then_keeps_its_decay():
    policy = ToyPolicy()
    t = trainer(policy, ema_decay=0.27)
    average = weights(policy)
    for decay in (2 / 11, 3 / 12, 0.27, 0.27):  # (1 + n) / (10 + n) at n = 3 is .31
        run(t, made(policy))
        average = decay * average + (1 - decay) * weights(policy)
        torch.testing.assert_close(torch.cat([p.flatten() for p in t.ema]), average)


def test_frozen_parameters_are_left_alone():
    policy = ToyPolicy()
    before = [p.clone() for p in policy.model.parameters()]
    run(trainer(policy), made(policy))
    changed = [not torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True)]
    assert changed == [p.requires_grad for p in policy.model.parameters()]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 12))
def test_no_unit_is_split_over_micro_batches(unit, chunk):
    n = len(unit)
    selection = Selection(
        read=np.arange(n),
        sigma=np.ones(n),
        draw=np.zeros(n, int),
        unit=np.array(unit),
        item_query=np.arange(n),
        item_node=np.arange(n),
        weight=np.ones(n),
    )
    batches = list(micro_batches(selection, np.arange(n), chunk))
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    units = [set(selection.unit[b].tolist()) for b in batches]
    assert sum(map(len, units)) == len(set(unit))
    assert all(len(b) <= chunk or len(u) == 1 for b, u in zip(batches, units, strict=True))


def test_a_batch_holds_what_led_to_each_edge():
    policy = ToyPolicy()
    it = made(policy)
    query = np.array([5, 2])
    batch = build_batch(it, query, it.rollout.log_prob, 3.0, needs={"noise"})
    items = np.concatenate([np.flatnonzero(it.selection.item_query == q) for q in sorted(query)])
    node = it.selection.item_node[items]
    assert torch.equal(batch.x, it.rollout.at(it.selection.read[query]))
    assert torch.equal(batch.target, it.rollout.at(node))
    parent = it.selection.read[query][batch.item_query.numpy()]
    np.testing.assert_array_equal(parent, it.plan.tree.parent[node])
    np.testing.assert_allclose(batch.weight.numpy(), 3 * it.selection.weight[items], rtol=1e-6)
    np.testing.assert_allclose(batch.log_prob_old.numpy(), it.rollout.log_prob[node], rtol=1e-6)
    slot = torch.from_numpy(it.plan.tree.slot[it.selection.read[query]])
    v = policy.velocity(batch.x, batch.sigma, it.condition.rows(slot))
    assert batch.noise is not None
    torch.testing.assert_close(batch.transition(v).sample(batch.noise), batch.target)


def noised(it: Iteration, draw: list[int]) -> Iteration:
    """Return the iteration with the first leaves noised instead of latents read."""
    leaf = it.plan.tree.leaves()[: len(draw)]
    n = np.arange(len(draw))
    sigma = np.linspace(0.2, 0.8, len(draw))
    chosen = Selection(
        read=leaf, sigma=sigma, draw=np.array(draw), unit=n, item_query=n, item_node=leaf, weight=np.ones(len(n))
    )
    return replace(it, selection=chosen)


def test_a_forward_process_query_is_a_leaf_noised_by_its_shared_draw():
    it = noised(made(ToyPolicy()), [0, 0, 3])
    batch = build_batch(it, np.arange(3), it.rollout.log_prob, 1.0)
    assert batch.eps is not None
    assert torch.equal(batch.eps[0], batch.eps[1])
    assert not torch.equal(batch.eps[0], batch.eps[2])
    level = batch.sigma.view(3, 1, 1)
    torch.testing.assert_close(batch.x, (1 - level) * it.rollout.x0[:3] + level * batch.eps)
    assert torch.equal(batch.target, it.rollout.x0[:3])


def test_stored_latents_and_noised_leaves_share_no_micro_batch():
    it = noised(made(ToyPolicy()), [0, -1])
    with pytest.raises(ValueError, match="units of their own"):
        build_batch(it, np.arange(2), it.rollout.log_prob, 1.0)


def by_own_steps(it: Iteration, updates: int) -> Iteration:
    """Return the iteration whose selection says itself what the keyed shards are, with the weights of its steps."""
    s, slot = it.selection, it.plan.tree.slot[it.selection.read]
    step = np.zeros(len(slot), int)
    for at, shard in enumerate(shards(it.noise, CTX.slots, updates)):
        step[np.isin(slot, shard)] = at
    return replace(it, selection=replace(s, update=step, weight=s.weight * updates))


@pytest.mark.parametrize("anchor", ["rollout", "recompute"])
@pytest.mark.parametrize("updates", [1, 2, 4])
def test_a_selection_that_names_the_shards_own_steps_trains_bit_for_bit_as_they_do(updates, anchor):
    def trained(named: bool) -> tuple[Updated, torch.Tensor, list[torch.Tensor]]:
        policy = ToyPolicy()
        it, t = drifted(made(policy), 0.01), trainer(policy, lr=0.05, ema_decay=0.27)
        updated = run(t, by_own_steps(it, updates) if named else it, updates=updates, chunk=3, anchor=anchor)
        assert t.optimizer_steps == updates
        return updated, weights(policy), t.ema

    (said, mine, average), (plain, theirs, expected) = trained(named=True), trained(named=False)
    assert said == plain
    assert torch.equal(mine, theirs)
    assert all(torch.equal(a, b) for a, b in zip(average, expected, strict=True))


def test_a_step_that_the_selection_names_trains_its_queries_alone_by_their_weights():
    policy = ToyPolicy()
    it, t = made(policy), trainer(policy, lr=0.0)
    step = np.arange(len(it.selection.read)) % 3
    run(t, replace(it, selection=replace(it.selection, update=step)), updates=3)
    assert t.optimizer_steps == 3
    for at, gradient in enumerate(seen(t)):
        weight = np.where(step[it.selection.item_query] == at, it.selection.weight, 0.0)
        expected = edge_gradient(policy, replace(it, selection=replace(it.selection, weight=weight)))
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_step_beyond_the_iterations_is_refused():
    policy = ToyPolicy()
    it = made(policy)
    late = replace(it.selection, update=np.full(len(it.selection.read), 3))
    with pytest.raises(ValueError, match="optimiser step 3 of 3"):
        run(trainer(policy), replace(it, selection=late), updates=3)
