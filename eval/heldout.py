"""A model on held-out prompts: ODE samples under fixed noise, scored. Knows no algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bench.contract import Reward
from bench.noise import Noise
from bench.plan import Plan, branching
from bench.policy import Condition, Policy, Rows
from bench.processes import ALONE, Processes
from bench.rollout import rollout
from bench.score import check_scored, decode, score, together

EVAL_SEED = 0
"""Evaluation noise depends on (prompt, k) alone, so that every cell of every seed is judged on the same draws."""


@runtime_checkable
class Featurizer(Protocol):
    """A scorer whose image features span the space that drift is measured in."""

    def features(self, images: Float[Tensor, "leaf *frame 3 height width"]) -> Float[Tensor, "leaf feature"]:
        """Return the features of images, or videos, in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores and features of every image, and the first images themselves."""

    scores: Mapping[str, Float[np.ndarray, "prompt sample"]]
    features: Float[np.ndarray, "image feature"]
    images: Float[Tensor, "shown *frame 3 height width"]
    failures: tuple[str, ...]


def evaluate(
    policy: Policy,
    condition: Rows,
    prompts: Sequence[str],
    rewards: Mapping[str, Reward],
    featurizer: Featurizer | None,
    *,
    sigmas: Float[np.ndarray, " knot"],
    solver: str,
    samples: int,
    chunk: int,
    stream: str = "eval",
    shown: int = 32,
    processes: Processes = ALONE,
) -> Evaluation:
    """Return the evaluation of a policy, by all processes together, each of which has the whole model.

    Args:
        policy: sampled by the ODE.
        condition: of the prompts, one a row.
        prompts: one a slot.
        rewards: the judges, by name.
        featurizer: gives the features of drift; without one there are none.
        sigmas: of the ODE's steps.
        solver: euler or dpm2m.
        samples: images a prompt.
        chunk: most images in memory at a time.
        stream: of the root noise; `eval-reference` is disjoint from `eval`.
        shown: how many images to return, first sample of the first prompts.
        processes: each evaluates its share of the prompts, and returns what all have found.

    Raises:
        RuntimeError: if no image could be scored.
        UnavailableError: on all processes, if a scorer is not there.
    """
    plan = deterministic(sigmas, len(prompts), samples, solver)
    share = np.array_split(np.arange(len(prompts)), processes.count)[processes.rank]
    told = condition.rows(torch.arange(len(prompts))).to(policy.device)
    mine = None
    with together(processes):
        if len(share):
            mine = _part(policy, told, prompts, rewards, featurizer, plan.part(share)[0], samples, chunk, stream, shown)
    return _whole([part for part in processes.gathered(mine) if part is not None])


def _part(
    policy: Policy,
    condition: Condition,
    prompts: Sequence[str],
    rewards: Mapping[str, Reward],
    featurizer: Featurizer | None,
    plan: Plan,
    samples: int,
    chunk: int,
    stream: str,
    shown: int,
) -> Evaluation:
    """Return the evaluation of the plan's slots, scores in a row and an image of each of the first prompts."""
    noise = Noise(seed=EVAL_SEED, iteration=0, root_stream=stream)
    x0 = rollout(policy, plan, condition, noise, chunk=chunk).x0
    slot = plan.tree.slot[plan.tree.leaves()]
    texts: list[str] = [prompts[int(s)] for s in slot]
    together = max(samples, chunk - chunk % samples)  # whole prompts
    values: dict[str, list[np.ndarray]] = {name: [] for name in rewards}
    features, kept, said = [], [], dict[str, None]()
    for start in range(0, len(x0), together):
        part = slice(start, start + together)
        images = decode(policy, x0[part], chunk)
        scored = score(rewards, images, texts[part], slot[part], together) if rewards else None
        for name, value in scored.reward.items() if scored else ():
            values[name].append(value)
        said |= dict.fromkeys(scored.failures if scored else ())
        if featurizer is not None:
            features.append(featurizer.features(images).double().cpu().numpy())
        first = [i for i in range(len(images)) if (start + i) % samples == 0 and slot[start + i] < shown]
        kept.append(images[first].cpu())
    scores = {name: np.concatenate(v).reshape(-1, samples) for name, v in values.items()}
    found = np.concatenate(features) if features else np.zeros((0, 0))
    return Evaluation(scores=scores, features=found, images=torch.cat(kept), failures=tuple(said))


def _whole(parts: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation of all prompts, from those of shares of them in order."""
    scores = {name: np.concatenate([part.scores[name] for part in parts]) for name in parts[0].scores}
    failures = tuple(dict.fromkeys(text for part in parts for text in part.failures))
    for value in scores.values():
        check_scored(np.isnan(value).ravel(), failures)
    return Evaluation(
        scores=scores,
        features=np.concatenate([part.features for part in parts]),
        images=torch.cat([part.images for part in parts]),
        failures=failures,
    )


def deterministic(sigmas: Float[np.ndarray, " knot"], slots: int, samples: int, solver: str) -> Plan:
    """Return the plan of `samples` ODE paths a slot, each from a root of its own."""
    steps = len(sigmas) - 1
    levels, fanout = [0.0] * steps, [1] * steps
    return branching(sigmas, slots=slots, fanout=fanout, noise_level=levels, kernel="ode", roots=samples, solver=solver)
