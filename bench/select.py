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
    """Global: over all slots, already divided; of the iteration, or where `update` says it, of the optimiser step."""
    update: Int[np.ndarray, " query"] | None = None
    """Optimiser step of the iteration in which a query is trained, for an algorithm that owns
    `updates_per_iteration`; None: the step of its slot's shard."""

    def __post_init__(self) -> None:
        queries, items = len(self.read), len(self.item_node)
        if not len(self.sigma) == len(self.draw) == len(self.unit) == queries:
            raise ValueError("read, sigma, draw and unit have one entry a query")
        if not len(self.item_query) == len(self.weight) == items:
            raise ValueError("item_query, item_node and weight have one entry an item")
        if items and not (0 <= self.item_query.min() and self.item_query.max() < queries):
            raise ValueError(f"item_query must be in 0..{queries - 1}")
        if self.update is not None:
            check_update(self.update, self.unit)

    def part(self, mine: Bool[np.ndarray, " query"]) -> Selection:
        """Return some of the queries, with all their items; weights and units stay as they are."""
        item = mine[self.item_query]
        return Selection(
            read=self.read[mine],
            sigma=self.sigma[mine],
            draw=self.draw[mine],
            unit=self.unit[mine],
            item_query=(np.cumsum(mine) - 1)[self.item_query[item]],
            item_node=self.item_node[item],
            weight=self.weight[item],
            update=None if self.update is None else self.update[mine],
        )


def check_update(update: Int[np.ndarray, " _"], unit: Int[np.ndarray, " query"]) -> None:
    """Raise ValueError unless there is an optimiser step a query, from 0 on, and one for all queries of a unit."""
    if len(update) != len(unit) or (update < 0).any():
        raise ValueError("update has one entry a query, from 0 on")
    if np.unique(np.stack([unit, update]), axis=1).shape[1] > len(np.unique(unit)):
        raise ValueError("the queries of a unit are trained in one optimiser step: they share a micro-batch")


def trainable(
    plan: Plan, leaf: Int[np.ndarray, " leaf"], reward: Float[np.ndarray, " leaf"], train_steps: tuple[int, ...]
) -> Bool[np.ndarray, " node"]:
    """Return the edges that may be trained: stochastic, at a step of `train_steps`, above a scored leaf."""
    at_step = np.isin(plan.tree.depth - 1, train_steps)
    return (plan.noise_level > 0) & at_step & has_valid_leaf(plan.tree, leaf, reward)


def trajectory(
    plan: Plan, chosen: Bool[np.ndarray, " node"], update: Int[np.ndarray, " node"] | None = None
) -> Selection:
    """Return one query a parent, with its chosen children as items: they share one forward and one backward.

    An edge weighs 1 / (trees * chosen edges of its tree), so that every tree has the same say (BranchGRPO eq. 5).
    Where `update` gives every edge an optimiser step, siblings seldom meet in one, and an edge is a query of its own:
    what is trained costs the same whichever steps are drawn.
    """
    node = np.flatnonzero(chosen)
    read, item_query = plan.tree.parent[node], np.arange(len(node))
    if update is None:
        read, item_query = np.unique(read, return_inverse=True)
    return Selection(
        read=read,
        sigma=plan.sigmas[plan.tree.depth[read]],
        draw=np.full(len(read), -1),
        unit=np.arange(len(read)),
        item_query=item_query,
        item_node=node,
        weight=edge_weight(plan.tree, node),
        update=None if update is None else update[node],
    )


def forward(
    plan: Plan,
    leaf: Int[np.ndarray, " chosen"],
    sigma: Float[np.ndarray, "#chosen draw"],
    *,
    shared: bool,
    together: bool = False,
) -> Selection:
    """Return queries of the forward process: every leaf of `leaf`, noised to each of its sigmas; an item each.

    The times are the algorithm's own: `train_steps` speaks of transitions, and of these there are none.

    Args:
        plan: of the rollout.
        leaf: nodes of the images that are trained on.
        sigma: to which each of them is noised; one row for all of them, or one each.
        shared: whether draw j is the same noise for all leaves of a slot, or one of its own for each.
        together: whether the draws of a leaf are a unit, which a micro-batch does not split.
    """
    every = plan.tree.leaves()
    slot = plan.tree.slot[every]
    place = np.arange(len(every)) - np.searchsorted(slot, slot)  # of all leaves, so that a failed one moves no noise
    draws = sigma.shape[1]
    first = place[np.searchsorted(every, leaf)] * (0 if shared else draws)
    node, query = np.repeat(leaf, draws), np.arange(len(leaf) * draws)
    return Selection(
        read=node,
        sigma=np.broadcast_to(sigma, (len(leaf), draws)).flatten(),
        draw=(first[:, None] + np.arange(draws)).ravel(),
        unit=query // draws if together else query,
        item_query=query,
        item_node=node,
        weight=edge_weight(plan.tree, node),
    )


def edge_weight(tree: Tree, node: Int[np.ndarray, " item"]) -> Float[np.ndarray, " item"]:
    """Return 1 / (trees * chosen edges of the edge's tree)."""
    root = tree.root()[node]
    trees = int(tree.offset[1])
    return 1.0 / (trees * np.bincount(root, minlength=trees)[root])
