"""Rollout -> Rewards: leaves decoded and scored in batches; a leaf that cannot be scored is failed, never a 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.contract import Algorithm, Context, Outcome, Reward, UnavailableError, checked_credit
from bench.patience import NoAnswerError
from bench.plan import Plan
from bench.policy import Policy, in_chunks
from bench.processes import Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Every reward of every leaf; a leaf that failed in one is NaN in all."""

    reward: Mapping[str, Float[np.ndarray, " leaf"]]
    failed: Bool[np.ndarray, " leaf"]
    failures: tuple[str, ...]
    """What the failed scorings said, each message once."""

    def total(self, weight: Mapping[str, float]) -> Float[np.ndarray, " leaf"]:
        """Return the weighted sum."""
        return sum((weight[name] * value for name, value in self.reward.items()), np.zeros(len(self.failed)))


@torch.no_grad()
def decode(
    policy: Policy, x0: Float[Tensor, "leaf *latent"], chunk: int
) -> Float[Tensor, "leaf *frame 3 height width"]:
    """Return the images, or videos, of clean latents, at most `chunk` a call."""
    return torch.cat([policy.decode(x0[rows]) for rows in in_chunks(len(x0), chunk)])


def score(
    rewards: Mapping[str, Reward],
    images: Float[Tensor, "leaf *frame 3 height width"],
    prompts: Sequence[str],
    group: Int[np.ndarray, " leaf"],
    chunk: int,
) -> Scores:
    """Return the scores of every image under every reward."""
    said: list[str] = []
    values: dict[str, np.ndarray] = {}
    for name, reward in rewards.items():
        parts = [
            _attempt(name, reward, images[rows], prompts[rows], group[rows], said)
            for rows in whole_groups(group, chunk)
        ]
        values[name] = np.concatenate(parts)
    failed = np.asarray(np.isnan(np.stack(list(values.values()))).any(0))
    reward = {name: np.where(failed, np.nan, value) for name, value in values.items()}
    return Scores(reward=reward, failed=failed, failures=tuple(dict.fromkeys(said)))


def joined(parts: Sequence[Scores]) -> Scores:
    """Return the scores of all leaves, from those of some in order."""
    return Scores(
        reward={name: np.concatenate([part.reward[name] for part in parts]) for name in parts[0].reward},
        failed=np.concatenate([part.failed for part in parts]),
        failures=tuple(dict.fromkeys(text for part in parts for text in part.failures)),
    )


def gathered(scores: Scores, leaf: Int[np.ndarray, " here"], leaves: int, processes: Processes) -> Scores:
    """Return the scores of all leaves, from every process's own; `leaf` says which of all this one's are."""
    if processes.count == 1:
        return scores
    reward, failed = {name: np.full(leaves, np.nan) for name in scores.reward}, np.ones(leaves, bool)
    said: dict[str, None] = {}
    for place, theirs in processes.gathered((leaf, scores)):
        failed[place] = theirs.failed
        said |= dict.fromkeys(theirs.failures)
        for name, value in theirs.reward.items():
            reward[name][place] = value
    return Scores(reward=reward, failed=failed, failures=tuple(said))


@contextmanager
def together(processes: Processes) -> Iterator[None]:
    """Score in every process; where a scorer of one is not there, all stop, together.

    Raises:
        UnavailableError: on all.
    """
    away = ""
    try:
        yield
    except UnavailableError as error:
        away = str(error)
    for said in filter(None, processes.gathered(away)):
        raise UnavailableError(said)


def check_scored(failed: Bool[np.ndarray, " leaf"], failures: Sequence[str]) -> None:
    """Raise RuntimeError if no image at all could be scored, with the scorers' own words."""
    if failed.all():
        raise RuntimeError(f"no image could be scored: {'; '.join(failures)}")


def whole_groups(group: Int[np.ndarray, " leaf"], chunk: int) -> list[slice]:
    """Return slices of about `chunk` rows that split no group: a reward may compare the images of one prompt."""
    ends = np.r_[np.flatnonzero(np.diff(group)) + 1, len(group)]
    cuts = [0]
    for end, after in zip(ends, [*ends[1:], np.inf], strict=True):
        if after - cuts[-1] > chunk:
            cuts.append(int(end))
    return [slice(a, b) for a, b in pairwise(cuts)]


def _attempt(
    name: str, reward: Reward, images: Tensor, prompts: Sequence[str], group: np.ndarray, said: list[str]
) -> np.ndarray:
    """Score a batch; where the scorer raises, score what can stand alone: a group, of a pointwise reward an image."""
    try:
        value = np.asarray(reward(images, prompts, group), np.float64)
        own: list[str] = list(getattr(reward, "failures", ()))
        if not own and not np.isfinite(value).all():
            own.append("a score is no number, for no reason that it tells")
        said.extend(f"{name}: {text}" for text in own)
    except UnavailableError:
        raise
    except NoAnswerError as error:  # asked for each image alone, it could take as long again for each
        said.append(f"{name}: {error}")
        return np.full(len(images), np.nan)
    except Exception as error:  # noqa: BLE001  # a scorer may be anyone's code; its failure is counted, recorded, shown
        said.append(f"{name}: {type(error).__name__}: {error}")
        rows = whole_groups(group, 1)
        if len(rows) == 1 and not reward.info.groupwise:
            rows = [slice(i, i + 1) for i in range(len(images))]
        if len(rows) == 1:
            return np.full(len(images), np.nan)
        return np.concatenate([_attempt(name, reward, images[r], prompts[r], group[r], said) for r in rows])
    if value.shape != (len(images),):
        raise ValueError(f"reward {name!r} returned shape {value.shape} for {len(images)} images: one score an image")
    return np.where(np.isfinite(value), value, np.nan)


def outcomes(
    plan: Plan, log_prob: Float[np.ndarray, " node"], scores: Scores, weight: Mapping[str, float], combine: str
) -> tuple[Outcome, dict[str, Outcome]]:
    """Return the outcome under the weighted sum of rewards, and those that credit is given for, by name.

    `combine` is "advantage" (credit per reward, then the weighted sum) or "reward" (credit of the weighted sum).
    """
    leaf = plan.tree.leaves()
    total = Outcome(log_prob=log_prob, reward=scores.total(weight), leaf=leaf)
    if combine == "reward":
        return total, {total.name: total}
    return total, {n: Outcome(name=n, log_prob=log_prob, reward=r, leaf=leaf) for n, r in scores.reward.items()}


def advantages(
    algorithm: Algorithm,
    plan: Plan,
    judged: Mapping[str, Outcome],
    weight: Mapping[str, float],
    ctx: Context,
    adv_clip: float,
) -> Float[np.ndarray, " node"]:
    """Return the advantage of every node, weighed over what credit is given for and clipped to +-adv_clip.

    Weights sum to 1. NaN, a node without a scored leaf, is 0.
    """
    parts = {n: checked_credit(algorithm.credit(plan, outcome, ctx), plan) for n, outcome in judged.items()}
    advantage = np.sum([weight.get(n, 1.0) * part for n, part in parts.items()], axis=0)
    return np.clip(np.nan_to_num(advantage, nan=0.0), -adv_clip, adv_clip)
