from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from toy import context

from algorithms.branch import Branch
from bench.contract import Context, Outcome
from bench.plan import Plan

CTX = context(steps=6, slots=1, group_size=4)
SMALL = Branch(splits=(0, 2), fusion="uniform")
# Nodes by depth: 0 | 1 2 | 3 4 | 5 6 7 8 | 9 ... 12 | 13 ... 16 | 17 ... 20
REWARD = [1.0, 3.0, 4.0, 8.0]


def outcome(plan: Plan, reward, log_prob: np.ndarray | None = None) -> Outcome:
    known = np.zeros(len(plan.tree)) if log_prob is None else log_prob
    return Outcome(log_prob=known, reward=np.array(reward, float), leaf=plan.tree.leaves())


def trained(algorithm: Branch, reward=REWARD, ctx: Context = CTX) -> list[int]:
    plan = algorithm.plan(ctx)
    known = outcome(plan, reward)
    advantage = np.nan_to_num(algorithm.credit(plan, known, ctx))
    return algorithm.select(plan, known, advantage, ctx).item_node.tolist()


def test_paths_branch_at_the_splits_with_siblings_correlated_by_equation_two():
    plan = Branch(splits=(0, 2), s=2.0).plan(CTX)
    assert np.bincount(plan.tree.depth).tolist() == [1, 2, 2, 4, 4, 4, 4]
    np.testing.assert_allclose(plan.coupling[plan.tree.level(3)], 1 / (1 + 2.0**2))
    assert (plan.coupling[plan.tree.level(2)] == 0).all()
    assert (plan.noise_level[1:17] == 0.3).all()
    assert Branch(s=float("inf"), splits=(0,)).plan(CTX).coupling.max() == 0


@pytest.mark.parametrize(
    ("name", "steps"), [("dense", (0, 3, 6, 9)), ("mixed", (0, 4, 8, 12)), ("sparse", (0, 5, 10, 15))]
)
def test_the_papers_densities_have_names(name, steps):
    assert Branch(splits=name).split_steps == steps


def test_fused_rewards_are_normalised_per_depth_with_unbiased_std():
    plan = SMALL.plan(CTX)
    advantage = SMALL.credit(plan, outcome(plan, REWARD), CTX)
    at = plan.tree.level
    assert advantage[0] == 0  # alone at its depth
    np.testing.assert_allclose(advantage[at(1)], [-1 / sqrt(2), 1 / sqrt(2)], atol=1e-7)  # 2 against 6
    leaves = (np.array(REWARD) - 4) / sqrt((9 + 1 + 0 + 16) / 3)
    for depth in (3, 4, 5, 6):
        np.testing.assert_allclose(advantage[at(depth)], leaves, atol=1e-7)


def test_two_nodes_of_a_depth_have_a_sign_and_no_size_whatever_the_gap():
    plan = SMALL.plan(CTX)
    near = SMALL.credit(plan, outcome(plan, [0.5, 0.5, 0.5001, 0.5001]), CTX)
    np.testing.assert_allclose(near[plan.tree.level(1)], [-1 / sqrt(2), 1 / sqrt(2)], atol=1e-3)


def test_trees_are_normalised_apart():
    ctx = replace(CTX, slots=2)
    plan = SMALL.plan(ctx)
    advantage = SMALL.credit(plan, outcome(plan, [*REWARD, *(100 * np.array(REWARD) + 7)]), ctx)
    leaf = advantage[plan.tree.leaves()]
    np.testing.assert_allclose(leaf[:4], leaf[4:], atol=1e-6)


def test_path_fusion_weighs_leaves_by_the_softmax_of_beta_times_their_paths_log_probs():
    wide = Branch(splits=(0, 2), factor=3, fusion="path", beta=2.0)
    plan = wide.plan(replace(CTX, group_size=9))
    reward = np.sin(np.arange(9.0))
    log_prob = np.where(plan.noise_level > 0, 0.1 * np.cos(np.arange(len(plan.tree))), np.nan)
    total = []
    for leaf in plan.tree.leaves():
        node, sums = int(leaf), 0.0
        while node > 0:
            sums += 0.0 if np.isnan(log_prob[node]) else log_prob[node]
            node = int(plan.tree.parent[node])
        total.append(sums)
    weight = np.exp(2.0 * np.array(total))
    fused = np.array([np.average(reward[i : i + 3], weights=weight[i : i + 3]) for i in (0, 3, 6)])
    expected = (fused - fused.mean()) / fused.std(ddof=1)
    found = wide.credit(plan, outcome(plan, reward, log_prob), CTX)
    np.testing.assert_allclose(found[plan.tree.level(1)], expected, atol=1e-6)


