"""A rollout as a forest of level-ordered index arrays, and the arithmetic of values on it.

A node is a row; an edge is its child node; levels are contiguous, and within a level the children of one parent
are contiguous. There are no node objects and no loops over nodes: every function works level by level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tree:
    """A forest: the trees of all slots of an iteration."""

    parent: Int[np.ndarray, " node"]
    """-1 for a root."""
    depth: Int[np.ndarray, " node"]
    """Denoising steps taken."""
    slot: Int[np.ndarray, " node"]
    """Position in the iteration's global list of prompts."""
    offset: Int[np.ndarray, " level_plus_1"]
    """Nodes of depth d are offset[d]:offset[d+1]."""

    def __post_init__(self) -> None:
        roots = self.parent < 0
        if not (np.diff(self.depth) >= 0).all() or not (roots == (self.depth == 0)).all():
            raise ValueError("a tree is ordered by level, with exactly its roots at depth 0")
        child = ~roots
        if (self.depth[self.parent[child]] != self.depth[child] - 1).any():
            raise ValueError("a child stands one level below its parent")
        if (self.slot[self.parent[child]] != self.slot[child]).any():
            raise ValueError("a child belongs to its parent's slot")
        if (np.diff(self.parent[child]) < 0).any():
            raise ValueError("children stand in the order of their parents")

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def steps(self) -> int:
        """Return the depth of the deepest node."""
        return len(self.offset) - 2

    def level(self, depth: int) -> slice:
        """Return the nodes of a depth."""
        return slice(int(self.offset[depth]), int(self.offset[depth + 1]))

    def fanout(self) -> Int[np.ndarray, " node"]:
        """Return the number of children of each node."""
        return np.bincount(self.parent[self.parent >= 0], minlength=len(self))

    def leaves(self) -> Int[np.ndarray, " leaf"]:
        """Return the nodes without children, in order."""
        return np.flatnonzero(self.fanout() == 0)

    def root(self) -> Int[np.ndarray, " node"]:
        """Return the root above each node: the name of its tree."""
        return self.ancestor(0)

    def ancestor(self, depth: int) -> Int[np.ndarray, " node"]:
        """Return each node's ancestor (or self) at a depth; -1 for nodes above it."""
        above = np.full(len(self), -1)
        above[self.level(depth)] = np.arange(len(self))[self.level(depth)]
        for d in range(depth + 1, self.steps + 1):
            above[self.level(d)] = above[self.parent[self.level(d)]]
        return above

    def first_leaf(self) -> Int[np.ndarray, " node"]:
        """Return the row, among the leaves, of the first leaf below (or at) each node."""
        below = np.full(len(self), -1)
        leaf = self.leaves()
        below[leaf] = np.arange(len(leaf))
        for d in range(self.steps, 0, -1):
            # Assigned from the last child to the first, so that the first one stays.
            below[self.parent[self.level(d)][::-1]] = below[self.level(d)][::-1]
        return below

    def rank(self) -> Int[np.ndarray, " node"]:
        """Return each node's position among its siblings; for roots, among the roots of their slot."""
        family = np.where(self.parent >= 0, self.parent, -1 - self.slot)
        first = np.flatnonzero(np.r_[True, np.diff(family) != 0])
        return np.arange(len(self)) - np.repeat(first, np.diff(np.r_[first, len(self)]))


def forest(fanout: Sequence[int], slots: int, roots: int = 1) -> Tree:
    """Return `roots` equal trees a slot, in which every node at depth d has `fanout[d]` children."""
    if roots < 1 or any(k < 1 for k in fanout):
        raise ValueError(f"a forest needs at least one slot, root and child a node: {roots=}, fanout={list(fanout)}")
    widths = roots * np.cumprod([1, *fanout])
    return grow([np.full(width, k) for width, k in zip(widths, fanout, strict=False)], slots)


def grow(fanout: Sequence[Int[np.ndarray, " _"]], slots: int) -> Tree:
    """Return the forest in which node i of depth d, of every slot, has `fanout[d][i]` children.

    Raises:
        ValueError: unless every node above the last level has a child, and a level the nodes that the one above says.
    """
    widths = np.array([len(fanout[0]), *(children.sum() for children in fanout)])
    if slots < 1 or any((children < 1).any() for children in fanout):
        raise ValueError(f"a forest needs at least one slot, root and child a node: {slots=}")
    if [len(children) for children in fanout] != widths[:-1].tolist():
        raise ValueError(f"levels of {[len(children) for children in fanout]} nodes, by the fan-out {widths.tolist()}")
    offset = np.r_[0, np.cumsum(slots * widths)]
    depth = np.repeat(np.arange(len(widths)), slots * widths)
    slot = np.concatenate([np.repeat(np.arange(slots), width) for width in widths])
    parents = [
        np.repeat(np.arange(offset[d], offset[d + 1]), np.tile(children, slots)) for d, children in enumerate(fanout)
    ]
    parent = np.concatenate([np.full(slots * widths[0], -1), *parents])
    return Tree(parent=parent, depth=depth, slot=slot, offset=offset)


