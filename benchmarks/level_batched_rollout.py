"""A rollout level by level, all trees in one call, against the same rollout node by node: `python` this file."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import heading, interleaved, parser, parts
from torch import Tensor

from bench import kernel
from bench.loop import Parts
from bench.noise import Noise
from bench.plan import Plan
from bench.policy import Condition
from bench.rollout import rollout


@torch.no_grad()
def node_by_node(cell: Parts, plan: Plan, condition: Condition, noise: Noise) -> Tensor:
    """Return the leaves' latents, with a policy call of one row at every node that has children."""
    tree, policy = plan.tree, cell.policy
    children = [np.flatnonzero(tree.parent == node) for node in range(len(tree))]
    roots = noise.roots(tree, plan.coupling, policy.latent_shape)
    latent: dict[int, Tensor] = {node: torch.from_numpy(root)[None] for node, root in enumerate(roots)}
    for node in range(int(tree.offset[-2])):
        step, x = int(tree.depth[node]), latent.pop(node)
        sigma, after = float(plan.sigmas[step]), float(plan.sigmas[step + 1])
        row = condition.rows(torch.tensor([tree.slot[node]]))
        velocity = policy.velocity(x, torch.full((1,), sigma), row)
        for child in children[node].tolist():
            level = float(plan.noise_level[child])
            if level == 0:
                latent[child] = kernel.ode(velocity, x, sigma, after).mean
                continue
            eps = torch.from_numpy(noise.edges(tree, np.array([child]), plan.coupling, policy.latent_shape))
            gauss = kernel.step(plan.kernel, velocity, x, sigma, after, level, float(plan.sigmas[1]))
            latent[child] = gauss.sample(eps)
    return torch.cat([latent[leaf] for leaf in tree.leaves()])


def measure(arm: str, args: argparse.Namespace) -> str:
    """Return an arm's line of the table."""
    made = parts(args, arm)
    plan = made.cell.algorithm.plan(made.cell.context(0, args.prompts, {}))
    condition = made.condition.rows(torch.arange(args.prompts))
    noise = Noise(seed=0, iteration=0)
    seconds, x0 = interleaved(
        {
            "level": lambda: rollout(made.policy, plan, condition, noise, chunk=made.cell.shared.micro_batch).x0,
            "node": lambda: node_by_node(made, plan, condition, noise),
        },
        args,
    )
    apart = float((x0["level"] - x0["node"]).abs().max())
    ratio = seconds["node"] / seconds["level"]
    return f"{arm:10} {seconds['level']:14.3f} {seconds['node']:14.3f} {ratio:8.2f} {apart:12.1e}"


def main() -> None:
    args = parser(__doc__).parse_args()
    print(heading(args))
    print(f"{'arm':10} {'level, s':>14} {'node, s':>14} {'faster':>8} {'images apart':>12}")
    for arm in ("branch", "dance", "mix"):
        print(measure(arm, args), flush=True)


if __name__ == "__main__":
    main()
