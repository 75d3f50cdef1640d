"""What is trained: queries (a latent at a sigma) and the items that weigh on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from bench.plan import Plan
from bench.tree import Tree, has_valid_leaf


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Queries, their items, and the weights of the loss's sum."""

    read: Int[np.ndarray, " query"]
    """The node whose latent is read."""
    sigma: Float[np.ndarray, " query"]
    draw: Int[np.ndarray, " query"]
    """-1: the latent as stored; j >= 0: (1-sigma)*x0 + sigma*eps(slot, j), where equal j share eps."""
    unit: Int[np.ndarray, " query"]
    """Queries of one unit share a micro-batch."""
    item_query: Int[np.ndarray, " item"]
    item_node: Int[np.ndarray, " item"]
    weight: Float[np.ndarray, " item"]
    """Global: over all slots of the iteration, already divided."""

    def __post_init__(self) -> None:
        queries, items = len(self.read), len(self.item_node)
        if not len(self.sigma) == len(self.draw) == len(self.unit) == queries:
            raise ValueError("read, sigma, draw and unit have one entry a query")
        if not len(self.item_query) == len(self.weight) == items:
            raise ValueError("item_query, item_node and weight have one entry an item")
        if items and not (0 <= self.item_query.min() and self.item_query.max() < queries):
            raise ValueError(f"item_query must be in 0..{queries - 1}")


def trainable(
    plan: Plan, leaf: Int[np.ndarray, " leaf"], reward: Float[np.ndarray, " leaf"], train_steps: tuple[int, ...]
) -> Bool[np.ndarray, " node"]:
    """Return the edges that may be trained: stochastic, at a step of `train_steps`, above a scored leaf."""
    at_step = np.isin(plan.tree.depth - 1, train_steps)
    return (plan.noise_level > 0) & at_step & has_valid_leaf(plan.tree, leaf, reward)


def trajectory(plan: Plan, chosen: Bool[np.ndarray, " node"]) -> Selection:
    """Return one query a parent, with its chosen children as items: they share one forward and one backward.

    An edge weighs 1 / (trees * chosen edges of its tree), so that every tree has the same say (BranchGRPO eq. 5).
    """
    node = np.flatnonzero(chosen)
    read, item_query = np.unique(plan.tree.parent[node], return_inverse=True)
    return Selection(
        read=read,
        sigma=plan.sigmas[plan.tree.depth[read]],
        draw=np.full(len(read), -1),
        unit=np.arange(len(read)),
        item_query=item_query,
        item_node=node,
        weight=edge_weight(plan.tree, node),
    )


def edge_weight(tree: Tree, node: Int[np.ndarray, " item"]) -> Float[np.ndarray, " item"]:
    """Return 1 / (trees * chosen edges of the edge's tree)."""
    root = tree.root()[node]
    trees = int(tree.offset[1])
    return 1.0 / (trees * np.bincount(root, minlength=trees)[root])
