"""Plan -> Rollout: one policy call a level for the trees of all slots, so that shared prefixes run once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench import kernel
from bench.noise import Noise
from bench.plan import Plan
from bench.policy import Condition, Policy, in_chunks, velocities
from bench.processes import Processes
from bench.solver import dpm2m


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The latents a later stage may read, the images' latents, and the log-prob of every stochastic edge."""

    log_prob: Float[np.ndarray, " node"]
    """Of the latent as stored; NaN on ODE edges and roots."""
    latent: Float[Tensor, "kept *latent"]
    row: Int[np.ndarray, " node"]
    """Where a node's latent is in `latent`; -1 where it was not kept, or is on another process."""
    x0: Float[Tensor, "here *latent"]
    leaf: Int[np.ndarray, " here"]
    """Which leaves `x0` has, by their position among all."""
    calls: int
    """Rows of the policy's evaluations."""

    def at(self, node: Int[np.ndarray, " n"]) -> Float[Tensor, "n *latent"]:
        """Return the latents of nodes.

        Raises:
            KeyError: for a node whose level was not kept.
        """
        if (self.row[node] < 0).any():
            raise KeyError("the latent of a node outside the trained steps was not kept")
        return self.latent[torch.from_numpy(self.row[node]).to(self.latent.device)]


def shared_rollout(
    policy: Policy,
    plan: Plan,
    condition: Condition,
    noise: Noise,
    *,
    keep: Collection[int],
    chunk: int,
    owner: Int[np.ndarray, " slot"],
    processes: Processes,
) -> Rollout:
    """Return the plan's rollout of which every process computes its own slots, as `owner` says.

    Log-probs and calls are of all processes, latents of this one.
    """
    if processes.count == 1:
        return rollout(policy, plan, condition, noise, keep=keep, chunk=chunk)
    shares = [plan.part(np.flatnonzero(owner == rank)) for rank in range(processes.count)]
    widths = np.array([np.diff(part.tree.offset)[:-1] for part, _ in shares])
    calls = [max(len(in_chunks(width, chunk)) for width in at_step) for at_step in widths.T.tolist()]
    mine, node = shares[processes.rank]
    rolled = rollout(policy, mine, condition, noise, keep=keep, chunk=chunk, calls=calls)
    log_prob, row = np.full(len(plan.tree), np.nan), np.full(len(plan.tree), -1)
    for (_, theirs), value in zip(shares, processes.gathered(rolled.log_prob), strict=True):
        log_prob[theirs] = value
    row[node] = rolled.row
    leaf = np.flatnonzero(owner[plan.tree.slot[plan.tree.leaves()]] == processes.rank)
    return replace(rolled, log_prob=log_prob, row=row, leaf=leaf, calls=int(widths.sum()))


@torch.no_grad()
def rollout(
    policy: Policy,
    plan: Plan,
    condition: Condition,
    noise: Noise,
    *,
    keep: Collection[int] = (),
    chunk: int,
    calls: Sequence[int] = (),
) -> Rollout:
    """Return the plan's rollout.

    Args:
        policy: who samples.
        plan: where the forest branches and is stochastic.
        condition: the slots' encoded prompts, one a row.
        noise: the iteration's keyed noise.
        keep: steps whose edges may be trained: the latents at both their ends are kept.
        chunk: most rows of one policy call.
        calls: least policy calls at each step, so that processes make equally many.
    """
    tree, device = plan.tree, policy.device
    scored: list[tuple[np.ndarray, Tensor]] = []
    row = np.full(len(tree), -1)
    kept: list[Tensor] = []
    x = torch.from_numpy(noise.roots(tree, plan.coupling, policy.latent_shape)).to(device)
    history: tuple[Tensor, Tensor] | None = None
    for step in range(plan.steps):
        if step in keep or step - 1 in keep:
            row[tree.level(step)] = sum(map(len, kept)) + np.arange(len(x))
            kept.append(x)
        sigma = torch.full((len(x),), float(plan.sigmas[step]), device=device)
        slot = torch.from_numpy(tree.slot[tree.level(step)]).to(device)
        velocity = velocities(policy, x, sigma, condition, slot, chunk, calls[step] if calls else 0)
        x0 = kernel.clean_prediction(velocity, x, float(plan.sigmas[step])) if "dpm2m" in plan.solver else velocity
        up = torch.from_numpy(tree.parent[tree.level(step + 1)] - int(tree.offset[step])).to(device)
        previous = None if history is None else history[0][history[1]]
        x, node, value = _advance(plan, noise, step, x, velocity, up, previous)
        scored.append((node, value))
        history = (x0, up)
    return Rollout(
        log_prob=_gather(len(tree), scored),
        latent=torch.cat(kept) if kept else x[:0],
        row=row,
        x0=x,
        leaf=np.arange(len(x)),
        calls=int(tree.offset[-2]),
    )


def _advance(
    plan: Plan, noise: Noise, step: int, x: Tensor, velocity: Tensor, up: Tensor, x0_previous: Tensor | None
) -> tuple[Tensor, np.ndarray, Tensor]:
    """Return the next level's latents, its stochastic nodes and their log-probs; `up` is each child's parent row."""
    level = plan.tree.level(step + 1)
    levels = plan.noise_level[level]
    stochastic = np.flatnonzero(levels > 0)
    sigma, sigma_next = float(plan.sigmas[step]), float(plan.sigmas[step + 1])
    node = stochastic + level.start
    log_prob = x.new_empty(0)
    if len(stochastic) == len(levels):
        x_next = x.new_empty((len(levels), *x.shape[1:]))
    else:
        x_next = _deterministic(plan, step, x, velocity, x0_previous)[up]
    if len(stochastic):
        at = torch.from_numpy(stochastic).to(x.device)
        eps = torch.from_numpy(noise.edges(plan.tree, node, plan.coupling, x.shape[1:])).to(x.device)
        scale = torch.from_numpy(plan.noise_scale[node]).to(eps)
        gauss = kernel.step(
            plan.kernel,
            velocity[up[at]],
            x[up[at]],
            sigma,
            sigma_next,
            torch.from_numpy(levels[stochastic]).float(),
            float(plan.sigmas[1]),
        )
        x_next[at] = gauss.sample(eps * scale.view(-1, *[1] * (eps.ndim - 1)))
        log_prob = gauss.log_prob(x_next[at])  # of the value as stored
    return x_next, node, log_prob


def _deterministic(plan: Plan, step: int, x: Tensor, velocity: Tensor, x0_previous: Tensor | None) -> Tensor:
    sigma, sigma_next = float(plan.sigmas[step]), float(plan.sigmas[step + 1])
    if plan.solver[step] == "dpm2m":
        sigma_previous = float(plan.sigmas[step - 1]) if step else None
        return dpm2m(velocity, x, sigma, sigma_next, x0_previous, sigma_previous)
    return kernel.ode(velocity, x, sigma, sigma_next).mean


def _gather(nodes: int, scored: list[tuple[np.ndarray, Tensor]]) -> np.ndarray:
    # Read from the device once, after the last step.
    log_prob = np.full(nodes, np.nan)
    node = np.concatenate([node for node, _ in scored])
    log_prob[node] = torch.cat([value for _, value in scored]).double().cpu().numpy()
    return log_prob
