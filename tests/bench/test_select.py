from __future__ import annotations

import numpy as np
import pytest
from toy import context

from bench.plan import branching, star
from bench.schedule import shifted_sigmas
from bench.select import Selection, check_update, forward, trainable, trajectory

PLAN = branching(
    shifted_sigmas(4, 3.0), slots=2, fanout=[2, 1, 2, 1], noise_level=[0.3, 0.0, 0.3, 0.0], kernel="dance_sde"
)
# Nodes: roots 0 1, depth 1: 2..5, depth 2: 6..9, depth 3: 10..17, leaves: 18..25.


def test_only_stochastic_edges_at_allowed_steps_above_a_scored_leaf_may_be_trained():
    leaf, reward = PLAN.tree.leaves(), np.arange(8.0)
    assert np.flatnonzero(trainable(PLAN, leaf, reward, (0, 1, 2))).tolist() == [2, 3, 4, 5, *range(10, 18)]
    assert np.flatnonzero(trainable(PLAN, leaf, reward, (0,))).tolist() == [2, 3, 4, 5]
    failed = np.where(np.isin(np.arange(8), (0, 1, 4)), np.nan, reward)
    assert np.flatnonzero(trainable(PLAN, leaf, failed, (0, 2))).tolist() == [3, 4, 5, 12, 13, 15, 16, 17]


def test_the_chosen_children_of_a_parent_are_items_of_one_query():
    chosen = np.zeros(len(PLAN.tree), bool)
    chosen[[2, 3, 4, 12, 13, 14]] = True
    selection = trajectory(PLAN, chosen)
    assert selection.read.tolist() == [0, 1, 7, 8]
    assert selection.item_query.tolist() == [0, 0, 1, 2, 2, 3]
    assert selection.item_node.tolist() == [2, 3, 4, 12, 13, 14]
    assert (selection.draw == -1).all()
    np.testing.assert_array_equal(selection.sigma, PLAN.sigmas[[0, 0, 2, 2]])


def test_every_tree_has_the_same_say_whatever_it_trains():
    chosen = np.zeros(len(PLAN.tree), bool)
    chosen[[2, 3, 4, 12, 13, 14]] = True  # four edges of the first tree, two of the second
    assert trajectory(PLAN, chosen).weight.tolist() == [1 / 8, 1 / 8, 1 / 4, 1 / 8, 1 / 8, 1 / 4]


@pytest.mark.parametrize(
    "change",
    [
        {"sigma": np.ones(1)},
        {"item_query": np.array([0, 1])},
        {"item_query": np.array([0, 1, 2])},
        {"item_query": np.array([-1, 0, 1])},
        {"update": np.array([0])},
    ],
)
def test_a_selection_whose_parts_disagree_is_refused(change):
    parts = {
        "read": np.array([0, 1]),
        "sigma": np.ones(2),
        "draw": np.array([-1, -1]),
        "unit": np.arange(2),
        "item_query": np.array([0, 0, 1]),
        "item_node": np.array([2, 3, 4]),
        "weight": np.ones(3),
    }
    assert len(Selection(**parts).read) == 2
    with pytest.raises((ValueError, TypeError)):  # a shape checker, where one is on, speaks first
        Selection(**parts | change)


@pytest.mark.parametrize(
    ("unit", "update", "says"),
    [
        ([0, 1, 2], [0, 1], "one entry a query"),
        ([0, 1, 2], [0, 1, -1], "from 0 on"),
        ([0, 0, 1], [0, 1, 1], "of a unit are trained in one optimiser step"),
    ],
)
def test_optimiser_steps_that_split_a_unit_or_miss_a_query_are_refused(unit, update, says):
    with pytest.raises(ValueError, match=says):
        check_update(np.array(update), np.array(unit))


def test_a_unit_in_one_optimiser_step_is_fine_whatever_the_order_of_steps():
    check_update(np.array([2, 2, 0, 1]), np.array([5, 5, 3, 4]))


def test_edges_that_are_given_optimiser_steps_are_queries_of_their_own_at_the_same_weight():
    chosen = np.zeros(len(PLAN.tree), bool)
    chosen[[2, 3, 4, 12]] = True
    step = np.arange(len(PLAN.tree)) % 5
    selection = trajectory(PLAN, chosen, step)
    assert selection.read.tolist() == [0, 0, 1, 7]
    assert selection.item_query.tolist() == [0, 1, 2, 3]
    assert selection.update is not None
    assert selection.update.tolist() == [2, 3, 4, 2]
    np.testing.assert_array_equal(selection.weight, trajectory(PLAN, chosen).weight)


PATHS = star(context(steps=4, slots=2, group_size=3))
LEAF = PATHS.tree.leaves()


def test_every_image_is_noised_to_every_sigma():
    chosen = forward(PATHS, LEAF, np.array([[0.9, 0.5]]), shared=False)
    assert chosen.read.tolist() == np.repeat(LEAF, 2).tolist() == chosen.item_node.tolist()
    assert chosen.sigma.tolist() == [0.9, 0.5] * 6
    assert chosen.draw.tolist() == [0, 1, 2, 3, 4, 5] * 2  # a noise of its own within its prompt
    assert chosen.unit.tolist() == chosen.item_query.tolist() == list(range(12))
    np.testing.assert_allclose(chosen.weight, 1 / 12)


def test_images_may_have_sigmas_of_their_own_and_draws_in_common():
    chosen = forward(PATHS, LEAF, np.linspace(0.1, 0.9, 12).reshape(6, 2), shared=True, together=True)
    np.testing.assert_allclose(chosen.sigma, np.linspace(0.1, 0.9, 12))
    assert chosen.draw.tolist() == [0, 1] * 6
    assert chosen.unit.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_failed_image_moves_no_others_noise():
    every, some = (forward(PATHS, leaf, np.array([[0.9, 0.5]]), shared=False) for leaf in (LEAF, LEAF[[0, 2, 4]]))
    kept = np.isin(every.read, LEAF[[0, 2, 4]])
    np.testing.assert_array_equal(some.draw, every.draw[kept])
    np.testing.assert_allclose(some.weight, every.weight[kept])
