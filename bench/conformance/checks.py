"""What every algorithm must keep to, as statements that hold or say why not.

Each check takes a `Subject` and raises `ContractError` with what is wrong. `bench check` runs them all; in tests:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_algorithm_keeps_the_contract(check):
        check(subjects("my_algorithm.py")[0])
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench import kernel
from bench.config import cell_from_record, cell_record
from bench.conformance.cases import SLOTS, Case, Subject, case
from bench.conformance.toy import PROMPTS, RecordingSGD, ToyPolicy, iteration_of, trainer
from bench.contract import NEEDS, OWNABLE
from bench.hosts import hosts, settings
from bench.registry import InputError
from bench.select import Selection
from bench.update import Iteration, Updated, update

LONGEST = 140
"""Lines of an algorithm's file."""
CHOICES = ("plan", "credit", "select", "loss")


class ContractError(AssertionError):
    """An algorithm does not keep to the contract."""


def require(holds: object, said: str) -> None:
    """Raise ContractError, saying why, unless the condition holds."""
    if not holds:
        raise ContractError(said)


def close(found: np.ndarray, expected: np.ndarray, said: str, within: float = 1e-6) -> None:
    """Raise ContractError unless two arrays agree."""
    far = float(np.abs(found - expected).max(initial=0.0))
    require(far <= within, f"{said}: they differ by up to {far:.3g}")


def a_plan_is_a_forest_with_the_claimed_leaves(subject: Subject) -> None:
    """At every horizon and group size that it accepts, a plan has trees in every slot, with G leaves if claimed."""
    for c in subject.cases:
        leaves = np.bincount(c.plan.tree.slot[c.outcome.leaf], minlength=SLOTS)
        require(len(leaves) == SLOTS and leaves.min() > 0, f"T={c.ctx.steps}: leaves by slot are {leaves.tolist()}")
        claimed = "group_size" not in c.algorithm.info.claims or bool((leaves == c.ctx.group_size).all())
        require(claimed, f"{leaves.tolist()} leaves a slot, though it claims group_size, here {c.ctx.group_size}")
        require(c.plan.sigmas[0] == c.ctx.sigmas[0], "a plan's grid starts where the suite's does")


def a_prompts_plan_is_the_same_alone_or_among_others(subject: Subject) -> None:
    """What happens to a prompt does not depend on how many others the iteration has."""
    for c in subject.cases:
        alone, first = c.algorithm.plan(replace(c.ctx, slots=1)), c.plan.tree.slot == 0
        require(len(alone.tree) == first.sum(), f"{len(alone.tree)} nodes alone, {first.sum()} among others")
        for name in ("noise_level", "coupling"):
            close(getattr(alone, name), getattr(c.plan, name)[first], f"{name} alone and among others", 0.0)


def a_shift_of_all_rewards_changes_no_advantage(subject: Subject) -> None:
    """Only differences of rewards teach."""
    for c in subject.cases:
        moved = replace(c.outcome, reward=c.outcome.reward + 40.0)
        again = np.nan_to_num(c.algorithm.credit(c.plan, moved, c.ctx))
        close(again, c.advantage, "advantages after all rewards rose by 40")


def advantages_sum_to_zero_where_it_claims_so(subject: Subject) -> None:
    """Over the scored leaves of an iteration; and some leaf has an advantage at all."""
    for c in subject.cases:
        leaf = c.advantage[c.outcome.leaf]
        require(leaf.max() > 1e-3, "no leaf has an advantage above 0, though rewards differ")
        claims = "zero_sum" in c.algorithm.info.claims
        require(not claims or abs(leaf.sum()) < 1e-8, f"leaves' advantages sum to {leaf.sum():.3g}, claimed is 0")