def test_leaf_credit_gives_an_edge_the_mean_of_its_leaves_advantages():
    algorithm = replace(SMALL, credit_by="leaf")
    plan = algorithm.plan(CTX)
    advantage = algorithm.credit(plan, outcome(plan, REWARD), CTX)
    leaves = (np.array(REWARD) - 4) / sqrt(26 / 3)
    np.testing.assert_allclose(advantage[plan.tree.leaves()], leaves, atol=1e-7)
    np.testing.assert_allclose(advantage[plan.tree.level(1)], [leaves[:2].mean(), leaves[2:].mean()], atol=1e-7)


def test_everything_stochastic_is_trained_without_pruning():
    assert trained(SMALL) == list(range(1, 17))


def test_parent_top1_drops_the_losers_chain_and_keeps_its_split_edge():
    # Of the leaves 1, 3 the second wins, of 4, 8 the second; depth 3 is the split, depths 4 and 5 the chains.
    assert trained(replace(SMALL, width="parent-top1")) == [*range(1, 9), 10, 12, 14, 16]


def test_parent_top1_never_prefers_a_failed_child():
    nan = float("nan")
    # The failed child's advantage counts as 0, more than that of the only, worse, sibling.
    assert trained(replace(SMALL, width="parent-top1"), [nan, 1.0, 9.0, 5.0]) == [1, 2, 3, 4, 6, 7, 8, 10, 11, 14, 15]


def test_extreme_keeps_the_chains_of_the_best_and_worst_quarter():
    assert trained(replace(SMALL, width="extreme")) == [*range(1, 9), 9, 12, 13, 16]


def test_depth_pruning_skips_a_window_that_starts_below_the_last_split_and_slides():
    algorithm = Branch(splits=(0, 2), depth=True, window=1, slide=10)
    ctx = context(steps=8, slots=1, group_size=4)
    steps = []
    for iteration in (0, 9, 10, 30, 1000):
        now = replace(ctx, iteration=iteration)
        depth = algorithm.plan(now).tree.depth[trained(algorithm, ctx=now)] - 1
        steps.append(set(range(7)) - set(depth.tolist()))
    assert steps == [{3}, {3}, {4}, {6}, {6}]


def test_branch_mix_is_stochastic_at_splits_and_in_a_window_that_slides_and_stays():
    algorithm = Branch(mix=True)
    ctx = context(steps=20, slots=1, group_size=16)
    found = []
    for iteration in (0, 29, 30, 450, 10_000):
        plan = algorithm.plan(replace(ctx, iteration=iteration))
        found.append(sorted(set((plan.tree.depth[plan.noise_level > 0] - 1).tolist())))
    start, stay = [0, 1, 2, 3, 6, 9], [0, 3, 6, 9, 15, 16, 17, 18]
    assert found == [start, start, [0, 1, 2, 3, 4, 6, 9], stay, stay]


def test_split_edges_are_trained_whatever_is_pruned():
    for change in ({"width": "parent-top1"}, {"width": "extreme"}, {"depth": True, "window": 2}, {"mix": True}):
        assert set(trained(replace(SMALL, **change))) >= {1, 2, 5, 6, 7, 8}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"splits": ()}, "distinct, rising"),
        ({"splits": (3, 0)}, "distinct, rising"),
        ({"splits": (0, 0)}, "distinct, rising"),
        ({"splits": (-1, 2)}, "at least 0"),
        ({"factor": 1}, "at least 2"),
        ({"window": 0}, "at least 1"),
        ({"slide": 0}, "at least 1"),
        ({"s": -1.0}, "not negative"),
        ({"beta": -1.0}, "not negative"),
    ],
)
def test_settings_that_mean_no_tree_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Branch(**wrong)


@pytest.mark.parametrize("split", [5, 6])
def test_a_split_on_the_last_step_or_beyond_is_refused(split):
    with pytest.raises(ValueError, match="of 6 steps, the last that can branch is 4"):
        Branch(splits=(0, split)).plan(CTX)
