"""What an update must keep to, on a policy that costs microseconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bench import kernel
from bench.conformance.cases import SLOTS, Subject
from bench.conformance.statements import of_transitions, require
from bench.conformance.toy import PROMPTS, RecordingSGD, ToyPolicy, iteration_of, trainer
from bench.hosts import settings
from bench.policy import encoded
from bench.select import Selection
from bench.update import Iteration, Updated, build_batch, evaluate, update


def the_first_update_is_on_policy(subject: Subject) -> None:
    """Its loss is finite, its ratio 1; if it claims so, its gradient is the policy gradient of the selected edges."""
    policy, it = _iteration(subject)
    claims = subject.smallest.algorithm.info.claims
    expected = _policy_gradient(policy, it) if "policy_gradient" in claims else None
    updated, (gradient, *_) = _update(subject, policy, it, updates=1)
    require(np.isfinite(updated.loss), f"its loss is {updated.loss}")
    require(bool(torch.isfinite(gradient).all()), "its gradient is not finite")
    require(float(gradient.abs().max()) > 0, "its gradient is 0: it learns nothing")
    require(not updated.log_ratio_max, f"the first log-ratio is {updated.log_ratio_max}")
    require((updated.drift or 0.0) < 1e-5, f"log-probs in training are {updated.drift} off those of the rollout")
    if expected is not None:
        _same_gradient(gradient, expected, "its first gradient and sum of weight * A * grad log p")


def sharing_a_pass_changes_no_gradient(subject: Subject) -> None:
    """One item a call, with queries of their own, has the gradient of shared queries in large batches."""
    policy, it = _iteration(subject)
    _, together = _update(subject, policy, it, updates=1, apart=0.05)
    policy, it = _iteration(subject)
    selection = _unshared(it.selection) if of_transitions(it.plan, it.selection) else it.selection
    _, alone = _update(subject, policy, replace(it, selection=selection), updates=1, chunk=1, apart=0.05)
    _same_gradient(alone[0], together[0], "gradients with one item a call and with shared passes")


def later_updates_stay_finite(subject: Subject) -> None:
    """Off policy, after a step on another shard, losses and gradients are still numbers."""
    policy, it = _iteration(subject, SLOTS)
    updated, gradients = _update(subject, policy, it, updates=SLOTS, lr=1e-3)
    require(np.isfinite(updated.loss), f"the loss of {SLOTS} updates is {updated.loss}")
    require(all(bool(torch.isfinite(g).all()) for g in gradients), "a later gradient is not finite")


def a_ratio_beyond_the_clip_range_stops_what_it_pushes(subject: Subject) -> None:
    """A transition that became likelier than the range allows has no gradient, if its advantage is positive."""
    policy, it = _iteration(subject, SLOTS)
    if "clip" not in settings(subject.smallest.algorithm) or not of_transitions(it.plan, it.selection):
        return
    lower = replace(it.rollout, log_prob=it.rollout.log_prob - 1.0)
    good = replace(it, rollout=lower, advantage=np.ones(len(it.advantage)))
    _, (first, *later) = _update(subject, policy, good, updates=SLOTS, lr=0.0)
    scale = float(first.abs().max())
    require(scale > 0, "with advantages of 1 the first gradient is 0")
    most = max(float(gradient.abs().max()) for gradient in later)
    require(
        most <= 1e-5 * scale, f"ratios of e are not clipped: a gradient of {most:.3g}, where the first is {scale:.3g}"
    )


def training_follows_the_advantage(subject: Subject) -> None:
    """A small step on one image of positive advantage makes it likelier, of negative advantage less likely."""
    for sign in (1.0, -1.0):
        policy, it = _iteration(subject)
        node = int(it.plan.tree.leaves()[0])
        path = np.zeros(len(it.advantage), bool)
        while node >= 0:
            path[node], node = True, int(it.plan.tree.parent[node])
        one = replace(it, advantage=sign * path)
        items = np.flatnonzero(path[one.selection.item_node])
        if not len(items) or not (of_transitions(it.plan, it.selection) or (it.selection.draw >= 0).all()):
            return
        before = _likelihood(policy, one, items)
        _update(subject, policy, one, updates=1, lr=1e-4)
        gained = _likelihood(policy, one, items) - before
        said = f"an image of advantage {sign:+.0f} became {'less' if sign > 0 else 'more'} likely, by {abs(gained):.3g}"
        require(sign * gained > 0, said)


def _iteration(subject: Subject, updates: int = 1) -> tuple[ToyPolicy, Iteration]:
    policy, c = ToyPolicy(), subject.smallest
    return policy, iteration_of(policy, c.algorithm, replace(c.ctx, updates=updates), encoded(policy, PROMPTS[:SLOTS]))


def _update(
    subject: Subject,
    policy: ToyPolicy,
    it: Iteration,
    *,
    updates: int,
    chunk: int = 100,
    lr: float = 0.1,
    apart: float = 0.0,
) -> tuple[Updated, list[Tensor]]:
    algorithm = subject.smallest.algorithm
    t = trainer(policy, lr=lr, needs=algorithm.needs, apart=apart)
    updated = update(t, algorithm, it, updates=updates, chunk=chunk, anchor="rollout", clip=None)
    assert isinstance(t.optimizer, RecordingSGD)
    return updated, t.optimizer.seen


def _same_gradient(found: Tensor, expected: Tensor, said: str) -> None:
    scale = float(expected.abs().max())
    far = float((found - expected).abs().max())
    require(scale > 0 and far <= 1e-4 * scale, f"{said} differ by {far:.3g} where the largest entry is {scale:.3g}")


def _unshared(s: Selection) -> Selection:
    """Return the selection with a query of its own for every item."""
    own = np.arange(len(s.item_query))
    read, sigma, draw = (value[s.item_query] for value in (s.read, s.sigma, s.draw))
    update = None if s.update is None else s.update[s.item_query]
    return replace(s, read=read, sigma=sigma, draw=draw, unit=own, item_query=own, update=update)


@torch.no_grad()
def _likelihood(policy: ToyPolicy, it: Iteration, items: np.ndarray) -> float:
    """Return the mean log-prob of items' transitions; of noised images, minus the squared error of their velocities."""
    batch = build_batch(it, np.arange(len(it.selection.read)), it.rollout.log_prob, 1.0)
    velocity = evaluate(policy, it, np.arange(len(it.selection.read)), batch.x, batch.sigma)
    if batch.eps is None:
        return float(batch.log_prob(velocity)[items].double().mean())
    wanted = batch.eps[batch.item_query] - batch.target
    return -float((velocity[batch.item_query] - wanted)[items].double().square().mean())


def _policy_gradient(policy: ToyPolicy, it: Iteration) -> Tensor:
    """Return -sum weight * A * grad log p(edge), an edge at a time."""
    plan, s = it.plan, it.selection
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters))
    for node, weight in zip(s.item_node.tolist(), s.weight.tolist(), strict=True):
        parent = int(plan.tree.parent[node])
        sigma, after = (float(plan.sigmas[int(plan.tree.depth[n])]) for n in (parent, node))
        x, y = it.rollout.at(np.array([parent])), it.rollout.at(np.array([node]))
        velocity = policy.velocity(
            x, torch.tensor([sigma]), it.condition.rows(torch.tensor([int(plan.tree.slot[node])]))
        )
        level = float(plan.noise_level[node])
        step = kernel.step(plan.kernel, velocity, x, sigma, after, level, float(plan.sigmas[1]))
        parts = torch.autograd.grad(step.log_prob(y).sum(), parameters)
        total -= weight * float(it.advantage[node]) * torch.cat([part.flatten() for part in parts])
    return total
