from __future__ import annotations

import numpy as np
import pytest
from toy import context

from bench.noise import Noise, child_path, keyed
from bench.plan import branching, star, window
from bench.schedule import shifted_sigmas
from bench.tree import forest

SIGMAS = shifted_sigmas(6, 3.0)
NOISE = Noise(seed=7, iteration=3)
SHAPE = (4, 2)


def branch(fanout, slots=2, coupling=0.0):
    levels = [0.3] * 5 + [0.0]
    return branching(SIGMAS, slots=slots, fanout=fanout, noise_level=levels, kernel="dance_sde", coupling=coupling)


def edge_noise(plan, node=None, noise=NOISE):
    node = np.flatnonzero(plan.noise_level > 0) if node is None else np.asarray(node)
    return noise.edges(plan.tree, node, plan.coupling, SHAPE)


def test_equal_keys_give_equal_numbers_and_any_part_of_the_key_changes_them():
    first = keyed(1, "edge", 2, 3).standard_normal(8)
    np.testing.assert_array_equal(first, keyed(1, "edge", 2, 3).standard_normal(8))
    for other in [keyed(2, "edge", 2, 3), keyed(1, "root", 2, 3), keyed(1, "edge", 3, 3), keyed(1, "edge", 2, 3, 0)]:
        assert not np.isclose(first, other.standard_normal(8)).any()


def test_an_unknown_stream_is_refused():
    with pytest.raises(ValueError, match="unknown stream 'dance'"):
        keyed(0, "dance")


def test_drawing_nodes_alone_or_in_another_order_changes_nothing():
    plan = branch([2, 1, 2, 1, 1, 1], coupling=0.2)
    node = np.flatnonzero(plan.noise_level > 0)
    together = edge_noise(plan, node)
    np.testing.assert_array_equal(edge_noise(plan, node[::-1]), together[::-1])
    np.testing.assert_array_equal(edge_noise(plan, node[5:6]), together[5:6])


def test_a_slot_draws_the_same_whatever_other_slots_there_are():
    many, one = branch([2, 1, 2, 1, 1, 1], slots=3), branch([2, 1, 2, 1, 1, 1], slots=1)
    mine = np.flatnonzero((many.noise_level > 0) & (many.tree.slot == 0))
    np.testing.assert_array_equal(edge_noise(many, mine), edge_noise(one))
    np.testing.assert_array_equal(
        NOISE.roots(many.tree, many.coupling, SHAPE)[:1], NOISE.roots(one.tree, one.coupling, SHAPE)
    )


def test_every_edge_and_root_of_a_forest_has_noise_of_its_own():
    plan = branch([3, 1, 2, 1, 1, 1], slots=3)
    drawn = np.concatenate([NOISE.roots(plan.tree, plan.coupling, SHAPE), edge_noise(plan)]).reshape(-1, 8)
    assert len(np.unique(drawn[:, 0])) == len(drawn)


def test_iterations_and_seeds_share_no_noise():
    plan = branch([2, 1, 2, 1, 1, 1])
    for other in (Noise(seed=8, iteration=3), Noise(seed=7, iteration=4)):
        assert not np.isclose(edge_noise(plan), edge_noise(plan, noise=other)).any()


def test_root_noise_is_the_same_in_every_arm():
    plans = [
        branch([2, 1, 2, 1, 1, 1]),
        window(context(sigmas=SIGMAS, slots=2, group_size=5), start=2, size=2, noise_level=0.7, kernel="flow_sde"),
        star(context(sigmas=SIGMAS, slots=2, group_size=1)),
    ]
    drawn = [NOISE.roots(plan.tree, plan.coupling, SHAPE) for plan in plans]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    several = star(context(sigmas=SIGMAS, slots=2, group_size=4))
    np.testing.assert_array_equal(NOISE.roots(several.tree, several.coupling, SHAPE)[::4], drawn[0])


def test_an_evaluation_stream_shares_no_root_with_training():
    tree, coupling = forest([1], slots=3), np.zeros(6)
    seen = [
        Noise(seed=7, iteration=3, root_stream=s).roots(tree, coupling, SHAPE)
        for s in ("root", "eval", "eval-reference")
    ]
    assert len(np.unique(np.stack(seen)[..., 0, 0])) == 9


def test_arms_share_their_noise_as_far_as_their_branches_correspond():
    dance, tree = branch([4, 1, 1, 1, 1, 1], slots=1), branch([2, 1, 2, 1, 1, 1], slots=1)
    for depth in (1, 2):  # the tree's two branches are dance's first two
        rows = slice(*dance.tree.offset[depth : depth + 2])
        pair = np.arange(tree.tree.offset[depth], tree.tree.offset[depth + 1])
        np.testing.assert_array_equal(edge_noise(tree, pair), edge_noise(dance, np.arange(rows.start, rows.start + 2)))
    below = np.arange(tree.tree.offset[3], tree.tree.offset[4])  # here the tree has branched again, dance has not
    chains = np.arange(dance.tree.offset[3], dance.tree.offset[4])
    assert not np.isin(edge_noise(tree, below), edge_noise(dance, chains)).any()


def test_siblings_are_a_shared_and_an_own_draw_mixed_as_in_equation_two():
    s = 2.0
    apart, coupled = branch([3, 1, 1, 1, 1, 1], slots=1), branch([3, 1, 1, 1, 1, 1], slots=1, coupling=1 / (1 + s**2))
    own = edge_noise(apart, [1, 2, 3])
    xi0 = NOISE.edges(apart.tree, np.array([1, 2, 3]), np.ones(len(apart.tree)), SHAPE)
    np.testing.assert_array_equal(xi0, np.broadcast_to(xi0[:1], xi0.shape))
    np.testing.assert_allclose(edge_noise(coupled, [1, 2, 3]), (xi0 + s * own) / np.sqrt(1 + s**2), atol=1e-6)


def test_two_parents_of_one_level_share_no_split_noise():
    tree = branch([2, 1, 2, 1, 1, 1], slots=2).tree
    level = np.arange(tree.offset[3], tree.offset[4])
    shared = NOISE.edges(tree, level, np.ones(len(tree)), SHAPE)
    assert len(np.unique(shared[:, 0, 0])) == 4  # one a parent, two parents a slot


def test_roots_of_a_slot_correlate_by_their_coupling():
    tree = forest([1], slots=2, roots=3)
    drawn = NOISE.roots(tree, np.ones(len(tree)), SHAPE)
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert not np.isclose(drawn[0], drawn[3]).any()


def test_forward_draws_of_one_slot_and_number_are_shared():
    drawn = NOISE.forward(np.array([0, 0, 1, 0]), np.array([2, 2, 2, 3]), SHAPE)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.isclose(drawn[0], drawn[2]).any()
    assert not np.isclose(drawn[0], drawn[3]).any()


def test_a_path_keeps_its_name_while_it_does_not_branch():
    tree = forest([2, 1, 3, 1], slots=2)
    path = child_path(tree)
    at = [tree.level(d) for d in range(5)]
    np.testing.assert_array_equal(path[at[1]], path[at[2]])
    np.testing.assert_array_equal(path[at[3]], path[at[4]])
    first_slot = path[at[3]][tree.slot[at[3]] == 0]
    assert len(set(first_slot.tolist())) == 6
    np.testing.assert_array_equal(first_slot, path[at[3]][tree.slot[at[3]] == 1])
