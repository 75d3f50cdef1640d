from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import ToyPolicy, normal

from algorithms.dance import Dance
from bench.contract import Context, RewardInfo
from bench.schedule import shifted_sigmas
from bench.score import Scores, advantages, check_scored, decode, outcomes, score, whole_groups

IMAGES = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 3, 2, 2).contiguous()
PROMPTS = [f"prompt {i}" for i in range(8)]
GROUP = np.repeat([0, 1], 4)


class Rule:
    """A reward made of a function."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="none"
    )

    def __init__(self, rule: Callable[..., Any]) -> None:
        self.rule = rule

    def __call__(self, images, prompts, group):
        return self.rule(images, prompts, group)


def number(images, prompts, group):
    """Return the index of each image, from its brightness."""
    return (images.mean((1, 2, 3)) * 7).round().numpy()


def scored(*rules: Callable[..., Any], chunk: int = 100) -> Scores:
    return score({f"r{i}": Rule(rule) for i, rule in enumerate(rules)}, IMAGES, PROMPTS, GROUP, chunk)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_every_image_is_scored_in_its_place(chunk):
    found = scored(number, lambda i, p, g: [int(t[-1]) * 10 for t in p], lambda i, p, g: g + 5.0, chunk=chunk)
    assert found.reward["r0"].tolist() == list(range(8))
    assert found.reward["r1"].tolist() == [10 * i for i in range(8)]
    assert found.reward["r2"].tolist() == [5] * 4 + [6] * 4
    assert not found.failed.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_leaf_without_a_finite_score_in_one_reward_fails_in_all(bad):
    found = scored(number, lambda i, p, g: np.where(number(i, p, g) == 3, bad, 1.0))
    assert found.failed.tolist() == [False, False, False, True] + [False] * 4
    np.testing.assert_equal(found.reward["r0"], [0, 1, 2, np.nan, 4, 5, 6, 7])
    np.testing.assert_equal(found.reward["r1"], [1, 1, 1, np.nan, 1, 1, 1, 1])
    assert found.failures == ("r1: a score is no number, for no reason that it tells",)


def test_where_a_batch_raises_its_images_are_scored_alone_and_only_the_culprits_fail():
    asked = []

    def fragile(images, prompts, group):
        asked.append(len(images))
        if "prompt 2" in prompts or "prompt 6" in prompts:
            raise OSError("no such file")
        return number(images, prompts, group)

    found = scored(fragile)
    assert asked == [8, 4, 1, 1, 1, 1, 4, 1, 1, 1, 1]  # the batch, then groups, then the images of groups that raise
    assert np.flatnonzero(found.failed).tolist() == [2, 6]
    np.testing.assert_equal(found.reward["r0"], [0, 1, np.nan, 3, 4, 5, np.nan, 7])
    assert found.failures == ("r0: OSError: no such file",)


@pytest.mark.parametrize("rule", [lambda i, p, g: np.ones(len(i) + 1), lambda i, p, g: 1.0, lambda i, p, g: [[1]] * 8])
def test_a_reward_of_the_wrong_length_is_a_defect_and_no_failure(rule):
    with pytest.raises(ValueError, match="one score an image"):
        scored(number, rule)


def broken(images, prompts, group):
    raise OSError("no weights")


def test_a_groupwise_reward_scores_a_group_whole_or_not_at_all():
    class Centred(Rule):
        info: ClassVar[RewardInfo] = replace(Rule.info, groupwise=True)

    def centred(images, prompts, group):
        if "prompt 2" in prompts:
            raise OSError("no such file")
        value = number(images, prompts, group)
        return value - value.mean()

    found = score({"c": Centred(centred)}, IMAGES, PROMPTS, GROUP, 100)
    np.testing.assert_equal(found.reward["c"], [np.nan] * 4 + [-1.5, -0.5, 0.5, 1.5])


def test_if_nothing_can_be_scored_the_run_stops_with_the_scorers_words():
    for rules, words in (
        ((number, broken), "no image could be scored: r1: OSError: no weights"),
        ((lambda i, p, g: [np.nan] * len(i),), "r0: a score is no number"),
    ):
        found = scored(*rules)
        with pytest.raises(RuntimeError, match=words):
            check_scored(found.failed, found.failures)
    check_scored(scored(number).failed, ())


def test_an_interrupt_is_not_a_failed_score():
    def interrupted(images, prompts, group):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(interrupted)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_a_batch_of_scores_splits_no_group(sizes, chunk):
    group = np.repeat(np.arange(len(sizes)), sizes)
    parts = whole_groups(group, chunk)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(group)))
    seen = [set(group[part].tolist()) for part in parts]
    assert sum(map(len, seen)) == len(sizes)
    for part, groups in zip(parts, seen, strict=True):
        assert part.stop - part.start <= chunk or len(groups) == 1
    for left, right in pairwise(parts):
        first_of_next = int((group == group[right.start]).sum())
        assert left.stop - left.start + first_of_next > chunk  # no batch is smaller than it must be


def test_decoding_in_chunks_changes_nothing():
    policy, x0 = ToyPolicy(), normal(7, 3, 2)
    assert torch.equal(decode(policy, x0, 2), decode(policy, x0, 100))
    assert decode(policy, x0, 2).shape == (7, 3, 4, 4)


CTX = Context(iteration=0, seed=0, sigmas=shifted_sigmas(3, 3.0), slots=2, group_size=4, train_steps=(0, 1))
DANCE = Dance()
PLAN = DANCE.plan(CTX)
LEAF = PLAN.tree.leaves()
SCORES = Scores(
    reward={"a": np.array([1.0, 2, 3, 6, 0, 0, 0, 4]), "b": np.array([10.0, 50, 20, 40, 5, 6, 7, 8])},
    failed=np.zeros(8, bool),
    failures=(),
)


def z(values: np.ndarray) -> np.ndarray:
    groups = values.reshape(2, 4)
    return ((groups - groups.mean(1, keepdims=True)) / groups.std(1, ddof=1, keepdims=True)).ravel()


def combined(combine: str, adv_clip: float = 100.0, scores: Scores = SCORES):
    weight = {"a": 0.25, "b": 0.75}
    log_prob = np.zeros(len(PLAN.tree))
    total, judged = outcomes(PLAN, log_prob, scores, weight, combine)
    return total, advantages(DANCE, PLAN, judged, weight, CTX, adv_clip)


def test_advantages_are_credited_per_reward_and_then_weighed():
    outcome, advantage = combined("advantage")
    expected = 0.25 * z(SCORES.reward["a"]) + 0.75 * z(SCORES.reward["b"])
    np.testing.assert_allclose(advantage[LEAF], expected, rtol=1e-6)
    np.testing.assert_allclose(outcome.reward, 0.25 * SCORES.reward["a"] + 0.75 * SCORES.reward["b"])


def test_or_rewards_are_weighed_and_then_credited():
    _, advantage = combined("reward")
    total = 0.25 * SCORES.reward["a"] + 0.75 * SCORES.reward["b"]
    np.testing.assert_allclose(advantage[LEAF], z(total), rtol=1e-6)
    assert not np.allclose(advantage, combined("advantage")[1])


@pytest.mark.parametrize("combine", ["advantage", "reward"])
def test_a_failed_leaf_has_advantage_zero_and_moves_no_other_groups(combine):
    gone = np.isin(np.arange(8), [1])
    scores = Scores(reward={n: np.where(gone, np.nan, r) for n, r in SCORES.reward.items()}, failed=gone, failures=())
    _, advantage = combined(combine, scores=scores)
    assert advantage[LEAF][1] == 0
    assert np.isfinite(advantage).all()
    assert advantage[LEAF][[0, 2, 3]].sum() == pytest.approx(0, abs=1e-9)
    np.testing.assert_array_equal(advantage[LEAF][4:], combined(combine)[1][LEAF][4:])


def test_advantages_are_clipped_after_they_were_weighed():
    _, advantage = combined("advantage", adv_clip=0.5)
    np.testing.assert_array_equal(advantage, np.clip(combined("advantage")[1], -0.5, 0.5))
    assert np.abs(advantage).max() == 0.5
