"""The level-wise array arithmetic equals recursion over node objects, on random ragged forests."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracle.recursive import (
    forests,
    fused,
    grow,
    kept_above_extremes,
    kept_below_best,
    nodes,
    normalized,
    shared_upwards,
)

from bench.prune import above_extremes, below_best_child, place
from bench.select import edge_weight
from bench.tree import Tree, fuse, has_valid_leaf, log_share, normalize, path_sum

NUMBER = st.floats(-5, 5)
REWARD = st.one_of(NUMBER, st.sampled_from([0.0, 1.0, math.nan]))


@st.composite
def scored_forests(draw: st.DrawFn) -> tuple[Tree, np.ndarray, np.ndarray]:
    """Draw a forest, a reward a leaf (some NaN, some equal), and a log-weight a leaf."""
    tree = draw(forests())
    count = len(tree.leaves())
    reward = draw(st.lists(REWARD, min_size=count, max_size=count))
    log_weight = draw(st.lists(NUMBER, min_size=count, max_size=count))
    return tree, np.array(reward), np.array(log_weight)


def values_on(tree: Tree) -> st.SearchStrategy[np.ndarray]:
    return st.lists(NUMBER, min_size=len(tree), max_size=len(tree)).map(np.array)


@given(forests())
def test_every_index_of_a_forest_is_what_walking_it_finds(tree: Tree):
    objects = nodes(tree)
    leaves = [n.index for n in objects if not n.children]
    assert tree.leaves().tolist() == leaves
    assert tree.fanout().tolist() == [len(n.children) for n in objects]
    assert tree.root().tolist() == [n.path()[0].index for n in objects]
    assert tree.depth.tolist() == [n.depth for n in objects]
    assert tree.first_leaf().tolist() == [leaves.index(n.leaves()[0].index) for n in objects]
    for depth in range(tree.steps + 1):
        assert tree.ancestor(depth).tolist() == [(n.path()[depth].index if n.depth >= depth else -1) for n in objects]


@given(forests())
def test_rank_is_the_position_among_siblings_and_of_roots_among_those_of_the_slot(tree: Tree):
    roots = grow(tree)
    for node in [n for root in roots for n in root.all()]:
        siblings = node.parent.children if node.parent else [r for r in roots if r.slot == node.slot]
        assert tree.rank()[node.index] == siblings.index(node)


@given(scored_forests())
def test_uniform_fusion_is_the_mean_over_scored_leaves(scored):
    tree, reward, _ = scored
    leaf = tree.leaves()
    by_node = dict(zip(leaf.tolist(), reward.tolist(), strict=True))
    expected = [fused(n, by_node, dict.fromkeys(by_node, 0.0)) for n in nodes(tree)]
    np.testing.assert_allclose(fuse(tree, leaf, reward), expected, atol=1e-12)


@given(scored_forests())
def test_weighted_fusion_is_the_softmax_over_scored_leaves(scored):
    tree, reward, log_weight = scored
    leaf = tree.leaves()
    by_node = dict(zip(leaf.tolist(), reward.tolist(), strict=True))
    weight = dict(zip(leaf.tolist(), log_weight.tolist(), strict=True))
    expected = [fused(n, by_node, weight) for n in nodes(tree)]
    np.testing.assert_allclose(fuse(tree, leaf, reward, log_weight), expected, atol=1e-12)


@given(st.data(), forests())
def test_fusion_by_shares_among_siblings_is_the_recursive_softmax_over_children(data, tree: Tree):
    log_prob, reward = data.draw(values_on(tree)), data.draw(values_on(tree))[tree.leaves()]
    by_node = dict(zip(tree.leaves().tolist(), reward.tolist(), strict=True))
    expected = [shared_upwards(n, by_node, log_prob) for n in nodes(tree)]
    share = path_sum(tree, log_share(tree, log_prob))[tree.leaves()]
    np.testing.assert_allclose(fuse(tree, tree.leaves(), reward, share), expected, atol=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_a_place_is_that_of_a_stable_sort_of_the_group(rows):
    at, size = place(np.array([g for g, _ in rows]), np.array([float(v) for _, v in rows]))
    for g in {g for g, _ in rows}:
        mine = [i for i, row in enumerate(rows) if row[0] == g]
        ranked = sorted(mine, key=lambda i: rows[i][1])
        assert at[mine].tolist() == [ranked.index(i) for i in mine]
        assert set(size[mine].tolist()) == {len(mine)}


@given(scored_forests())
def test_a_node_is_valid_if_any_leaf_below_it_was_scored(scored):
    tree, reward, _ = scored
    leaf = tree.leaves()
    by_node = dict(zip(leaf.tolist(), reward.tolist(), strict=True))
    expected = [any(not math.isnan(by_node[below.index]) for below in n.leaves()) for n in nodes(tree)]
    assert has_valid_leaf(tree, leaf, reward).tolist() == expected


@given(st.data(), forests())
def test_path_sum_adds_the_edges_of_a_path_and_counts_ode_edges_as_nothing(data, tree: Tree):
    value = data.draw(values_on(tree))
    value[data.draw(st.lists(st.integers(0, len(tree) - 1)))] = np.nan
    expected = [math.fsum(np.nan_to_num(value[[n.index for n in node.path()[1:]]])) for node in nodes(tree)]
    np.testing.assert_allclose(path_sum(tree, value), expected, atol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 3), REWARD), min_size=1), st.sampled_from([0, 1]))
def test_normalisation_uses_the_statistics_of_each_segment(rows, ddof):
    segment, value = np.array([s for s, _ in rows]), np.array([v for _, v in rows])
    found = normalize(value, segment, ddof=ddof, eps=1e-3)
    for s in set(segment.tolist()):
        expected = normalized(value[segment == s].tolist(), ddof, 1e-3)
        np.testing.assert_allclose(found[segment == s], expected, atol=1e-9)


@given(st.data(), forests())
def test_the_best_child_of_every_parent_keeps_its_subtree(data, tree: Tree):
    score = data.draw(values_on(tree)).round()  # rounded: ties happen
    for depth in range(1, tree.steps + 1):
        assert set(np.flatnonzero(below_best_child(tree, score, depth))) == kept_below_best(tree, score, depth)


@given(scored_forests())
def test_extremes_are_the_best_and_worst_quarter_of_every_tree(scored):
    tree, reward, _ = scored
    leaf = tree.leaves()
    # The oracle sorts each tree's leaves in walking order; ties between leaves of several depths may fall either way.
    reward = reward + np.arange(len(leaf)) * 1e-7
    by_node = dict(zip(leaf.tolist(), reward.tolist(), strict=True))
    assert set(np.flatnonzero(above_extremes(tree, leaf, reward))) == kept_above_extremes(tree, by_node)


@given(st.data(), forests())
def test_an_edge_weighs_one_over_trees_times_the_chosen_edges_of_its_tree(data, tree: Tree):
    chosen = data.draw(st.lists(st.integers(0, len(tree) - 1), min_size=1, unique=True).map(sorted))
    trees = grow(tree)
    for root in trees:
        mine = [i for i in chosen if i in {n.index for n in root.all()}]
        weight = edge_weight(tree, np.array(chosen))[np.isin(chosen, mine)]
        np.testing.assert_allclose(weight, [1 / (len(trees) * len(mine))] * len(mine) if mine else [])
