"""What the tree arithmetic means, said slowly: node objects, recursion, Python's own statistics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from bench.tree import Tree


@dataclass(eq=False)
class TreeNode:
    """A node object, as the array tree has none."""

    index: int
    slot: int
    parent: TreeNode | None
    children: list[TreeNode] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    def path(self) -> list[TreeNode]:
        """Return the nodes from the root to this one."""
        return [*(self.parent.path() if self.parent else []), self]

    def all(self) -> Iterator[TreeNode]:
        yield self
        for child in self.children:
            yield from child.all()

    def leaves(self) -> list[TreeNode]:
        """Return the leaves below, from the first child to the last."""
        return [leaf for child in self.children for leaf in child.leaves()] or [self]


def grow(tree: Tree) -> list[TreeNode]:
    """Return the roots of a forest as objects."""
    roots = []
    known: dict[int, TreeNode] = {}
    for index, (parent, slot) in enumerate(zip(tree.parent.tolist(), tree.slot.tolist(), strict=True)):
        known[index] = TreeNode(index, slot, known.get(parent))
        (roots if parent < 0 else known[parent].children).append(known[index])
    return roots


def nodes(tree: Tree) -> list[TreeNode]:
    """Return all nodes as objects, in the order of the arrays."""
    return sorted((n for root in grow(tree) for n in root.all()), key=lambda n: n.index)


def fused(node: TreeNode, reward: Mapping[int, float], log_weight: Mapping[int, float]) -> float:
    """Return eq. (3): the softmax-weighted mean over all scored leaves below a node."""
    scored = [leaf.index for leaf in node.leaves() if not math.isnan(reward[leaf.index])]
    if not scored:
        return math.nan
    top = max(log_weight[i] for i in scored)
    weight = [math.exp(log_weight[i] - top) for i in scored]
    return math.fsum(w * reward[i] for w, i in zip(weight, scored, strict=True)) / math.fsum(weight)


def shared_upwards(node: TreeNode, reward: Mapping[int, float], log_prob: np.ndarray) -> float:
    """Return the official code's value: of a node its children's, weighted by the softmax of their edges alone."""
    if not node.children:
        return reward[node.index]
    weight = [math.exp(log_prob[child.index]) if len(node.children) > 1 else 1.0 for child in node.children]
    values = [shared_upwards(child, reward, log_prob) for child in node.children]
    return math.fsum(w * v for w, v in zip(weight, values, strict=True)) / math.fsum(weight)


def normalized(values: list[float], ddof: int, eps: float) -> list[float]:
    """Return (value - mean) / (std + eps), NaN left out; 0 where there are too few values for a std."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return values
    mean = math.fsum(known) / len(known)
    too_few = len(known) <= ddof
    std = 0.0 if too_few else statistics.stdev(known) if ddof else statistics.pstdev(known)
    return [(v - mean) / (std + eps) for v in values]


def kept_below_best(tree: Tree, score: np.ndarray, depth: int) -> set[int]:
    """Return the nodes at or below the first of the best children, at a depth, of every parent."""
    kept: set[int] = set()
    for parent in nodes(tree):
        if parent.depth == depth - 1 and parent.children:
            best = max(parent.children, key=lambda child: score[child.index])
            kept |= {n.index for n in best.all()}
    return kept


def kept_above_extremes(tree: Tree, reward: Mapping[int, float]) -> set[int]:
    """Return the nodes at or above the best and the worst quarter of each tree's leaves."""
    kept: set[int] = set()
    for root in grow(tree):
        leaves = root.leaves()
        ranked = sorted((n for n in leaves if not math.isnan(reward[n.index])), key=lambda n: reward[n.index])
        quarter = len(leaves) // 4
        ends = ranked if 2 * quarter >= len(ranked) else [*ranked[:quarter], *ranked[len(ranked) - quarter :]]
        kept |= {above.index for leaf in (ends if quarter else []) for above in leaf.path()}
    return kept


@st.composite
def forests(draw: st.DrawFn, most_children: int = 3, levels: int = 4) -> Tree:
    """Draw a ragged forest: slots with one or two roots, every node with a fan-out of its own, 0 included."""
    roots = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    slot = [s for s, count in enumerate(roots) for _ in range(count)]
    parent, depth, offset = [-1] * len(slot), [0] * len(slot), [0, len(slot)]
    level = list(range(len(slot)))
    for d in range(1, draw(st.integers(1, levels)) + 1):
        fans = draw(st.lists(st.integers(0, most_children), min_size=len(level), max_size=len(level)))
        children = [n for n, k in zip(level, fans, strict=True) for _ in range(k)][:20]
        if not children:
            break
        level = list(range(len(parent), len(parent) + len(children)))
        parent += children
        slot += [slot[n] for n in children]
        depth += [d] * len(children)
        offset.append(len(parent))
    return Tree(parent=np.array(parent), depth=np.array(depth), slot=np.array(slot), offset=np.array(offset))