def a_better_image_has_no_smaller_advantage(subject: Subject) -> None:
    """Raising one leaf's reward never lowers that leaf's advantage."""
    for c in subject.cases:
        for row in range(0, len(c.outcome.leaf), max(1, len(c.outcome.leaf) // 5)):
            reward, node = c.outcome.reward.copy(), c.outcome.leaf[row]
            reward[row] += 0.5
            better = np.nan_to_num(c.algorithm.credit(c.plan, replace(c.outcome, reward=reward), c.ctx))[node]
            said = f"leaf {row} earns more, and its advantage falls from {c.advantage[node]:.3g} to {better:.3g}"
            require(better >= c.advantage[node] - 1e-9, said)


def equal_rewards_teach_nothing(subject: Subject) -> None:
    """Where all images are worth the same, all advantages are 0."""
    for c in subject.cases:
        flat = replace(c.outcome, reward=np.full(len(c.outcome.leaf), 0.3))
        found = np.nan_to_num(c.algorithm.credit(c.plan, flat, c.ctx))
        close(found, np.zeros(len(found)), "advantages of equal rewards, and 0")


def a_selection_is_in_range(subject: Subject) -> None:
    """Stored latents: stochastic edges at trained steps, each once, read at their parents. Noised ones: leaves."""
    for c in subject.cases:
        for allowed in (c.ctx.train_steps, c.ctx.train_steps[: len(c.ctx.train_steps) // 2 + 1]):
            ctx = replace(c.ctx, train_steps=allowed)
            s = c.algorithm.select(c.plan, c.outcome, c.advantage, ctx)
            require(set(s.item_query.tolist()) == set(range(len(s.read))), "a query has no item: a pass for nothing")
            require(((s.sigma > 0) & (s.sigma <= 1)).all(), "a query's sigma lies in (0, 1]")
            (_forward_in_range if (s.draw >= 0).any() else _trajectory_in_range)(c, s, allowed)


def _trajectory_in_range(c: Case, s: Selection, allowed: tuple[int, ...]) -> None:
    tree = c.plan.tree
    require(len(set(s.item_node.tolist())) == len(s.item_node), "an edge is selected twice")
    require((c.plan.noise_level[s.item_node] > 0).all(), "an ODE edge is selected: it has no density")
    steps = set((tree.depth[s.item_node] - 1).tolist())
    require(steps <= set(allowed), f"steps {sorted(steps - set(allowed))} are selected, train_steps has {allowed}")
    close(s.read[s.item_query], tree.parent[s.item_node], "queries' nodes and their items' parents", 0.0)
    close(s.sigma, c.plan.sigmas[tree.depth[s.read]], "queries' sigmas and their nodes'", 1e-12)
    require(len(set(s.read.tolist())) == len(s.read), "children of one parent have a query each; they can share one")


def _forward_in_range(c: Case, s: Selection, allowed: tuple[int, ...]) -> None:
    require((s.draw >= 0).all(), "stored latents and noised leaves are mixed in one selection")
    require(np.isin(s.read, c.outcome.leaf).all(), f"a node is noised that is no leaf, with train_steps={allowed}")
    close(s.item_node, s.read[s.item_query], "items' nodes and the leaves that are read", 0.0)


def every_slot_weighs_the_same(subject: Subject) -> None:
    """Weights are positive and finite, and no prompt has more say than another."""
    for c in subject.cases:
        require((np.isfinite(c.selection.weight) & (c.selection.weight > 0)).all(), "a weight is not positive")
        by_slot = np.bincount(c.plan.tree.slot[c.selection.item_node], c.selection.weight, minlength=SLOTS)
        close(by_slot, np.full(SLOTS, by_slot.mean()), "total weights of the slots", 1e-9)


def failed_leaves_count_for_nothing(subject: Subject) -> None:
    """A leaf without a score is not selected, and moves no statistic of the others to NaN."""
    for c in subject.cases:
        slot, row = c.plan.tree.slot[c.outcome.leaf], np.arange(len(c.outcome.leaf))
        failed = (slot == 1) | (row % c.ctx.group_size == 1)  # a slot as a whole, a leaf of the others
        found = case(c.cell, np.where(failed, np.nan, c.outcome.reward))
        raw = c.algorithm.credit(c.plan, found.outcome, c.ctx)[c.outcome.leaf]
        require(not np.isnan(raw[~failed]).any(), "a scored leaf's advantage is NaN because another leaf failed")
        require(np.isnan(raw[failed]).all(), "a failed leaf has an advantage; NaN says that nothing is known")
        known = np.zeros(len(c.plan.tree), bool)
        for node in c.outcome.leaf[~failed]:
            while node >= 0:
                known[node], node = True, c.plan.tree.parent[node]
        require(known[found.selection.item_node].all(), "an edge is selected that leads to no scored leaf")


def the_same_context_gives_the_same_choices(subject: Subject) -> None:
    """Choices are functions: no clock, no counter, no random numbers but keyed ones."""
    for c in subject.cases:
        again = case(c.cell)
        close(again.plan.noise_level, c.plan.noise_level, "noise levels of two plans", 0.0)
        close(again.advantage, c.advantage, "advantages of two calls", 0.0)
        for name in ("read", "sigma", "draw", "item_query", "item_node", "weight"):
            close(getattr(again.selection, name), getattr(c.selection, name), f"{name} of two selections", 0.0)


def choices_change_no_value_they_are_given(subject: Subject) -> None:
    """Stages are frozen values; an algorithm that writes into one would change what others read."""
    c = case(subject.smallest.cell)
    for array in (c.outcome.reward, c.outcome.log_prob, c.outcome.leaf, c.advantage, c.plan.noise_level, c.ctx.sigmas):
        array.setflags(write=False)
    try:
        c.algorithm.plan(c.ctx)
        c.algorithm.credit(c.plan, c.outcome, c.ctx)
        c.algorithm.select(c.plan, c.outcome, c.advantage, c.ctx)
    except ValueError as error:
        raise ContractError(f"it writes into what it is given: {error}") from error


def memory_is_json(subject: Subject) -> None:
    """What it remembers can be written into a checkpoint, and read by the next iteration."""
    c = subject.smallest
    memory = c.algorithm.remember(c.plan, {c.outcome.name: c.outcome}, c.ctx)
    try:
        read_back = json.loads(json.dumps(memory, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ContractError(f"what it remembers is not JSON: {error}") from error
    require(read_back == memory, "what it remembers is another value after JSON: keys are text, tuples become lists")
    c.algorithm.credit(c.plan, c.outcome, replace(c.ctx, memory=read_back))


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
    _, alone = _update(subject, policy, replace(it, selection=_unshared(it.selection)), updates=1, chunk=1, apart=0.05)
    _same_gradient(alone[0], together[0], "gradients with one item a call and with shared passes")


def later_updates_stay_finite(subject: Subject) -> None:
    """Off policy, after a step on another shard, losses and gradients are still numbers."""
    policy, it = _iteration(subject)
    updated, gradients = _update(subject, policy, it, updates=SLOTS, lr=1e-3)
    require(np.isfinite(updated.loss), f"the loss of {SLOTS} updates is {updated.loss}")
    require(all(bool(torch.isfinite(g).all()) for g in gradients), "a later gradient is not finite")


def a_cell_is_what_its_record_says(subject: Subject) -> None:
    """Settings survive the way to config.yaml and back."""
    cell = subject.smallest.cell
    written = json.loads(json.dumps(cell_record(cell)))
    try:
        read_back = cell_from_record(written, subject.algorithms)
    except InputError as error:
        raise ContractError(f"its record cannot be read back: {error}") from error
    require(read_back == cell, f"its record reads back as {read_back.algorithm}, not {cell.algorithm}")


def what_a_reader_must_know_is_there(subject: Subject) -> None:
    """Paper, reference, deviations and what it owns; documented choices; known needs."""
    algorithm, effective = subject.smallest.algorithm, subject.smallest.cell.effective
    info = algorithm.info
    require(bool(info.paper and info.reference), "info says neither paper nor reference, or only one")
    require(all(len(line) > 20 for line in info.deviations), "a deviation is too short to be understood")
    require(info.owns <= OWNABLE & effective.keys(), f"it owns {sorted(info.owns)}")
    mine = settings(algorithm).keys() | {key for host in hosts(algorithm) for key in settings(host)}
    require(info.owns <= mine, f"it owns {sorted(info.owns - mine)} without a setting of that name")
    require(algorithm.needs <= NEEDS, f"it needs {sorted(algorithm.needs - NEEDS)}; offered are {sorted(NEEDS)}")
    silent = [name for name in CHOICES if not (getattr(type(algorithm), name).__doc__ or "").strip()]
    require(not silent, f"no docstring says the rule of {', '.join(silent)}")
    require(bool((type(algorithm).__doc__ or "").strip()), "its class has no docstring")


def its_file_is_short(subject: Subject) -> None:
    """An algorithm reads like its paper's method section."""
    lines = len(Path(inspect.getfile(type(subject.smallest.algorithm))).read_text(encoding="utf-8").splitlines())
    require(lines <= LONGEST, f"its file has {lines} lines; {LONGEST} are the most")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    a_plan_is_a_forest_with_the_claimed_leaves,
    a_prompts_plan_is_the_same_alone_or_among_others,
    a_shift_of_all_rewards_changes_no_advantage,
    advantages_sum_to_zero_where_it_claims_so,
    a_better_image_has_no_smaller_advantage,
    equal_rewards_teach_nothing,
    a_selection_is_in_range,
    every_slot_weighs_the_same,
    failed_leaves_count_for_nothing,
    the_same_context_gives_the_same_choices,
    choices_change_no_value_they_are_given,
    memory_is_json,
    the_first_update_is_on_policy,
    sharing_a_pass_changes_no_gradient,
    later_updates_stay_finite,
    a_cell_is_what_its_record_says,
    what_a_reader_must_know_is_there,
    its_file_is_short,
)
"""Each raises `ContractError`, or `InputError` where an arm has no plan at all."""


def _iteration(subject: Subject) -> tuple[ToyPolicy, Iteration]:
    policy, c = ToyPolicy(), subject.smallest
    return policy, iteration_of(policy, c.algorithm, c.ctx, policy.encode(PROMPTS[:SLOTS]))


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
    return replace(
        s,
        read=s.read[s.item_query],
        sigma=s.sigma[s.item_query],
        draw=s.draw[s.item_query],
        unit=s.unit[s.item_query] if (s.draw >= 0).any() else np.arange(len(s.item_query)),
        item_query=np.arange(len(s.item_query)),
    )


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
