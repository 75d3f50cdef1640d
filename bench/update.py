"""Selection -> optimiser steps: queries are evaluated with gradients, children of a parent sharing one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor

from bench.batch import Batch
from bench.contract import Algorithm
from bench.noise import Noise
from bench.plan import Plan
from bench.policy import Condition, Policy, in_chunks
from bench.rollout import Rollout
from bench.select import Selection


@dataclass(slots=True, kw_only=True)
class Trainer:
    """What an update changes: the policy's weights, the optimiser's state, the weights' moving average."""

    policy: Policy
    accelerator: Accelerator
    optimizer: torch.optim.Optimizer
    ema_decay: float
    """0 keeps no average."""
    max_grad_norm: float
    ema: list[Tensor]
    """Of the trainable parameters, in order; empty without EMA."""
    optimizer_steps: int = 0

    def parameters(self) -> list[Tensor]:
        """Return the trainable parameters, in order."""
        return [p for p in self.policy.model.parameters() if p.requires_grad]

    def step(self) -> Tensor:
        """Clip the gradients, step the optimiser and the average; return the gradient norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1
        if self.ema_decay:
            n = self.optimizer_steps
            decay = min(self.ema_decay, (1 + n) / (10 + n))
            for average, parameter in zip(self.ema, self.parameters(), strict=True):
                average.lerp_(parameter.detach(), 1 - decay)
        assert norm is not None
        return norm.detach().to(self.policy.device)  # of no gradients at all it is a number on the CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """The frozen values that an update reads."""

    plan: Plan
    rollout: Rollout
    selection: Selection
    advantage: Float[np.ndarray, " node"]
    condition: Condition
    noise: Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """Statistics of an iteration's optimiser steps."""

    loss: float
    grad_norm: float
    """Mean over the steps, before clipping."""
    drift: float
    """max |log-prob in training - log-prob in the rollout| on the first shard: what rounding and batching cost."""
    log_ratio_max: float
    """Largest |log ratio| that entered a loss."""
    clip_fraction: float
    """Share of items whose ratio was outside the clip range."""
    calls: int
    """Rows of training passes."""
    anchor_calls: int
    """Rows of the extra pass of anchor=recompute."""


def shards(noise: Noise, slots: int, count: int) -> list[Int[np.ndarray, " shard"]]:
    """Return the iteration's slots in `count` equal shards, in keyed random order."""
    return np.split(noise.generator("shards").permutation(slots), count)


def micro_batches(selection: Selection, query: Int[np.ndarray, " n"], chunk: int) -> Iterator[Int[np.ndarray, " m"]]:
    """Yield the queries in batches of about `chunk` that split no unit."""
    _, first, size = np.unique(selection.unit[query], return_index=True, return_counts=True)
    if size.max(initial=1) == 1:
        yield from (query[rows] for rows in in_chunks(len(query), chunk))
        return
    batch: list[np.ndarray] = []
    for unit in selection.unit[query[np.sort(first)]]:
        members = query[selection.unit[query] == unit]
        if batch and sum(map(len, batch)) + len(members) > chunk:
            yield np.concatenate(batch)
            batch = []
        batch.append(members)
    yield np.concatenate(batch)


def build_batch(
    it: Iteration,
    query: Int[np.ndarray, " query"],
    log_prob_old: Float[np.ndarray, " node"],
    weight_scale: float,
    needs: Collection[str] = (),
) -> Batch:
    """Return the batch of some of a selection's queries, with all their items; `needs` as in `Info`."""
    plan, selection, device = it.plan, it.selection, it.rollout.latent.device
    position = np.full(len(selection.read), -1)
    position[query] = np.arange(len(query))
    items = np.flatnonzero(position[selection.item_query] >= 0)
    node, read, draw = selection.item_node[items], selection.read[query], selection.draw[query]
    depth = plan.tree.depth[read]
    x, eps = _inputs(it, read, draw, selection.sigma[query])
    forward = (draw >= 0).any()
    return Batch(
        x=x,
        eps=eps,
        sigma=_cpu(selection.sigma[query]),
        sigma_next=_cpu(plan.sigmas[np.minimum(depth + 1, plan.steps)]),
        unit=torch.from_numpy(selection.unit[query]),
        item_query=torch.from_numpy(position[selection.item_query[items]]),
        target=_leaf_latent(it, node) if forward else it.rollout.at(node),
        noise=_edge_noise(it, node) if "noise" in needs else None,
        noise_level=_cpu(plan.noise_level[node]),
        log_prob_old=_cpu(log_prob_old[node]).to(device),
        advantage=_cpu(it.advantage[node]).to(device),
        weight=_cpu(selection.weight[items] * weight_scale).to(device),
        kernel=plan.kernel,
        sigma_one=float(plan.sigmas[1]),
    )


