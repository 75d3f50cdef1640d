"""Policies beside the live one: what they are, when they are asked, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from toy import PROMPTS, ToyPolicy, context, iteration_of, trainer

from algorithms.dance import Dance
from algorithms.nft import Nft
from bench.contract import POLICIES, Batch, Velocity
from bench.named import exchanged, follow, keep
from bench.plan import star
from bench.policy import encoded
from bench.update import Iteration, shards, update

CTX = context(slots=4)


def weights(policy: ToyPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.model.parameters() if p.requires_grad]).clone()


def flat(tensors: list[torch.Tensor] | None) -> torch.Tensor:
    assert tensors is not None
    return torch.cat([t.flatten() for t in tensors]).clone()


def test_the_model_computes_with_a_named_policys_weights_and_both_are_as_they_were_after():
    policy = ToyPolicy()
    t = trainer(policy, needs={"old"}, apart=0.3)
    live, old = weights(policy), flat(t.named["old"].weights)
    with exchanged(t.parameters(), t.named["old"]):
        assert torch.equal(weights(policy), old)
    assert torch.equal(weights(policy), live)
    assert torch.equal(flat(t.named["old"].weights), old)


def test_an_exchange_is_undone_when_something_raises_inside():
    policy = ToyPolicy()
    t = trainer(policy, needs={"ema"}, apart=0.3)
    live = weights(policy)
    with pytest.raises(RuntimeError), exchanged(t.parameters(), t.named["ema"]):
        raise RuntimeError
    assert torch.equal(weights(policy), live)


@pytest.mark.parametrize("decay", [0.0, 0.25, 1.0])
def test_a_policy_keeps_what_its_decay_says_and_the_reference_everything(decay):
    policy = ToyPolicy()
    t = trainer(policy, needs=POLICIES, apart=0.3)
    before = {name: flat(p.weights) for name, p in t.named.items()}
    follow(t.parameters(), t.named, {"ema": decay, "reference": 0.0})
    if decay:
        torch.testing.assert_close(flat(t.named["ema"].weights), decay * before["ema"] + (1 - decay) * weights(policy))
    assert t.named["old"].weights is None  # not named: the live policy from here on, with no weights of its own
    assert torch.equal(flat(t.named["reference"].weights), before["reference"])
    assert {name: p.is_live for name, p in t.named.items()} == {
        "ema": decay == 0,
        "old": True,
        "reference": False,
    }


def test_weights_are_kept_before_they_move_of_the_policies_that_keep_a_part_of_them():
    policy = ToyPolicy()
    t = trainer(policy, needs=POLICIES)
    start = weights(policy)
    keep(t.parameters(), t.named, {"ema": 0.75})
    with torch.no_grad():
        for parameter in t.parameters():
            parameter.add_(1.0)
    assert torch.equal(flat(t.named["reference"].weights), start)
    assert torch.equal(flat(t.named["ema"].weights), start)
    assert t.named["old"].weights is None
    follow(t.parameters(), t.named, {"ema": 0.75})
    torch.testing.assert_close(flat(t.named["ema"].weights), start + 0.25)
    keep(t.parameters(), t.named, {"ema": 0.75})  # what is kept is not kept anew
    torch.testing.assert_close(flat(t.named["ema"].weights), start + 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking(Dance):
    """Keeps what its loss was given."""

    asked: frozenset[str] = POLICIES
    given: list[tuple[Batch, dict[str, torch.Tensor]]] = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return self.asked

    def loss(self, batch: Batch, velocity: Velocity) -> torch.Tensor:
        self.given.append((batch, {name: v.detach().clone() for name, v in velocity.items()}))
        return Dance.loss(self, batch, velocity)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingOfNoised(Asking):
    """The same, of noised images."""

    def plan(self, ctx):
        return star(ctx)

    def select(self, plan, outcome, advantage, ctx):
        return Nft.select(Nft(), plan, outcome, advantage, ctx)

    def loss(self, batch: Batch, velocity: Velocity) -> torch.Tensor:
        self.given.append((batch, {name: v.detach().clone() for name, v in velocity.items()}))
        return velocity["live"].square().mean()


def made(policy: ToyPolicy, algorithm: Any) -> Iteration:
    return iteration_of(policy, algorithm, CTX, encoded(policy, PROMPTS[:4]))


@pytest.mark.parametrize("kind", [Asking, AskingOfNoised])
@pytest.mark.parametrize("updates", [1, 2])
def test_a_loss_is_given_the_velocity_of_each_policy_it_needs(kind, updates):
    policy, algorithm = ToyPolicy(), kind()
    it = made(policy, algorithm)
    t = trainer(policy, needs=algorithm.needs, apart=0.3)
    kept = {name: [w.clone() for w in p.weights or ()] for name, p in t.named.items()}
    updated = update(t, algorithm, it, updates=updates, chunk=5, anchor="rollout", clip=None)

    slot_of_query = it.plan.tree.slot[it.selection.read]
    order = np.concatenate([np.flatnonzero(np.isin(slot_of_query, s)) for s in shards(it.noise, 4, updates)])
    for name, theirs in kept.items():
        other = ToyPolicy()
        with torch.no_grad():
            for p, w in zip((p for p in other.model.parameters() if p.requires_grad), theirs, strict=True):
                p.copy_(w)
        x = torch.cat([batch.x for batch, _ in algorithm.given])
        sigma = torch.cat([batch.sigma for batch, _ in algorithm.given])
        expected = other.velocity(x, sigma, it.condition.rows(torch.from_numpy(slot_of_query[order])))
        torch.testing.assert_close(torch.cat([v[name] for _, v in algorithm.given]), expected.detach())
    assert updated.named_calls == dict.fromkeys(sorted(POLICIES), len(it.selection.read))


def test_a_policy_that_is_the_live_one_is_asked_on_later_updates_alone_and_answers_as_the_iteration_began():
    policy, algorithm = ToyPolicy(), Asking(asked=frozenset({"old"}))
    it = made(policy, algorithm)
    start = ToyPolicy()
    t = trainer(policy, needs={"old"}, lr=1.0)
    updated = update(t, algorithm, it, updates=2, chunk=100, anchor="rollout", clip=None)
    (_, first), (batch, second) = algorithm.given
    assert torch.equal(first["old"], first["live"])
    late = np.isin(it.plan.tree.slot[it.selection.read], shards(it.noise, 4, 2)[1])
    slot = it.plan.tree.slot[it.selection.read][late]
    expected = start.velocity(batch.x, batch.sigma, it.condition.rows(torch.from_numpy(slot))).detach()
    torch.testing.assert_close(second["old"], expected)
    assert not torch.allclose(second["old"], second["live"], rtol=1e-2)
    assert updated.named_calls == {"old": late.sum()}
    assert not t.named["old"].is_live


def test_what_is_not_asked_for_is_not_computed():
    policy, plain = ToyPolicy(), Asking(asked=frozenset())
    it = made(policy, plain)
    before = policy.rows
    updated = update(trainer(policy), plain, it, updates=2, chunk=5, anchor="rollout", clip=None)
    assert policy.rows - before == updated.calls == len(it.selection.read)
    assert updated.named_calls == {}
    assert all(set(velocity) == {"live"} for _, velocity in plain.given)


def test_every_row_that_was_computed_is_counted():
    policy, algorithm = ToyPolicy(), Asking()
    it = made(policy, algorithm)
    t = trainer(policy, needs=POLICIES, apart=0.3)
    t.named["old"].is_live = True
    before = policy.rows
    updated = update(t, algorithm, it, updates=4, chunk=5, anchor="rollout", clip=None)
    assert policy.rows - before == updated.calls + sum(updated.named_calls.values())
    assert updated.named_calls["old"] == len(it.selection.read) * 3 // 4


def test_objectives_of_noised_images_have_no_ratio_to_report():
    policy, algorithm = ToyPolicy(), AskingOfNoised(asked=frozenset())
    it = made(policy, algorithm)
    updated = update(trainer(policy), algorithm, it, updates=2, chunk=5, anchor="recompute", clip=1e-4)
    assert (updated.drift, updated.log_ratio_max, updated.clip_fraction, updated.anchor_calls) == (None, None, None, 0)


def test_a_failed_prompt_does_not_stop_the_others():
    policy, algorithm = ToyPolicy(), Asking()
    it = made(policy, algorithm)
    keep = it.plan.tree.slot[it.selection.read] != 1
    s = it.selection
    query = np.cumsum(keep) - 1
    kept = keep[s.item_query]
    less = replace(
        s,
        read=s.read[keep],
        sigma=s.sigma[keep],
        draw=s.draw[keep],
        unit=s.unit[keep],
        item_query=query[s.item_query[kept]],
        item_node=s.item_node[kept],
        weight=s.weight[kept],
    )
    t = trainer(policy, needs=POLICIES)
    updated = update(t, algorithm, replace(it, selection=less), updates=4, chunk=5, anchor="rollout", clip=None)
    assert updated.calls == keep.sum()


def test_the_ratio_of_paths_that_another_policy_sampled_is_not_one():
    """A plan sampled by the old policy, apart from the live one: the first shard's ratio is the true one."""
    policy, algorithm = ToyPolicy(), Asking(asked=frozenset({"old"}))
    it = made(policy, algorithm)
    it = replace(it, plan=replace(it.plan, policy="old"))
    t = trainer(policy, needs={"old"}, apart=0.3)
    with exchanged(t.parameters(), t.named["old"]):
        it = replace(it, rollout=made(policy, algorithm).rollout)  # of the old weights
    updated = update(t, algorithm, it, updates=2, chunk=100, anchor="recompute", clip=1e-4)
    for batch, velocity in algorithm.given[:1]:
        expected = batch.log_prob(velocity["old"])  # the density of what was sampled, under who sampled it
        torch.testing.assert_close(batch.log_prob_old, expected, rtol=1e-4, atol=1e-4)
        assert (batch.log_prob(velocity["live"]) - batch.log_prob_old).abs().max() > 1e-2
    assert updated.drift is None
    assert (updated.log_ratio_max or 0) > 1e-2
    assert updated.anchor_calls == 0
