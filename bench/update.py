"""Selection -> optimiser steps: queries are evaluated with gradients, children of a parent sharing one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from bench.batch import Batch
from bench.contract import POLICIES, Algorithm
from bench.named import NamedPolicy, exchanged
from bench.noise import Noise
from bench.plan import Plan
from bench.policy import Condition, Policy, in_chunks
from bench.processes import ALONE, Processes, local, whole
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
    """Of this process's part of the trainable parameters, in order; empty without EMA."""
    named: Mapping[str, NamedPolicy] = field(default_factory=dict)
    """The policies that the algorithm needs beside the live one."""
    optimizer_steps: int = 0
    processes: Processes = ALONE

    def parameters(self) -> list[Tensor]:
        """Return the trainable parameters, in order."""
        return [p for p in self.policy.model.parameters() if p.requires_grad]

    def exchange(self, *, last: bool) -> AbstractContextManager[None]:
        """Return a context for a pass of an optimiser step: whole gradients are exchanged in the last one alone.

        A model in parts exchanges in every pass, or each process would hold the gradients of all of it.
        """
        in_parts = isinstance(self.policy.model, FSDPModule)
        return nullcontext() if last or in_parts else self.accelerator.no_sync(self.policy.model)

    def step(self) -> Tensor:
        """Clip the gradients, step the optimiser and the average; return the gradient norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1
        for policy in self.named.values():
            policy.is_live = False
        if self.ema_decay:
            n = self.optimizer_steps
            decay = min(self.ema_decay, (1 + n) / (10 + n))
            for average, parameter in zip(self.ema, self.parameters(), strict=True):
                average.lerp_(local(parameter.detach()).to(average.device), 1 - decay)
        assert norm is not None
        return whole(norm.detach()).to(self.policy.device)  # of no gradients at all it is a number on the CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """The frozen values that an update reads."""

    plan: Plan
    rollout: Rollout
    selection: Selection
    advantage: Float[np.ndarray, " node"]
    condition: Condition
    noise: Noise
    owner: Int[np.ndarray, " slot"]
    """The process that computes each slot, as `owners` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """Statistics of an iteration's optimiser steps."""

    loss: float
    grad_norm: float
    """Mean over the steps, before clipping."""
    drift: float | None
    """max |log-prob in training - log-prob in the rollout| on the first step: what rounding and batching cost.
    None, as the next two, for an objective that is not of transitions."""
    log_ratio_max: float | None
    """Largest |log ratio| of a transition's densities."""
    clip_fraction: float | None
    """Share of items whose ratio was outside the clip range; None where there is none, or it is of another ratio."""
    calls: int
    """Rows of training passes."""
    anchor_calls: int
    """Rows of the extra pass of anchor=recompute."""
    named_calls: Mapping[str, int]
    """Rows of the passes of `old`, `reference` and `ema`, each where the loss needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one process trains, by optimiser step."""

    selection: Selection
    parts: list[Int[np.ndarray, " _"]]
    """Queries of each step."""
    passes: list[list[Int[np.ndarray, " _"]]]
    """Queries of each forward and backward of each step."""


def owners(noise: Noise, slots: int, processes: int) -> Int[np.ndarray, " slot"]:
    """Return the process that computes each slot: of every shard each has as many, or one more."""
    owner = np.empty(slots, int)
    owner[np.concatenate(shards(noise, slots, 1))] = np.arange(slots) % processes
    return owner


def shards(noise: Noise, slots: int, count: int) -> list[Int[np.ndarray, " shard"]]:
    """Return the iteration's slots in `count` equal shards, in keyed random order."""
    return np.split(noise.generator("shards").permutation(slots), count)


