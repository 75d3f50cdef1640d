"""Which parts of a tree are worth training: BranchGRPO's pruning, and windows that slide."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from bench.tree import Tree, fuse


def sliding(first: int, size: int, every: int, iteration: int, steps: int) -> range:
    """Return the steps of a window that starts at `first`, moves on every `every` iterations and stays at the end.

    The end is before the last step, which is never stochastic.

    Raises:
        ValueError: if the window is longer than the path.
    """
    last = steps - 1 - size
    if first > last:
        raise ValueError(f"a window of {size} steps from step {first} on is longer than the path of {steps} steps")
    start = min(first + iteration // every, last)
    return range(start, start + size)


def below_best_child(tree: Tree, score: Float[np.ndarray, " node"], depth: int) -> Bool[np.ndarray, " node"]:
    """Return the nodes at or below the best-scored child, at `depth`, of each parent; -inf never wins over a number.

    Among equals the first child wins.
    """
    level = np.arange(len(tree))[tree.level(depth)]
    order = level[np.lexsort((level, -score[level], tree.parent[level]))]
    best = np.zeros(len(tree), bool)
    best[order[np.r_[True, np.diff(tree.parent[order]) > 0]]] = True
    child = tree.ancestor(depth)
    return (child >= 0) & best[child]


def place(
    group: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return each entry's place in its group, from the least value on, and the group's size; among equals in order."""
    order = np.lexsort((value, group))
    at = np.empty_like(order)
    at[order] = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    return at, np.bincount(group)[group]


def above_extremes(
    tree: Tree, leaf: Int[np.ndarray, " leaf"], reward: Float[np.ndarray, " leaf"]
) -> Bool[np.ndarray, " node"]:
    """Return the nodes at or above the best and the worst quarter of each tree's leaves; a failed leaf is neither."""
    root = tree.root()[leaf]
    order = np.lexsort((reward, root))  # NaN sorts last
    place = np.arange(len(order)) - np.searchsorted(root[order], root[order])
    scored = np.bincount(root, ~np.isnan(reward))[root[order]]
    quarter = np.bincount(root)[root[order]] // 4
    kept = order[(place < scored) & ((place < quarter) | (place >= scored - quarter))]
    mark = np.full(len(leaf), np.nan)
    mark[kept] = 1.0
    return ~np.isnan(fuse(tree, leaf, mark))
