"""Every quirk of BranchGRPO's official code that the arm reproduces, as a fact."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from oracle.recursive import nodes, shared_upwards
from toy import PROMPTS, ToyPolicy, context, iteration_of

from algorithms.branch_official import BranchOfficial
from bench.contract import Context, Outcome
from bench.noise import Noise
from bench.plan import Plan
from bench.policy import encoded
from bench.rollout import rollout
from bench.select import Selection
from bench.theory.gaussian import GaussianData, GaussianPolicy

PAPER = context(steps=20, slots=2, group_size=16)
CODE = BranchOfficial()
SMALL = BranchOfficial(splits=(0, 2))
CTX = context(steps=6, slots=1, group_size=4)
# Nodes of SMALL by depth: 0 | 1 2 | 3 4 | 5 6 7 8 | 9 ... 12 | 13 ... 16 | 17 ... 20


def outcome(plan: Plan, reward: np.ndarray, log_prob: np.ndarray | None = None) -> Outcome:
    known = np.where(plan.noise_level > 0, 0.0, np.nan) if log_prob is None else log_prob
    return Outcome(log_prob=known, reward=reward, leaf=plan.tree.leaves())


def chosen(algorithm: BranchOfficial, ctx: Context = PAPER, reward: np.ndarray | None = None) -> tuple[Plan, Selection]:
    """Return a plan and what is trained of it, in as many optimiser steps as the algorithm says."""
    ctx = replace(ctx, updates=algorithm.updates(ctx))
    plan = algorithm.plan(ctx)
    known = outcome(plan, np.sin(1.7 * np.arange(len(plan.tree.leaves()))) if reward is None else reward)
    return plan, algorithm.select(plan, known, np.nan_to_num(algorithm.credit(plan, known, ctx)), ctx)


def trained_steps(algorithm: BranchOfficial, iteration: int = 0) -> set[int]:
    plan, selection = chosen(algorithm, replace(PAPER, iteration=iteration))
    return set((plan.tree.depth[selection.item_node] - 1).tolist())


def test_children_of_a_split_have_independent_noise_of_four_times_the_std_and_others_the_std():
    plan = CODE.plan(PAPER)
    split = np.isin(plan.tree.depth - 1, (0, 3, 6, 9))
    assert (plan.noise_scale[split] == 4).all()
    assert (plan.noise_scale[~split] == 1).all()
    assert (plan.coupling == 0).all()
    assert plan.stochastic_steps() == set(range(19))


def test_a_splits_noise_is_scored_as_if_it_had_the_std_so_the_exponent_averages_minus_8():
    policy = ToyPolicy((64, 64))
    it = iteration_of(policy, SMALL, CTX, encoded(policy, PROMPTS[:1]))
    scored = it.plan.noise_level > 0
    std = it.plan.std()[scored]
    exponent = it.rollout.log_prob[scored] + np.log(std) + 0.5 * math.log(2 * math.pi)
    split = np.isin(it.plan.tree.depth - 1, (0, 2))[scored]
    np.testing.assert_allclose(exponent[split], -8, atol=1.0)  # five standard errors of 4096 dimensions
    np.testing.assert_allclose(exponent[~split], -0.5, atol=0.06)


def test_a_split_widens_the_state_by_fifteen_variances_of_its_noise():
    """Data that are a point: the state at sigma has std sigma, but for the noise of the one split above it."""
    policy = GaussianPolicy(GaussianData(mean=np.zeros(1), variance=np.zeros(1)), copies=(100_000,))
    ctx = context(steps=20, slots=1, group_size=2)
    found = []
    for noise in (1.0, 4.0):
        plan = BranchOfficial(splits=(9,), noise=noise).plan(ctx)
        rolled = rollout(policy, plan, encoded(policy, ["dots"]), Noise(seed=3, iteration=0), keep=range(20), chunk=9)
        below = np.flatnonzero(plan.tree.depth == 10)
        found.append(float(rolled.at(below).std()))
        s = float(plan.std()[below[0]])
    assert s == pytest.approx(0.0567, abs=1e-4)
    assert found[0] == pytest.approx(0.75, abs=0.01)
    assert found[1] == pytest.approx(math.sqrt(0.75**2 + 15 * s**2), abs=0.01)  # .781


def test_rewards_flow_up_by_the_softmax_of_sibling_edges_and_nothing_else():
    plan = BranchOfficial(splits=(0, 2), factor=3).plan(CTX)
    reward = np.sin(np.arange(9.0))
    log_prob = np.where(plan.noise_level > 0, np.cos(np.arange(len(plan.tree))), np.nan)
    by_leaf = dict(zip(plan.tree.leaves().tolist(), reward.tolist(), strict=True))
    value = np.array([shared_upwards(n, by_leaf, log_prob) for n in nodes(plan.tree)])
    for depth in range(1, 7):
        level = plan.tree.level(depth)
        expected = (value[level] - value[level].mean()) / value[level].std(ddof=1)
        found = CODE.credit(plan, outcome(plan, reward, log_prob), CTX)[level]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_depths_statistics_are_those_of_one_tree_with_unbiased_std():
    ctx = replace(CTX, slots=2)
    plan = SMALL.plan(ctx)
    reward = np.array([1.0, 3, 4, 8])
    advantage = SMALL.credit(plan, outcome(plan, np.r_[reward, 100 * reward + 7]), ctx)
    leaf = advantage[plan.tree.leaves()]
    np.testing.assert_allclose(leaf, [*(reward - 4) / math.sqrt(26 / 3)] * 2, atol=1e-6)
    np.testing.assert_allclose(advantage[plan.tree.level(1)], [-math.sqrt(0.5), math.sqrt(0.5)] * 2, atol=1e-6)


@pytest.mark.parametrize(("gap", "advantage"), [(1e-6, 0.0), (3e-6, math.sqrt(0.5))])
def test_a_std_below_a_millionth_is_none(gap, advantage):
    algorithm = BranchOfficial(splits=(0,))
    plan = algorithm.plan(replace(CTX, group_size=2))
    found = algorithm.credit(plan, outcome(plan, np.array([0.0, gap])), CTX)
    assert found[0] == 0  # alone at its depth
    np.testing.assert_allclose(found[1:], [-advantage, advantage] * 6, atol=0.005)


def test_mode_1_keeps_the_first_half_of_every_chain_winners_and_losers_alike():
    plan, selection = chosen(BranchOfficial(width="mode1"))
    by_step = np.bincount(plan.tree.depth[selection.item_node] - 1, minlength=20)
    assert by_step.tolist() == [2 * width for width in (2, 2, 2, 4, 4, 4, 8, 8, 8, *[16] * 6, *[0] * 5)]


def test_mode_2_keeps_the_chains_of_a_ranks_eight_best_and_eight_worst_leaves():
    reward = np.sin(1.7 * np.arange(64.0))
    reward[16:32] = reward[16:32] ** 3  # a tree whose advantages are of another shape
    algorithm, ctx = BranchOfficial(width="mode2"), replace(PAPER, slots=4)
    plan, selection = chosen(algorithm, ctx, reward)
    leaf = algorithm.credit(plan, outcome(plan, reward), ctx)[plan.tree.leaves()]
    order = [rank * 32 + np.argsort(leaf[rank * 32 :][:32]) for rank in (0, 1)]
    kept = {int(row) for ranked in order for row in (*ranked[:8], *ranked[-8:])}
    chain = selection.item_node[plan.tree.depth[selection.item_node] > 10]
    rows = plan.tree.first_leaf()[chain].tolist()
    assert set(rows) == kept
    assert len(rows) == len(kept) * 9  # the last step's edge is never trained here
    by_tree = np.bincount(plan.tree.slot[plan.tree.leaves()[sorted(kept)]])
    assert by_tree[0] != by_tree[1]  # prompts have unequal say
    assert by_tree[0] + by_tree[1] == 16
    assert (plan.tree.depth[selection.item_node] <= 10).sum() == 4 * 58


def test_depths_are_left_out_and_slide_towards_the_noise_until_they_stop():
    algorithm = BranchOfficial(depths=(15, 16, 17, 18))
    left_out = [set(range(19)) - trained_steps(algorithm, iteration) for iteration in (0, 29, 30, 179, 180, 10_000)]
    first = {14, 15, 16, 17}
    assert left_out == [first, first, {13, 14, 15, 16}, {9, 10, 11, 12}, {8, 9, 10, 11}, {8, 9, 10, 11}]


def test_depths_above_the_stop_stay():
    assert set(range(19)) - trained_steps(BranchOfficial(depths=(5, 6)), 3000) == {4, 5}


def test_the_mix_window_stands_at_the_start_for_ever():
    for iteration in (0, 30, 10_000):
        plan = BranchOfficial(mix=True).plan(replace(PAPER, iteration=iteration))
        assert plan.stochastic_steps() == {0, 1, 2, 3, 6, 9}
    assert len(chosen(BranchOfficial(mix=True))[1].item_node) == 2 * 34


def test_a_mix_stride_of_one_makes_every_step_stochastic():
    assert BranchOfficial(mix=True, slide=1).plan(PAPER).stochastic_steps() == set(range(19))


@pytest.mark.parametrize("slots", [2, 4, 8])
def test_there_are_36_updates_and_each_trains_a_36th_of_every_ranks_edges(slots):
    ctx = replace(PAPER, slots=slots)
    plan, selection = chosen(CODE, ctx)
    assert CODE.updates(ctx) == 36
    assert selection.update is not None
    for rank in range(slots // 2):
        mine = plan.tree.slot[selection.read] // 2 == rank
        assert mine.sum() == 404  # of 436; the last step's 32 are never trained here
        assert set(np.bincount(selection.update[mine], minlength=36).tolist()) == {11, 12}
    assert sorted(selection.item_node.tolist()) == np.flatnonzero(plan.noise_level > 0).tolist()


@pytest.mark.parametrize(
    ("algorithm", "updates"),
    [
        (BranchOfficial(width="mode1"), 2 * 138 // 12),
        (BranchOfficial(width="mode2"), 2 * 138 // 12),
        (BranchOfficial(depths=(15, 16, 17, 18)), 2 * 154 // 12),
        (BranchOfficial(mix=True), 2 * 34 // 12),
        (BranchOfficial(edges=218), 2),
        (BranchOfficial(edges=1000), 1),
    ],
)
def test_an_update_is_twelve_edges_that_the_code_would_train(algorithm, updates):
    assert [algorithm.updates(replace(PAPER, slots=slots, iteration=i)) for slots, i in ((1, 0), (8, 900))] == [
        updates
    ] * 2


def test_there_are_no_more_updates_than_edges_to_train():
    assert CODE.updates(replace(PAPER, train_steps=(0,))) == 4


def test_a_ranks_edges_are_shuffled_anew_every_iteration_and_apart_from_other_ranks():
    ctx = replace(PAPER, slots=4)
    (plan, first), (_, again), (_, later) = (chosen(CODE, replace(ctx, iteration=i)) for i in (0, 0, 1))
    assert first.update is not None
    assert later.update is not None
    np.testing.assert_array_equal(first.update, again.update)
    assert (first.update != later.update).mean() > 0.9
    rank = plan.tree.slot[first.read] // 2
    assert (first.update[rank == 0] != first.update[rank == 1]).mean() > 0.9


def test_a_rank_does_not_depend_on_other_ranks():
    (plan, few), (more, many) = (chosen(CODE, replace(PAPER, slots=slots)) for slots in (2, 4))
    mine = more.tree.slot[many.read] < 2
    assert few.update is not None
    assert many.update is not None
    np.testing.assert_array_equal(few.update, many.update[mine])
    np.testing.assert_array_equal(plan.tree.depth[few.read], more.tree.depth[many.read[mine]])


@pytest.mark.parametrize("slots", [2, 8])
def test_an_edge_is_divided_by_twelve_times_a_trees_edges_and_ranks_are_averaged(slots):
    _, selection = chosen(CODE, replace(PAPER, slots=slots))
    np.testing.assert_allclose(selection.weight, 1 / (slots // 2) / (12 * 218))


def test_every_edge_is_a_query_of_its_own():
    plan, selection = chosen(CODE)
    np.testing.assert_array_equal(selection.item_query, np.arange(404))
    np.testing.assert_array_equal(selection.read, plan.tree.parent[selection.item_node])


def test_failed_leaves_are_left_out_and_the_rest_is_spread_over_all_updates():
    reward = np.sin(1.7 * np.arange(32.0))
    reward[[3, *range(16, 32)]] = np.nan
    plan, selection = chosen(CODE, reward=reward)
    assert selection.update is not None
    assert len(selection.item_node) == 202 - 10  # a leaf's chain, from its split edge on
    assert set(plan.tree.slot[selection.item_node].tolist()) == {0}
    assert set(np.bincount(selection.update, minlength=36).tolist()) == {5, 6}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"splits": ()}, "distinct, rising"),
        ({"splits": (3, 0)}, "distinct, rising"),
        ({"splits": (-1, 2)}, "at least 0"),
        ({"factor": 1}, "at least 2"),
        ({"edges": 0}, "at least 1"),
        ({"slide": 0}, "at least 1"),
        ({"window": 0}, "at least 1"),
        ({"noise": 0.0}, "positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        BranchOfficial(**wrong)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"splits": (0, 5)}, "the last that can branch is 4"), ({"depths": (7,)}, "those of 6 steps are 1 to 6")],
)
def test_what_lies_beyond_the_path_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        BranchOfficial(**{"splits": (0, 2), **change}).plan(CTX)
