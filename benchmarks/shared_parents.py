"""One forward and backward a parent, against one an edge: time and gradients. `python` this file."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import torch
from common import heading, interleaved, parser, parts
from torch import Tensor

from bench.loop import Parts, make_trainer
from bench.noise import Noise
from bench.rollout import rollout
from bench.score import advantages, decode, outcomes, score
from bench.select import Selection
from bench.update import Iteration, Trainer, build_batch, evaluate, micro_batches


def per_edge(selection: Selection) -> Selection:
    """Return the same items with a query each."""
    query = selection.item_query
    return dataclasses.replace(
        selection,
        read=selection.read[query],
        sigma=selection.sigma[query],
        draw=selection.draw[query],
        unit=np.arange(len(query)),
        item_query=np.arange(len(query)),
    )


def sampled(made: Parts, prompts: int) -> Iteration:
    """Return an iteration up to its update."""
    shared, algorithm = made.cell.shared, made.cell.algorithm
    ctx = made.cell.context(0, range(prompts), {})
    plan, noise = algorithm.plan(ctx), Noise(seed=0, iteration=0)
    condition = made.condition.rows(torch.arange(prompts))
    rolled = rollout(made.policy, plan, condition, noise, keep=ctx.train_steps, chunk=shared.micro_batch)
    slot = plan.tree.slot[plan.tree.leaves()]
    images = decode(made.policy, rolled.x0, shared.micro_batch)
    texts = [made.prompts[s] for s in slot.tolist()]
    scores = score(made.rewards, images, texts, slot, shared.micro_batch)
    outcome, judged = outcomes(plan, rolled.log_prob, scores, made.weight, "advantage")
    advantage = advantages(algorithm, plan, judged, made.weight, ctx, shared.adv_clip)
    selection = algorithm.select(plan, outcome, advantage, ctx)
    return Iteration(
        plan=plan,
        rollout=rolled,
        selection=selection,
        advantage=advantage,
        condition=condition,
        noise=noise,
        owner=np.zeros(plan.tree.slot.max() + 1, int),
    )


def gradient(made: Parts, trainer: Trainer, it: Iteration) -> list[Tensor]:
    """Return the gradient of the iteration's loss at every parameter."""
    everything = np.arange(len(it.selection.read))
    for query in micro_batches(it.selection, everything, made.cell.shared.micro_batch):
        batch = build_batch(it, query, it.rollout.log_prob, 1.0)
        loss = made.cell.algorithm.loss(batch, {"live": evaluate(made.policy, it, query, batch.x, batch.sigma)})
        trainer.accelerator.backward(loss)
    found = [p.grad.clone() for p in trainer.parameters() if p.grad is not None]
    trainer.optimizer.zero_grad(set_to_none=True)
    return found


def measure(arm: str, args: argparse.Namespace) -> str:
    """Return an arm's line of the table."""
    made = parts(args, arm)
    trainer, shared = make_trainer(made), sampled(made, args.prompts)
    split = dataclasses.replace(shared, selection=per_edge(shared.selection))
    seconds, found = interleaved(
        {"parent": lambda: gradient(made, trainer, shared), "edge": lambda: gradient(made, trainer, split)}, args
    )
    parent, edge = (torch.cat([g.flatten() for g in found[side]]).double() for side in ("parent", "edge"))
    apart = float((parent - edge).norm() / edge.norm())
    ratio = seconds["edge"] / seconds["parent"]
    passes = f"{len(shared.selection.read)}/{len(split.selection.read)}"
    return f"{arm:10} {passes:>10} {seconds['parent']:12.3f} {seconds['edge']:12.3f} {ratio:8.2f} {apart:16.1e}"


def main() -> None:
    args = parser(__doc__).parse_args()
    print(heading(args))
    print(f"{'arm':10} {'passes':>10} {'parent, s':>12} {'edge, s':>12} {'faster':>8} {'gradients apart':>16}")
    for arm in ("branch", "dance", "mix"):
        print(measure(arm, args), flush=True)


if __name__ == "__main__":
    main()