def update(
    trainer: Trainer,
    algorithm: Algorithm,
    it: Iteration,
    *,
    updates: int,
    chunk: int,
    anchor: str,
    clip: float | None,
) -> Updated:
    """Train on a selection: one optimiser step a shard of the slots.

    Args:
        trainer: changed by the call.
        algorithm: whose loss is minimised.
        it: the iteration's values.
        updates: shards, and so optimiser steps, U.
        chunk: about how many queries a forward and backward takes.
        anchor: "rollout" takes the ratio's denominator from the rollout, "recompute" from one extra pass.
        clip: the clip range, for statistics; None where the loss has none.
    """
    slot = it.plan.tree.slot[it.selection.read]
    parts = [np.flatnonzero(np.isin(slot, s)) for s in shards(it.noise, len(np.unique(it.plan.tree.slot)), updates)]
    old, anchor_calls = it.rollout.log_prob, 0
    if anchor == "recompute" and updates > 1:
        old, anchor_calls = recomputed(trainer.policy, it, np.concatenate(parts[1:]), chunk)
    losses, norms, drifts, ratios, calls = [], [], [], [], 0
    for shard, queries in enumerate(parts):
        for query in micro_batches(it.selection, queries, chunk) if len(queries) else ():
            batch = build_batch(it, query, old, float(updates), algorithm.info.needs)
            velocity = evaluate(trainer.policy, it, query, batch)
            calls += len(velocity)
            scored = batch.noise_level > 0
            if scored.all():
                new = batch.log_prob(velocity.detach())
                if shard == 0:
                    drifts.append((new - batch.log_prob_old).abs().max())
                    batch = replace(batch, log_prob_old=new)  # on policy: the ratio is 1, whatever rounding says
                ratios.append(new - batch.log_prob_old)
            loss = algorithm.loss(batch, {"live": velocity})
            trainer.accelerator.backward(loss)
            losses.append(loss.detach())
        norms.append(trainer.step())
    return _statistics(losses, norms, drifts, ratios, clip, calls, anchor_calls)


def evaluate(policy: Policy, it: Iteration, query: Int[np.ndarray, " query"], batch: Batch) -> Tensor:
    """Return the live policy's velocity at a batch's queries, with gradients if they are enabled."""
    slot = torch.from_numpy(it.plan.tree.slot[it.selection.read[query]]).to(batch.x.device)
    return policy.velocity(batch.x, batch.sigma.to(batch.x.device), it.condition.rows(slot))


@torch.no_grad()
def recomputed(
    policy: Policy, it: Iteration, queries: Int[np.ndarray, " n"], chunk: int
) -> tuple[Float[np.ndarray, " node"], int]:
    """Return the log-probs with those of the queries' items taken anew in training geometry, and the rows it took."""
    old = it.rollout.log_prob.copy()
    for query in micro_batches(it.selection, queries, chunk):
        batch = build_batch(it, query, old, 1.0)
        value = batch.log_prob(evaluate(policy, it, query, batch))
        old[it.selection.item_node[np.isin(it.selection.item_query, query)]] = value.double().cpu().numpy()
    return old, len(queries)


def _inputs(it: Iteration, read: np.ndarray, draw: np.ndarray, sigma: np.ndarray) -> tuple[Tensor, Tensor | None]:
    if (draw < 0).all():
        return it.rollout.at(read), None
    if (draw < 0).any():
        raise ValueError("a micro-batch holds stored latents or noised leaves, not both; give them units of their own")
    x0 = _leaf_latent(it, read)
    eps = it.noise.forward(it.plan.tree.slot[read], draw, x0.shape[1:])
    eps = torch.from_numpy(eps).to(x0.device)
    level = _cpu(sigma).to(x0.device).view(-1, *[1] * (x0.ndim - 1))
    return (1 - level) * x0 + level * eps, eps


def _edge_noise(it: Iteration, node: np.ndarray) -> Tensor:
    # Keyed, so that it need not be kept: the same draw as in the rollout.
    x = it.rollout.x0
    return torch.from_numpy(it.noise.edges(it.plan.tree, node, it.plan.coupling, x.shape[1:])).to(x.device)


def _leaf_latent(it: Iteration, leaf: np.ndarray) -> Tensor:
    return it.rollout.x0[torch.from_numpy(it.plan.tree.first_leaf()[leaf]).to(it.rollout.x0.device)]


def _cpu(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value)).float()


def _statistics(
    losses: list[Tensor],
    norms: list[Tensor],
    drifts: list[Tensor],
    ratios: list[Tensor],
    clip: float | None,
    calls: int,
    anchor_calls: int,
) -> Updated:
    # The only reads from the device of an update, after its last step.
    log_ratio = torch.cat(ratios).double().cpu().numpy() if ratios else np.zeros(1)
    outside = np.abs(np.expm1(log_ratio)) > (np.inf if clip is None else clip)
    return Updated(
        loss=float(torch.stack(losses).sum()) / len(norms) if losses else 0.0,
        grad_norm=float(torch.stack(norms).mean()),
        drift=float(torch.stack(drifts).max()) if drifts else 0.0,
        log_ratio_max=float(np.abs(log_ratio).max()),
        clip_fraction=float(outside.mean()),
        calls=calls,
        anchor_calls=anchor_calls,
    )
