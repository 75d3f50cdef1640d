"""One cell from its first iteration to DONE; takes objects, knows no names. Resumes from the newest checkpoint."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from bench import checkpoint, record
from bench.accelerated import prepare
from bench.budget import exhausted
from bench.config import Cell, Shared
from bench.contract import POLICIES, Memory, Reward, UnavailableError, checked_decay
from bench.cost import Clock, forget_host_peak, nfe, peak_host_bytes
from bench.data import of_iteration
from bench.named import NamedPolicy, exchanged, follow, keep
from bench.noise import Noise
from bench.plan import Plan
from bench.policy import Policy, Rows
from bench.processes import ALONE, Processes, local
from bench.rollout import Rollout, shared_rollout
from bench.score import (
    Scores,
    advantages,
    check_scored,
    decode,
    gathered,
    joined,
    outcomes,
    score,
    together,
    whole_groups,
)
from bench.update import Iteration, Trainer, Updated, owners, update

TRACKED = ("reward_total", "loss", "grad_norm", "drift", "log_ratio_max", "clip_fraction", "failed", "samples")
"""Numbers of a row that trackers are told, beside its rewards, calls and seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The objects that a cell is trained with."""

    cell: Cell
    policy: Policy
    accelerator: Accelerator
    rewards: Mapping[str, Reward]
    weight: Mapping[str, float]
    prompts: tuple[str, ...]
    condition: Rows
    """Of the prompts, one a row."""
    processes: Processes = ALONE


def make_trainer(parts: Parts) -> Trainer:
    """Return a trainer at optimiser step 0."""
    shared, policy, accelerator = parts.cell.shared, parts.policy, parts.accelerator
    optimizer = torch.optim.AdamW(
        [p for p in policy.model.parameters() if p.requires_grad],
        lr=shared.lr,
        betas=shared.betas,
        weight_decay=shared.weight_decay,
    )
    optimizer = prepare(accelerator, policy, optimizer, shared)
    parameters = [local(p.detach()) for p in policy.model.parameters() if p.requires_grad]
    where = average_device(shared, policy.device)
    return Trainer(
        policy=policy,
        accelerator=accelerator,
        optimizer=optimizer,
        ema_decay=shared.ema,
        max_grad_norm=shared.max_grad_norm,
        ema=[p.to(where, copy=True) for p in parameters] if shared.ema else [],
        named={name: NamedPolicy() for name in sorted(parts.cell.algorithm.needs & POLICIES)},
        processes=parts.processes,
    )


def average_device(shared: Shared, model: torch.device) -> torch.device:
    """Return where the moving average is kept."""
    return torch.device("cpu") if shared.ema_device == "cpu" else model


def sampling(trainer: Trainer, policy: str) -> AbstractContextManager[None]:
    """Return a context in which the model computes as the policy that a plan says samples."""
    if policy == "live" or trainer.named[policy].is_live:
        return nullcontext()
    return exchanged(trainer.parameters(), trainer.named[policy])


def train(parts: Parts, folder: Path, show: Callable[[Trainer, int], None]) -> Trainer:
    """Run the iterations that are missing; return the trained state.

    What the newest checkpoint holds has happened, rows past it are cut, and every draw is keyed: a cell that was
    killed ends with the records of one that was not.

    Args:
        parts: what the cell is trained with.
        folder: of the cell.
        show: called at every checkpoint, with the iterations done.
    """
    shared, processes = parts.cell.shared, parts.processes
    forget_peak(parts.policy.device)
    trainer = make_trainer(parts)
    clock = Clock(synchronize=_synchronizer(parts.policy.device))
    metrics = folder / "metrics.jsonl"
    start, memory = checkpoint.restore(folder / "checkpoints", trainer)
    if processes.first:
        record.cut_rows(metrics, start)
    rows = processes.from_first(list(record.read_rows(metrics)) if processes.first else [])
    if len(rows) != start:
        raise RuntimeError(
            f"{metrics} has {len(rows)} rows, the newest checkpoint {start} iterations: they do not belong together; "
            f"delete {folder} to start the cell anew"
        )
    ended = exhausted(rows, shared.budget, shared.budget_limit, shared.iterations)
    while not ended:
        try:
            row, memory = iterate(parts, trainer, len(rows), memory, clock)
        except UnavailableError:  # before anything was learned from the iteration: it is made again from here
            checkpoint.save(folder / "checkpoints", trainer, len(rows), memory)
            raise
        row = processes.from_first(row)
        if processes.first:
            record.append_row(metrics, row)
            tracked(parts.accelerator, row)
        rows.append(row)
        ended = exhausted(rows, shared.budget, shared.budget_limit, shared.iterations)
        if ended or len(rows) % shared.checkpoint_every == 0:
            show(trainer, len(rows))
            checkpoint.save(folder / "checkpoints", trainer, len(rows), memory)
    return trainer


def iterate(parts: Parts, trainer: Trainer, iteration: int, memory: Memory, clock: Clock) -> tuple[record.Row, Memory]:
    """Run one iteration: plan, rollout, rewards, credit, selection, update; return its row and the next memory."""
    cell, shared, algorithm, processes = parts.cell, parts.cell.shared, parts.cell.algorithm, parts.processes
    began = time.perf_counter()
    chosen = of_iteration(parts.prompts, cell.seed, iteration, shared.prompts_per_iteration)
    condition = parts.condition.rows(torch.tensor(chosen)).to(parts.policy.device)
    ctx = cell.context(iteration, chosen, memory)
    noise = Noise(seed=cell.seed, iteration=iteration)
    plan = algorithm.plan(ctx)
    owner = owners(noise, ctx.slots, processes.count)
    with clock.phase("rollout"), sampling(trainer, plan.policy):
        rolled = shared_rollout(
            parts.policy,
            plan,
            condition,
            noise,
            keep=plan.stochastic_steps() & set(ctx.train_steps),
            chunk=shared.micro_batch,
            owner=owner,
            processes=processes,
        )
    check_finite(iteration, float(np.max(processes.gathered(float(rolled.x0.abs().max())))), "latents")
    with clock.phase("score"):
        scores = scored(parts, plan, rolled, [parts.prompts[at] for at in chosen])
    with clock.phase("credit"):
        outcome, judged = outcomes(plan, rolled.log_prob, scores, parts.weight, shared.combine)
        advantage = advantages(algorithm, plan, judged, parts.weight, ctx, shared.adv_clip)
        memory = json.loads(json.dumps(algorithm.remember(plan, judged, ctx), allow_nan=False))
        selection = algorithm.select(plan, outcome, advantage, ctx)
    with clock.phase("update"):
        it = Iteration(
            plan=plan,
            rollout=rolled,
            selection=selection,
            advantage=advantage,
            condition=condition,
            noise=noise,
            owner=owner,
        )
        clip = None if "clip" in algorithm.info.owns else cell.keys["clip"]
        decay = checked_decay(algorithm.decay(ctx))
        keep(trainer.parameters(), trainer.named, decay)
        updated = update(
            trainer,
            algorithm,
            it,
            updates=ctx.updates,
            chunk=shared.micro_batch,
            anchor=shared.anchor,
            clip=clip,
        )
        follow(trainer.parameters(), trainer.named, decay)
    check_finite(iteration, updated.loss + updated.grad_norm, "loss or gradient")
    cost = nfe(plan, selection, parts.policy.calls_per_velocity, updated.named_calls)
    row = make_row(iteration, scores, outcome.reward, updated, cost.nested(), rolled.calls, parts.policy)
    row["peak_memory_bytes"] = max(processes.gathered(row["peak_memory_bytes"]))
    seconds = clock.read()
    row["warnings"] = drift_warnings(updated.drift, clip, shared, ctx.updates)
    row["seconds"] = seconds | {"other": time.perf_counter() - began - sum(seconds.values())}
    return row, memory


def scored(parts: Parts, plan: Plan, rolled: Rollout, prompts: Sequence[str]) -> Scores:
    """Return the scores of all leaves, of which this process has some; `prompts` are the slots'."""
    leaves, chunk = plan.tree.slot[plan.tree.leaves()], parts.cell.shared.micro_batch
    slot = leaves[rolled.leaf]
    found = []
    with together(parts.processes):
        for rows in whole_groups(slot, chunk):  # videos of all leaves would fill a device
            images = decode(parts.policy, rolled.x0[rows], chunk)
            found.append(score(parts.rewards, images, [prompts[int(s)] for s in slot[rows]], slot[rows], chunk))
    scores = gathered(joined(found), rolled.leaf, len(leaves), parts.processes)
    check_scored(scores.failed, scores.failures)
    return scores