def of_slots(tree: Tree, slots: Int[np.ndarray, " some"]) -> tuple[Tree, Int[np.ndarray, " part"]]:
    """Return the trees of some slots, whose numbers stay, and the place of each of their nodes in the whole."""
    node = np.flatnonzero(np.isin(tree.slot, slots))
    place = np.full(len(tree) + 1, -1)  # the last entry is the parent -1 of a root
    place[node] = np.arange(len(node))
    part = Tree(
        parent=place[tree.parent[node]],
        depth=tree.depth[node],
        slot=tree.slot[node],
        offset=np.searchsorted(tree.depth[node], np.arange(tree.steps + 2)),
    )
    return part, node


def path_sum(tree: Tree, value: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """Return the sum of `value` over the edges from the root to each node; NaN counts as 0 (an ODE edge)."""
    total = np.nan_to_num(value, nan=0.0)
    total[tree.level(0)] = 0.0
    for d in range(1, tree.steps + 1):
        total[tree.level(d)] += total[tree.parent[tree.level(d)]]
    return total


def log_share(tree: Tree, log_prob: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """Return the log of each edge's softmax among its siblings; 0 of an only child, whatever its log-prob."""
    known, child = np.nan_to_num(log_prob, nan=0.0), tree.parent >= 0
    total = np.full(len(tree), -np.inf)
    np.logaddexp.at(total, tree.parent[child], known[child])
    return np.where(child, known - total[tree.parent], 0.0)


def fuse(
    tree: Tree,
    leaf: Int[np.ndarray, " leaf"],
    reward: Float[np.ndarray, " leaf"],
    log_weight: Float[np.ndarray, " leaf"] | None = None,
) -> Float[np.ndarray, " node"]:
    """Return each node's mean of its leaves' rewards, weighted by softmax(log_weight) over those leaves.

    BranchGRPO eq. (3). Leaves with a NaN reward are left out; a node without any other leaf is NaN.
    """
    valid = ~np.isnan(reward)
    mass = np.full(len(tree), -np.inf)
    mass[leaf] = np.where(valid, 0.0 if log_weight is None else log_weight, -np.inf)
    value = np.zeros(len(tree))
    value[leaf] = np.where(valid, reward, 0.0)
    for d in range(tree.steps, 0, -1):
        child, parent = np.arange(len(tree))[tree.level(d)], tree.parent[tree.level(d)]
        above = tree.level(d - 1)
        top = np.full(len(tree), -np.inf)
        np.maximum.at(top, parent, mass[child])
        share = np.exp(mass[child] - np.where(np.isfinite(top), top, 0.0)[parent])
        total = np.bincount(parent, share, minlength=len(tree))
        sums = np.bincount(parent, share * value[child], minlength=len(tree))
        inner = np.zeros(len(tree), bool)
        inner[above] = total[above] > 0
        value[inner] = sums[inner] / total[inner]
        mass[inner] = top[inner] + np.log(total[inner])
    return np.where(np.isfinite(mass), value, np.nan)


def normalize(
    value: Float[np.ndarray, " n"],
    segment: Int[np.ndarray, " n"],
    *,
    ddof: int,
    eps: float,
    spread: Int[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, " n"]:
    """Return (value - mean) / (std + eps): the mean of each segment, the std of each segment, or of each `spread`.

    The sources disagree on scope, `ddof` and `eps`, so the caller states all three. NaN values are left out of the
    statistics and stay NaN; a segment with too few values for a std gives 0.
    """
    if ddof not in (0, 1) or not 0 <= eps < np.inf:
        raise ValueError(f"ddof={ddof}, eps={eps}: ddof is 0 or 1, and eps a number from 0 on")
    valid = ~np.isnan(value)
    centred, _ = deviation(value, segment, ddof)
    _, std = deviation(value, segment if spread is None else spread, ddof)
    return np.where(valid, centred / (std + eps), np.nan)


def deviation(
    value: Float[np.ndarray, " n"], segment: Int[np.ndarray, " n"], ddof: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return each value's distance from its segment's mean (0 for NaN), and its segment's std."""
    valid = ~np.isnan(value)
    _, group = np.unique(segment, return_inverse=True)
    known = np.where(valid, value, 0.0)
    count = np.bincount(group, valid)
    mean = np.bincount(group, known) / np.maximum(count, 1)
    centred = np.where(valid, known - mean[group], 0.0)
    return centred, np.sqrt(np.bincount(group, centred**2) / np.maximum(count - ddof, 1))[group]


def has_valid_leaf(
    tree: Tree, leaf: Int[np.ndarray, " leaf"], reward: Float[np.ndarray, " leaf"]
) -> Bool[np.ndarray, " node"]:
    """Return which nodes stand above (or are) a leaf that was scored."""
    return ~np.isnan(fuse(tree, leaf, reward))
