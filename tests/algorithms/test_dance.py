from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from toy import context

from algorithms.dance import Dance
from bench.contract import Context, Outcome
from bench.plan import Plan

CTX = context(steps=6, slots=2, group_size=4)


def outcome(plan: Plan, reward: list[float]) -> Outcome:
    return Outcome(log_prob=np.zeros(len(plan.tree)), reward=np.array(reward, float), leaf=plan.tree.leaves())


def chosen(algorithm: Dance, ctx: Context) -> np.ndarray:
    """Return which steps of which leaf are trained."""
    plan = algorithm.plan(ctx)
    known = outcome(plan, list(np.arange(8.0)))
    selection = algorithm.select(plan, known, np.zeros(len(plan.tree)), ctx)
    table = np.zeros((8, ctx.steps), bool)
    node = selection.item_node
    table[plan.tree.first_leaf()[node], plan.tree.depth[node] - 1] = True
    assert table.sum() == len(node)
    return table


def test_the_default_is_one_root_that_fans_out_at_step_0_and_noise_on_all_steps_but_the_last():
    plan = Dance().plan(CTX)
    assert np.bincount(plan.tree.depth).tolist() == [2] + [8] * 6
    assert (plan.noise_level[plan.tree.depth > 0].reshape(6, 8)[:5] == 0.3).all()
    assert plan.kernel == "dance_sde"
    assert (plan.coupling == 0).all()


def test_independent_roots_are_chains_of_their_own():
    plan = Dance(roots="independent").plan(CTX)
    assert np.bincount(plan.tree.depth).tolist() == [8] * 7
    assert plan.tree.slot[:8].tolist() == [0] * 4 + [1] * 4


def test_an_edges_advantage_is_its_leafs_reward_against_its_group_with_unbiased_std():
    plan = Dance().plan(CTX)
    advantage = Dance().credit(plan, outcome(plan, [1, 2, 3, 6, 0, 0, 0, 4]), CTX)
    std = np.sqrt((4 + 1 + 0 + 9) / 3)
    expected = [-2 / std, -1 / std, 0, 3 / std, -0.5, -0.5, -0.5, 1.5]
    for depth in range(1, 7):
        np.testing.assert_allclose(advantage[plan.tree.level(depth)], expected, atol=1e-7)


def test_global_scope_compares_all_images_of_the_iteration():
    algorithm = Dance(scope="global")
    plan = algorithm.plan(CTX)
    reward = np.array([1.0, 2, 3, 6, 0, 0, 0, 4])
    advantage = algorithm.credit(plan, outcome(plan, reward.tolist()), CTX)
    expected = (reward - 2) / np.sqrt(((reward - 2) ** 2).sum() / 7)
    np.testing.assert_allclose(advantage[plan.tree.leaves()], expected, atol=1e-7)


@pytest.mark.parametrize(("steps", "tf", "trained"), [(16, 0.6, 9), (20, 0.6, 11), (20, 1.0, 19), (25, 0.6, 14)])
def test_the_fraction_acts_on_the_usable_steps_as_in_the_code(steps, tf, trained):
    table = chosen(Dance(tf=tf), context(steps=steps, slots=2, group_size=4))
    assert table.sum(1).tolist() == [trained] * 8
    assert not table[:, -1].any()


def test_every_image_draws_steps_of_its_own_anew_in_every_iteration():
    ctx = context(steps=20, slots=2, group_size=4)
    first, next_one = chosen(Dance(tf=0.5), ctx), chosen(Dance(tf=0.5), replace(ctx, iteration=1))
    assert len({row.tobytes() for row in [*first, *next_one]}) == 16
    np.testing.assert_array_equal(first, chosen(Dance(tf=0.5), ctx))


def test_the_drawn_steps_do_not_depend_on_how_the_group_is_rooted():
    ctx = context(steps=20, slots=2, group_size=4)
    np.testing.assert_array_equal(chosen(Dance(tf=0.5), ctx), chosen(Dance(tf=0.5, roots="independent"), ctx))


def test_every_step_is_drawn_about_equally_often():
    ctx = context(steps=11, slots=2, group_size=4)
    count = np.sum([chosen(Dance(tf=0.5), replace(ctx, iteration=i)) for i in range(100)], axis=(0, 1))
    assert count[10] == 0
    assert np.abs(count[:10] - 400).max() < 5 * np.sqrt(800 * 0.25)


@pytest.mark.parametrize("tf", [0.0, -0.1, 1.1])
def test_a_fraction_outside_its_range_is_refused(tf):
    with pytest.raises(ValueError, match="fraction of trained steps"):
        Dance(tf=tf)
