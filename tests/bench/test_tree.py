from __future__ import annotations

import numpy as np
import pytest

from bench.tree import Tree, forest, fuse, has_valid_leaf, normalize, path_sum

NAN = float("nan")


def small() -> Tree:
    """Two slots with one tree each: a root with two children, the first of which has two."""
    parent = [-1, -1, 0, 0, 1, 1, 2, 2, 4, 4]
    depth = [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    slot = [0, 1, 0, 0, 1, 1, 0, 0, 1, 1]
    return Tree(parent=np.array(parent), depth=np.array(depth), slot=np.array(slot), offset=np.array([0, 2, 6, 10]))


def test_a_forest_is_laid_out_level_by_level_and_slot_by_slot():
    tree = forest([2, 1, 2], slots=2)
    assert tree.parent.tolist() == [-1, -1, 0, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    assert tree.slot.tolist() == [0, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]
    assert tree.offset.tolist() == [0, 2, 6, 10, 18]
    assert tree.steps == 3


def test_several_roots_of_a_slot_are_neighbours():
    tree = forest([1, 2], slots=2, roots=3)
    assert tree.slot[:6].tolist() == [0, 0, 0, 1, 1, 1]
    assert tree.rank()[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert len(tree.leaves()) == 12


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"slots": 1, "roots": 0}, {"slots": 1, "fanout": [2, 0]}])
def test_a_forest_without_slots_roots_or_children_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one slot, root and child"):
        forest(**{"fanout": [1]} | wrong)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": [0, 0, 1, 1, 2, 1, 2, 2, 2, 2]}, "ordered by level"),
        ({"parent": [-1, -1, 0, 0, 1, 1, 0, 2, 4, 4]}, "one level below"),
        ({"slot": [0, 1, 0, 0, 1, 1, 0, 1, 1, 1]}, "its parent's slot"),
        ({"parent": [-1, -1, 0, 0, 1, 1, 3, 2, 4, 4]}, "the order of their parents"),
        ({"parent": [-1, 0, 0, 0, 1, 1, 2, 2, 4, 4]}, "exactly its roots"),
    ],
)
def test_arrays_that_are_no_forest_are_refused(change, says):
    good = small()
    arrays = {name: getattr(good, name) for name in ("parent", "depth", "slot", "offset")}
    with pytest.raises(ValueError, match=says):
        Tree(**arrays | {name: np.array(value) for name, value in change.items()})


# DESIGN.md 4.6 and algorithms.md 6.7, identity (x).
@pytest.mark.parametrize(
    ("splits", "factor", "nodes", "leaves", "calls"),
    [
        ((0, 3, 6, 9), 2, 219, 16, 203),
        ((0, 4, 8, 12), 2, 185, 16, 169),
        ((0, 5, 10, 15), 2, 151, 16, 135),
        ((0, 3, 6, 9), 3, 1009, 81, 928),
        ((0, 3, 6, 9), 4, 3069, 256, 2813),
        ((0, 3, 6), 2, 131, 8, 123),
        ((0, 3, 6, 9, 12), 2, 347, 32, 315),
    ],
)
def test_published_trees_have_the_published_numbers_of_nodes_edges_and_calls(splits, factor, nodes, leaves, calls):
    tree = forest([factor if k in splits else 1 for k in range(20)], slots=1)
    assert len(tree) == nodes
    assert (tree.parent >= 0).sum() == nodes - 1
    assert len(tree.leaves()) == leaves
    assert (tree.fanout() > 0).sum() == calls


def test_fusing_weighs_leaves_by_the_softmax_of_their_log_weights():
    tree = small()
    leaf = tree.leaves()
    assert leaf.tolist() == [3, 5, 6, 7, 8, 9]
    reward, log_weight = np.array([4.0, 0, 1, 3, 5, 7]), np.log([2.0, 1, 1, 3, 1, 1])
    value = fuse(tree, leaf, reward, log_weight)
    assert value[2] == pytest.approx((1 * 1 + 3 * 3) / 4)
    assert value[0] == pytest.approx((2 * 4 + 1 * 1 + 3 * 3) / 6)
    assert value[1] == pytest.approx((0 + 5 + 7) / 3)


def test_a_failed_leaf_weighs_nothing_and_a_node_without_another_is_unknown():
    tree = small()
    value = fuse(tree, tree.leaves(), np.array([4.0, 2, NAN, NAN, NAN, 8]))
    np.testing.assert_equal(value, [4, 5, NAN, 4, 8, 2, NAN, NAN, NAN, 8])
    known = [True, True, False, True, True, True, False, False, False, True]
    assert has_valid_leaf(tree, tree.leaves(), np.array([4.0, 2, NAN, NAN, NAN, 8])).tolist() == known


def test_hugely_different_log_weights_do_not_overflow():
    tree = small()
    value = fuse(tree, tree.leaves(), np.arange(6.0), np.array([1e4, 0, -1e4, -1e4, 0, 1e4]))
    np.testing.assert_allclose(value[:2], [0, 5])
    np.testing.assert_allclose(value[2], 2.5)


def test_normalisation_states_its_ddof_and_eps():
    value, segment = np.array([1.0, 3, 10, 14, 7]), np.array([0, 0, 5, 5, 9])
    np.testing.assert_allclose(normalize(value, segment, ddof=0, eps=0.5), [-1 / 1.5, 1 / 1.5, -2 / 2.5, 2 / 2.5, 0])
    unbiased = normalize(value, segment, ddof=1, eps=1e-8)
    np.testing.assert_allclose(unbiased, [-(0.5**0.5), 0.5**0.5, -(0.5**0.5), 0.5**0.5, 0], rtol=1e-7)


def test_unknown_values_stay_unknown_and_out_of_the_statistics():
    found = normalize(np.array([1.0, NAN, 3, NAN]), np.array([0, 0, 0, 1]), ddof=0, eps=0.0 + 1e-12)
    np.testing.assert_allclose(found, [-1, NAN, 1, NAN])


def test_equal_rewards_have_no_advantage():
    np.testing.assert_allclose(normalize(np.full(7, 0.1), np.zeros(7, int), ddof=1, eps=1e-8), 0, atol=1e-6)


def test_a_path_sum_starts_at_the_root_and_skips_unknown_edges():
    total = path_sum(small(), np.array([9.0, 9, 1, 2, NAN, 4, 5, 6, 7, 8]))
    assert total.tolist() == [0, 0, 1, 2, 0, 4, 6, 7, 7, 8]