def steps_of(it: Iteration, updates: int) -> Int[np.ndarray, " query"]:
    """Return the optimiser step of each query: the one that the selection names, or that of its slot's shard."""
    named = it.selection.update
    if named is not None:
        if named.max(initial=0) >= updates:
            raise ValueError(f"a query is to be trained in optimiser step {named.max()} of {updates}, counted from 0")
        return named
    step = np.empty(len(np.unique(it.plan.tree.slot)), int)
    for number, slots in enumerate(shards(it.noise, len(step), updates)):
        step[slots] = number
    return step[it.plan.tree.slot[it.selection.read]]


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
    """Return the batch of some of a selection's queries, with all their items; `needs` as in `Algorithm`."""
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
    """Train on a selection: one optimiser step a shard of the slots, or as the selection says.

    Args:
        trainer: changed by the call.
        algorithm: whose loss is minimised.
        it: the iteration's values.
        updates: optimiser steps, U, and so shards.
        chunk: about how many queries a forward and backward takes.
        anchor: "rollout" takes the ratio's denominator from the rollout, "recompute" from one extra pass.
        clip: the clip range, for statistics; None where the loss has none.
    """
    on_policy = it.plan.policy == "live" or trainer.named[it.plan.policy].is_live
    transitions = bool((it.plan.noise_level[it.selection.item_node] > 0).all())
    processes, every = trainer.processes, shares(it, trainer.processes.count, updates, chunk)
    mine, rounds = every[processes.rank], [max(map(len, step)) for step in zip(*[s.passes for s in every], strict=True)]
    # Gradients are averaged over processes; weights are of all of them, and of the iteration where none names its step.
    scale = float(processes.count * (updates if it.selection.update is None else 1))
    it, old, anchor_calls = replace(it, selection=mine.selection), it.rollout.log_prob, 0
    if anchor == "recompute" and updates > 1 and on_policy and transitions:
        later = [[batch for step in share.passes[1:] for batch in step] for share in every]
        old, anchor_calls = recomputed(trainer.policy, it, later[processes.rank], max(map(len, later)))
    named, named_calls = named_velocities(trainer, it, every, algorithm.needs & POLICIES, chunk)
    losses, norms, drifts, ratios = [], [], [], []
    for step, passes in enumerate(mine.passes):
        for number in range(rounds[step]):
            with trainer.exchange(last=number == rounds[step] - 1):
                if number >= len(passes):
                    trainer.accelerator.backward(idle(trainer.policy, it))
                    continue
                query = passes[number]
                batch = build_batch(it, query, old, scale, algorithm.needs)
                live = evaluate(trainer.policy, it, query, batch.x, batch.sigma)
                if transitions:
                    new = batch.log_prob(live.detach())
                    if step == 0 and on_policy:
                        drifts.append((new - batch.log_prob_old).abs().max())
                        batch = anchored(batch, live.detach())
                    ratios.append(new - batch.log_prob_old)
                known = {name: live.detach() if trainer.named[name].is_live else v[query] for name, v in named.items()}
                loss = checked_loss(algorithm.loss(batch, {"live": live} | known))
                trainer.accelerator.backward(loss)
                losses.append(loss.detach())
        norms.append(trainer.step())
    calls = sum(map(len, mine.parts)), anchor_calls, named_calls
    return _statistics(processes, losses, norms, drifts, ratios, clip, calls)


def shares(it: Iteration, count: int, updates: int, chunk: int) -> list[Share]:
    """Return what each process trains; every process knows all of them, for all must make equally many passes."""
    selection, step = it.selection, steps_of(it, updates)
    slot, found = it.plan.tree.slot[selection.read], []
    owner = it.owner[slot]
    for rank in range(count):
        mine = selection.part(owner == rank)
        parts = [np.flatnonzero(step[owner == rank] == number) for number in range(updates)]
        passes = [list(micro_batches(mine, part, chunk)) if len(part) else [] for part in parts]
        found.append(Share(selection=mine, parts=parts, passes=passes))
    return found


def idle(policy: Policy, it: Iteration) -> Tensor:
    """Return 0 from a pass of the policy, which has no gradient to add, but must be made with the other processes'."""
    x = it.rollout.x0[:1]
    first = it.condition.rows(torch.zeros(1, dtype=torch.long, device=x.device))
    return 0.0 * policy.velocity(x, torch.ones(1, device=x.device), first).sum()


def checked_loss(loss: object) -> Tensor:
    """Return what `loss` returned, if it can be minimised; else raise TypeError."""
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        kind = (
            f"a tensor of shape {tuple(loss.shape)}"
            if isinstance(loss, Tensor) and loss.ndim
            else "one without gradient"
        )
        raise TypeError(
            f"loss returned {kind if isinstance(loss, Tensor) else loss}; a scalar with a gradient is wanted"
        )
    return loss


def anchored(batch: Batch, velocity: Float[Tensor, "query *latent"]) -> Batch:
    """Return the batch as if `velocity` had sampled it: on policy the ratio is 1, whatever rounding says."""
    step = batch.transition(velocity)
    std = step.std.to(batch.x.device).view(-1, *[1] * (batch.x.ndim - 1))
    noise = None if batch.noise is None else (batch.target - step.mean) / std
    return replace(batch, log_prob_old=step.log_prob(batch.target), noise=noise)


