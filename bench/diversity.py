"""How far apart the rollouts of algorithms are on one model, the base: distances between their images.

Every arm samples the same prompts under the same keyed noise, and is compared with images that the first arm, the
reference, samples for these prompts under other noise. So the reference's own distance is the floor: what noise alone
makes of an arm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from bench import record
from bench.config import Cell, identity, settings
from bench.data import load_prompts, of_iteration, of_run
from bench.hosts import info_record
from bench.noise import Noise
from bench.policy import Policy, Rows
from bench.registry import load
from bench.rollout import rollout
from bench.score import decode, whole_groups
from bench.suite import Suite
from bench.worker import Worker, found_device
from eval.diversity import kid, median_distance, mmd2, spread
from eval.heldout import Featurizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Who samples what, and who looks at it."""

    policy: Policy
    featurizer: Featurizer
    prompts: tuple[str, ...]
    condition: Rows
    """Of the prompts, one a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaves:
    """The images of some rollouts."""

    features: Float[np.ndarray, "leaf feature"]
    group: Int[np.ndarray, " leaf"]
    """Which prompt of which rollout."""
    prompts: tuple[str, ...]


def measure(suite: Suite, rollouts: int, device: str, say: Callable[[str], None]) -> record.DiversityRecord:
    """Roll out every arm on the base model; write and return what lies between them.

    Args:
        suite: its arms, the first of which is the reference, and its seeds.
        rollouts: iterations of each seed, from the first.
        device: auto, cpu or cuda.
        say: told of each arm before it is rolled out.

    Raises:
        RuntimeError: if an image has no finite features.
    """
    arms = by_arm(suite)
    reference = next(iter(arms.values()))
    seeds = [cell.seed for cell in reference]
    others = list(islice((seed for seed in count() if seed not in seeds), len(seeds)))
    worker, stages = Worker(suite=suite.folder, device=found_device(device)), dict[float, Stage]()
    say(f"{reference[0].arm}, to compare with")
    base = leaves(staged(worker, reference, rollouts, stages), reference, others, rollouts)
    bandwidth = median_distance(base.features)
    rows, features = [], []
    for label, cells in arms.items():
        say(label)
        mine = leaves(staged(worker, cells, rollouts, stages), cells, seeds, rollouts)
        rows.append(row(cells[0], mine, base.features, bandwidth))
        features.append(mine.features)
    result: record.Diversity = {
        "version": record.VERSION,
        "shared": identity(suite.shared),
        "features": suite.shared.features,
        "bandwidth": bandwidth,
        "rollouts": rollouts,
        "seeds": seeds,
        "noise_seeds": others,
        "prompts": list(base.prompts),
        "n": len(base.features),
        "arms": rows,
    }
    written = record.DiversityRecord(result=result, features=features, reference=base.features)
    record.write_diversity(suite.folder / "diversity", written)
    return written


def by_arm(suite: Suite) -> dict[str, list[Cell]]:
    """Return the cells of each arm, one a seed."""
    arms: dict[str, list[Cell]] = {}
    for cell in suite.cells:
        arms.setdefault(cell.arm, []).append(cell)
    return arms


def staged(worker: Worker, cells: Sequence[Cell], rollouts: int, stages: dict[float, Stage]) -> Stage:
    """Return what an arm's rollouts need: the untrained model, under the arm's own guidance, and encoded prompts.

    `stages` holds the one before, for the next arm of the same guidance; there is one model in memory.
    """
    cell = cells[0]
    guidance = cell.keys["guidance"]
    if guidance not in stages:
        stages.clear()  # of an arm before
        plugins = [Path(plugin) for plugin in cell.plugins]
        policy = worker.policy(replace(cell.shared, guidance=guidance), plugins)
        prompts, name = load_prompts(cell.shared.prompts).train, cell.shared.features
        each = cell.shared.prompts_per_iteration
        seen = sorted({at for one in cells for at in of_run(prompts, one.seed, rollouts, each)})
        featurizer: Any = worker.load(cell, load("rewards", plugins), [name])[name]
        condition = worker.condition(cell, policy, prompts, seen)
        stages[guidance] = Stage(policy=policy, featurizer=featurizer, prompts=prompts, condition=condition)
    return stages[guidance]


def leaves(stage: Stage, cells: Sequence[Cell], noise_seeds: Sequence[int], rollouts: int) -> Leaves:
    """Return the images of an arm's first rollouts, its cells' prompts and plans under the noise of other seeds."""
    features, groups, prompts = [], [], dict[str, None]()
    for cell, noise_seed in zip(cells, noise_seeds, strict=True):
        for iteration in range(rollouts):
            chosen = of_iteration(stage.prompts, cell.seed, iteration, cell.shared.prompts_per_iteration)
            found, slot = sample(stage, cell, iteration, chosen, Noise(seed=noise_seed, iteration=iteration))
            groups.append(slot + len(groups) * len(chosen))
            features.append(found)
            prompts |= dict.fromkeys(stage.prompts[at] for at in chosen)
    return Leaves(features=np.concatenate(features), group=np.concatenate(groups), prompts=tuple(prompts))


@torch.no_grad()
def sample(
    stage: Stage, cell: Cell, iteration: int, chosen: Sequence[int], noise: Noise
) -> tuple[Float[np.ndarray, "leaf feature"], Int[np.ndarray, " leaf"]]:
    """Return the features of one rollout's images, as training's first iterations plan it, and their slots."""
    policy, chunk = stage.policy, cell.shared.micro_batch
    plan = cell.algorithm.plan(cell.context(iteration, chosen, {}))
    condition = stage.condition.rows(torch.tensor(chosen)).to(policy.device)
    x0 = rollout(policy, plan, condition, noise, chunk=chunk).x0
    slot = plan.tree.slot[plan.tree.leaves()]
    images = decode(policy, x0, chunk)
    parts = [stage.featurizer.features(images[rows]).double().cpu().numpy() for rows in whole_groups(slot, chunk)]
    features = np.concatenate(parts)
    if not np.isfinite(features).all():
        raise RuntimeError(f"{cell.arm}, iteration {iteration}: an image has no finite features; lower eta")
    return features, slot


def row(cell: Cell, mine: Leaves, reference: Float[np.ndarray, "n feature"], bandwidth: float) -> record.DiversityArm:
    """Return an arm's row of the record."""
    return {
        "arm": cell.arm,
        "algo": cell.algo,
        "info": info_record(cell.algorithm),
        "effective": cell.effective,
        "algorithm": settings(cell.algorithm),
        "n": len(mine.features),
        "kid": kid(mine.features, reference),
        "mmd2": mmd2(mine.features, reference, bandwidth),
        "spread": spread(mine.features, mine.group),
    }