def tracked(accelerator: Accelerator, row: record.Row) -> None:
    """Tell the trackers, if there are any, an iteration's numbers."""
    if not accelerator.trackers:
        return
    nested = {key: row[key] for key in ("reward", "reward_std", "calls", "seconds")}
    flat = {f"{key}/{name}": value for key, part in nested.items() for name, value in part.items()}
    plain = {key: row[key] for key in TRACKED if row[key] is not None}
    # MLflow refuses names with other characters, such as the brackets of a scorer's options.
    named = {re.sub(r"[^\w\-./ ]", "_", key): value for key, value in (flat | plain).items()}
    accelerator.log(named, step=row["iteration"])


def make_row(
    iteration: int,
    scores: Scores,
    total: np.ndarray,
    updated: Updated,
    cost: dict[str, dict[str, float]],
    calls: int,
    policy: Policy,
) -> record.Row:
    """Return an iteration's row; its seconds and warnings are filled in by the caller."""
    times = policy.calls_per_velocity
    return {
        "iteration": iteration,
        "reward": {name: float(np.nanmean(value)) for name, value in scores.reward.items()},
        "reward_std": {name: float(np.nanstd(value)) for name, value in scores.reward.items()},
        "reward_total": float(np.nanmean(total)),
        "loss": updated.loss,
        "grad_norm": updated.grad_norm,
        "drift": updated.drift,
        "log_ratio_max": updated.log_ratio_max,
        "clip_fraction": updated.clip_fraction,
        "nfe": cost,
        "calls": {
            "rollout": calls * times,
            "update": updated.calls * times,
            "anchor": updated.anchor_calls * times,
            **{name: rows * times for name, rows in updated.named_calls.items()},
        },
        "seconds": {},
        "samples": len(total),
        "failed": int(scores.failed.sum()),
        "failures": list(scores.failures),
        "warnings": [],
        "peak_memory_bytes": peak_bytes(policy.device),
    }


def check_finite(iteration: int, number: float, what: str) -> None:
    """Raise RuntimeError for what no training recovers from."""
    if not math.isfinite(number):
        raise RuntimeError(f"training diverged at iteration {iteration}: {what} not finite; lower lr or eta")


def drift_warnings(drift: float | None, clip: float | None, shared: Shared, updates: int) -> list[str]:
    """Return a warning where rounding, and not the policy, moves ratios that later shards are clipped by."""
    if clip is None or drift is None or updates == 1 or shared.anchor == "recompute" or drift <= clip / 10:
        return []
    return [
        f"log-probs drift by {drift:.1e} between rollout and training, more than a tenth of the clip range {clip:g}; "
        "--set anchor=recompute removes it, at the cost of one pass"
    ]


def forget_peak(device: torch.device) -> None:
    """Start the peak of the device's memory, on a CPU the process's, anew: a worker runs several cells."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_host_peak()


def peak_bytes(device: torch.device) -> int:
    """Return the peak of the device's memory, on a CPU the process's."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_host_bytes()


def _synchronizer(device: torch.device):
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