@torch.no_grad()
def named_velocities(
    trainer: Trainer, it: Iteration, every: Sequence[Share], names: Collection[str], chunk: int
) -> tuple[dict[str, Float[Tensor, "query *latent"]], dict[str, int]]:
    """Return the velocities of named policies at the queries, before the first step, and the rows it took.

    One exchange of weights a policy, and full batches. A policy that is the live one at this moment is not evaluated
    on the first shard, whose live velocities serve, and needs no exchange for the others.
    """
    first = {name: 1 if trainer.named[name].is_live else 0 for name in sorted(names)}
    asked = {name: [np.concatenate([*s.parts[at:], np.arange(0)]) for s in every] for name, at in first.items()}
    mine = {name: to[trainer.processes.rank] for name, to in asked.items()}
    found, calls = dict.fromkeys(asked, it.rollout.x0), {name: len(queries) for name, queries in mine.items()}
    if not sum(len(queries) for to in asked.values() for queries in to):
        return found, calls  # the live velocities serve all
    selection = it.selection
    x, _ = _inputs(it, selection.read, selection.draw, selection.sigma)  # drawn once for all of them
    for name, queries in mine.items():
        policy, found[name] = trainer.named[name], torch.empty_like(x)
        rounds = max((len(in_chunks(len(theirs), chunk)) for theirs in asked[name] if len(theirs)), default=0)
        with nullcontext() if policy.is_live else exchanged(trainer.parameters(), policy):
            parts = in_chunks(len(queries), chunk) if len(queries) else []
            for rows in parts:
                query = queries[rows]
                at = torch.from_numpy(query).to(x.device)
                found[name][at] = evaluate(trainer.policy, it, query, x[at], _cpu(selection.sigma[query]))
            for _ in range(rounds - len(parts)):
                idle(trainer.policy, it)
    return found, calls


def evaluate(
    policy: Policy, it: Iteration, query: Int[np.ndarray, " query"], x: Float[Tensor, "query *latent"], sigma: Tensor
) -> Float[Tensor, "query *latent"]:
    """Return the policy's velocity at queries, with gradients if they are enabled."""
    slot = torch.from_numpy(it.plan.tree.slot[it.selection.read[query]]).to(x.device)
    return policy.velocity(x, sigma.to(x.device), it.condition.rows(slot))


@torch.no_grad()
def recomputed(
    policy: Policy, it: Iteration, passes: Sequence[Int[np.ndarray, " _"]], rounds: int
) -> tuple[Float[np.ndarray, " node"], int]:
    """Return the log-probs with those of the queries' items taken anew in training geometry, and the rows it took."""
    old = it.rollout.log_prob.copy()
    for query in passes:
        batch = build_batch(it, query, old, 1.0)
        value = batch.log_prob(evaluate(policy, it, query, batch.x, batch.sigma))
        old[it.selection.item_node[np.isin(it.selection.item_query, query)]] = value.double().cpu().numpy()
    for _ in range(rounds - len(passes)):
        idle(policy, it)
    return old, sum(map(len, passes))


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
    # Keyed, so that it need not be kept: the same draw as in the rollout, in units of the std that is scored.
    x = it.rollout.x0
    scale = it.plan.noise_scale[node].astype(np.float32).reshape(-1, *[1] * (x.ndim - 1))
    return torch.from_numpy(scale * it.noise.edges(it.plan.tree, node, it.plan.coupling, x.shape[1:])).to(x.device)


def _leaf_latent(it: Iteration, leaf: np.ndarray) -> Tensor:
    row = np.searchsorted(it.rollout.leaf, it.plan.tree.first_leaf()[leaf])
    return it.rollout.x0[torch.from_numpy(row).to(it.rollout.x0.device)]


def _cpu(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value)).float()


def _statistics(
    processes: Processes,
    losses: list[Tensor],
    norms: list[Tensor],
    drifts: list[Tensor],
    ratios: list[Tensor],
    clip: float | None,
    calls: tuple[int, int, Mapping[str, int]],
) -> Updated:
    # The only reads from the device of an update, after its last step.
    log_ratio = torch.cat(ratios).double().cpu().numpy() if ratios else np.zeros(0)
    loss = float(torch.stack(losses).sum()) if losses else 0.0
    drift = [float(torch.stack(drifts).max())] if drifts else []
    told = processes.gathered((loss, drift, log_ratio, calls))
    moved = np.concatenate([theirs for _, _, theirs, _ in told])
    apart = [value for _, theirs, _, _ in told for value in theirs]
    return Updated(
        loss=sum(theirs for theirs, *_ in told) / (len(norms) * processes.count),
        grad_norm=float(torch.stack(norms).mean()),
        drift=max(apart) if apart else None,
        log_ratio_max=float(np.abs(moved).max()) if moved.size else None,
        clip_fraction=float((np.abs(np.expm1(moved)) > clip).mean()) if moved.size and clip is not None else None,
        calls=sum(theirs[0] for *_, theirs in told),
        anchor_calls=sum(theirs[1] for *_, theirs in told),
        named_calls={name: sum(theirs[2][name] for *_, theirs in told) for name in calls[2]},
    )
