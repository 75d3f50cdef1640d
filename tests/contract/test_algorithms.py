"""What every registered algorithm must keep to. A newcomer is tested by being registered.

Each arm runs with every horizon and group size it has a plan for, on a toy policy; variants add settings whose
choices differ.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from oracle.edges import edge_gradient, log_prob
from toy import PROMPTS, RecordingSGD, ToyPolicy, iteration_of, rewards_of, trainer

from bench.config import Cell, Shared, cell_from_record, cell_record, make_cell, parse_arms, resolve
from bench.contract import OWNABLE, Algorithm, Context, Outcome
from bench.plan import Plan
from bench.preview import check_claims, planned
from bench.registry import InputError, load
from bench.select import Selection
from bench.update import Iteration, update

ALGORITHMS = load("algorithms")
VARIANTS = {
    "dance": ("dance(tf=0.6)", "dance(roots=independent)", "dance(scope=global,kernel=cps)"),
    "mix": ("mix(window=2,strategy=random)", "mix(strategy=linear-decay,tau=2)", "mix(strategy=frozen,start=1)"),
    "branch": (
        "branch(splits=[0,2])",
        "branch(splits=[0],factor=4)",
        "branch(credit_by=leaf)",
        "branch(fusion=uniform)",
    ),
    "branch-widpru": ("branch-widpru(splits=[0,2])",),
    "branch-widpru-extreme": ("branch-widpru-extreme(splits=[0,1,2])",),
    "branch-deppru": ("branch-deppru(splits=[0,2],window=2,slide=1)",),
    "branch-mix": ("branch-mix(splits=[0,2],window=2,slide=1)",),
}
ARMS = [arm for name in sorted(ALGORITHMS.values) for arm in (name, *VARIANTS.get(name, ()))]
SHAPES = [(steps, group) for steps in (6, 12, 20) for group in (2, 4, 8, 16)]
SLOTS, ITERATION = 3, 1
every_arm = pytest.mark.parametrize("arm", ARMS)


@dataclass(frozen=True, kw_only=True)
class Case:
    """An arm at one horizon and group size, up to what it selects after made-up rewards."""

    cell: Cell
    ctx: Context
    plan: Plan
    outcome: Outcome
    advantage: np.ndarray
    selection: Selection

    @property
    def algorithm(self) -> Algorithm:
        return self.cell.algorithm


def make(arm: str, steps: int, group: int, *, iteration: int = ITERATION, **shared) -> Cell:
    (spec,) = parse_arms(arm)
    keys = Shared(steps=steps, group_size=group, iterations=iteration + 1, prompts_per_iteration=SLOTS, **shared)
    return make_cell("contract", spec, 7, keys, resolve(spec, keys, {}, ALGORITHMS), ())


def case(cell: Cell, reward: np.ndarray | None = None) -> Case:
    ctx = cell.context(ITERATION, SLOTS, {})
    plan = cell.algorithm.plan(ctx)
    log_prob = np.where(plan.noise_level > 0, np.cos(np.arange(len(plan.tree))), np.nan)
    known = rewards_of(plan) if reward is None else reward
    outcome = Outcome(log_prob=log_prob, reward=known, leaf=plan.tree.leaves())
    advantage = np.nan_to_num(cell.algorithm.credit(plan, outcome, ctx))
    selection = cell.algorithm.select(plan, outcome, advantage, ctx)
    return Case(cell=cell, ctx=ctx, plan=plan, outcome=outcome, advantage=advantage, selection=selection)


@cache
def cases(arm: str) -> tuple[Case, ...]:
    """Return the arm's cases: the shapes it has a plan for."""
    found = []
    for steps, group in SHAPES:
        cell = make(arm, steps, group)
        try:
            planned(cell)
        except InputError:
            continue
        found.append(case(cell))
    assert found, f"{arm} has a plan for none of (steps, group size) {SHAPES}"
    return tuple(found)


def trained(arm: str, reward: np.ndarray | None = None) -> tuple[ToyPolicy, Algorithm, Iteration, Context]:
    """Return a rolled-out iteration of the arm's smallest case."""
    small, policy = cases(arm)[0], ToyPolicy()
    it = iteration_of(policy, small.algorithm, small.ctx, policy.encode(PROMPTS[:SLOTS]), reward)
    return policy, small.algorithm, it, small.ctx


@every_arm
def test_a_plan_has_one_forest_with_the_claimed_leaves_in_every_slot(arm):
    for c in cases(arm):
        leaves = np.bincount(c.plan.tree.slot[c.plan.tree.leaves()], minlength=SLOTS)
        assert len(leaves) == SLOTS
        if "group_size" in c.algorithm.info.claims:
            assert leaves.tolist() == [c.ctx.group_size] * SLOTS
        np.testing.assert_array_equal(c.plan.sigmas, c.ctx.sigmas)
        check_claims(make(arm, c.ctx.steps, c.ctx.group_size), c.algorithm.plan(replace(c.ctx, slots=1)))


@every_arm
def test_a_slots_plan_does_not_depend_on_how_many_slots_there_are(arm):
    for c in cases(arm):
        alone = c.algorithm.plan(replace(c.ctx, slots=1))
        first = c.plan.tree.slot == 0
        np.testing.assert_array_equal(alone.tree.depth, c.plan.tree.depth[first])
        np.testing.assert_array_equal(alone.noise_level, c.plan.noise_level[first])
        np.testing.assert_array_equal(alone.coupling, c.plan.coupling[first])


@every_arm
def test_a_shift_of_all_rewards_changes_no_advantage(arm):
    for c in cases(arm):
        moved = replace(c.outcome, reward=c.outcome.reward + 40.0)
        again = np.nan_to_num(c.algorithm.credit(c.plan, moved, c.ctx))
        np.testing.assert_allclose(again, c.advantage, atol=1e-6)


@every_arm
def test_the_advantages_of_the_leaves_sum_to_zero(arm):
    for c in cases(arm):
        leaf = c.advantage[c.outcome.leaf]
        assert leaf.sum() == pytest.approx(0, abs=1e-9)
        assert leaf.max() > 0.1


@every_arm
def test_better_leaves_have_larger_advantages_in_every_slot(arm):
    for c in cases(arm):
        slot = c.plan.tree.slot[c.outcome.leaf]
        for s in range(SLOTS):
            order = np.argsort(c.outcome.reward[slot == s])
            assert (np.diff(c.advantage[c.outcome.leaf][slot == s][order]) > 0).all()


@every_arm
def test_equal_rewards_teach_nothing(arm):
    for c in cases(arm):
        flat = replace(c.outcome, reward=np.full(len(c.outcome.leaf), 0.3))
        np.testing.assert_allclose(np.nan_to_num(c.algorithm.credit(c.plan, flat, c.ctx)), 0, atol=1e-6)


@every_arm
def test_only_stochastic_edges_at_allowed_steps_are_selected_and_each_once(arm):
    for c in cases(arm):
        for allowed in (c.ctx.train_steps, c.ctx.train_steps[: len(c.ctx.train_steps) // 2 + 1]):
            ctx = replace(c.ctx, train_steps=allowed)
            s = c.algorithm.select(c.plan, c.outcome, c.advantage, ctx)
            assert len(set(s.item_node.tolist())) == len(s.item_node)
            assert (c.plan.noise_level[s.item_node] > 0).all()
            assert set((c.plan.tree.depth[s.item_node] - 1).tolist()) <= set(allowed)
            np.testing.assert_array_equal(s.read[s.item_query], c.plan.tree.parent[s.item_node])
            np.testing.assert_array_equal(s.sigma, c.plan.sigmas[c.plan.tree.depth[s.read]])
            assert len(set(s.read.tolist())) == len(s.read)  # children share one pass
            assert set(s.item_query.tolist()) == set(range(len(s.read)))  # and no pass is for nothing


@every_arm
def test_weights_are_positive_and_sum_to_one(arm):
    for c in cases(arm):
        assert (c.selection.weight > 0).all()
        assert c.selection.weight.sum() == pytest.approx(1)


@every_arm
def test_every_slot_trains_as_many_edges_as_one_alone(arm):
    for c in cases(arm):
        edges = np.bincount(c.plan.tree.slot[c.selection.item_node], minlength=SLOTS)
        assert edges.tolist() == [len(c.selection.item_node) / SLOTS] * SLOTS


@every_arm
def test_failed_leaves_count_for_nothing_and_are_not_selected(arm):
    for c in cases(arm):
        tree, leaf = c.plan.tree, c.outcome.leaf
        slot, row = tree.slot[leaf], np.arange(len(leaf))
        failed = (slot == 1) | (row % c.ctx.group_size == 1)  # a slot as a whole, a leaf of the others
        found = case(c.cell, np.where(failed, np.nan, c.outcome.reward))
        raw = c.algorithm.credit(c.plan, found.outcome, c.ctx)
        assert not np.isnan(raw[leaf[~failed]]).any()
        assert np.isnan(raw[leaf[failed]]).all()
        known = np.zeros(len(tree), bool)
        for n in leaf[~failed]:
            while n >= 0:
                known[n], n = True, tree.parent[n]
        assert known[found.selection.item_node].all()
        assert (tree.slot[found.selection.item_node] != 1).all()
        assert found.advantage[leaf].sum() == pytest.approx(0, abs=1e-9)  # the statistics are those of the scored


@every_arm
def test_the_same_context_gives_the_same_choices(arm):
    for c in cases(arm):
        again = case(make(arm, c.ctx.steps, c.ctx.group_size))
        np.testing.assert_array_equal(again.plan.noise_level, c.plan.noise_level)
        np.testing.assert_array_equal(again.advantage, c.advantage)
        for name in ("read", "item_query", "item_node", "weight"):
            np.testing.assert_array_equal(getattr(again.selection, name), getattr(c.selection, name))


@every_arm
def test_choices_change_no_value_they_are_given(arm):
    c = cases(arm)[0]
    for array in (c.outcome.reward, c.outcome.log_prob, c.outcome.leaf, c.advantage, c.plan.noise_level):
        array.setflags(write=False)
    c.algorithm.credit(c.plan, c.outcome, c.ctx)
    c.algorithm.select(c.plan, c.outcome, c.advantage, c.ctx)
    assert c.algorithm.remember(c.plan, c.outcome, c.ctx) == {}


@every_arm
def test_the_first_update_has_ratio_one_and_is_the_policy_gradient(arm):
    policy, algorithm, it, _ = trained(arm)
    expected, t = edge_gradient(policy, it), trainer(policy)
    updated = update(t, algorithm, it, updates=1, chunk=5, anchor="rollout", clip=1e-4)
    assert isinstance(t.optimizer, RecordingSGD)
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(t.optimizer.seen[0], expected, rtol=1e-4, atol=1e-5 * scale)
    assert updated.log_ratio_max == 0
    assert updated.drift < 1e-5
    assert np.isfinite(updated.loss)


@every_arm
def test_an_update_makes_good_edges_likelier_and_bad_ones_less_likely(arm):
    policy, algorithm, it, _ = trained(arm)
    nodes, weight = it.selection.item_node.tolist(), it.selection.weight * it.advantage[it.selection.item_node]

    def gain() -> float:
        with torch.no_grad():
            return float(sum(w * float(log_prob(policy, it, n)) for n, w in zip(nodes, weight, strict=True)))

    before = gain()
    update(trainer(policy, lr=1e-4), algorithm, it, updates=1, chunk=100, anchor="rollout", clip=1e-4)
    assert gain() > before


@every_arm
def test_a_ratio_beyond_the_clip_range_stops_what_its_advantage_pushes(arm):
    policy, algorithm, it, _ = trained(arm)
    lower = replace(it, rollout=replace(it.rollout, log_prob=it.rollout.log_prob - 1.0))
    good = replace(lower, advantage=np.ones(len(it.advantage)))
    t = trainer(policy, lr=0.0)
    update(t, algorithm, good, updates=SLOTS, chunk=100, anchor="rollout", clip=1e-4)
    assert isinstance(t.optimizer, RecordingSGD)
    first, *later = t.optimizer.seen
    assert float(first.abs().max()) > 0
    assert all(float(gradient.abs().max()) == 0 for gradient in later)


@every_arm
def test_a_cell_is_what_its_record_says(arm):
    cell = cases(arm)[0].cell
    read_back = cell_from_record(yaml.safe_load(yaml.safe_dump(cell_record(cell))), ALGORITHMS)
    assert read_back == cell


@every_arm
def test_what_a_reader_must_know_is_there(arm):
    info = cases(arm)[0].algorithm.info
    assert info.paper
    assert info.reference
    assert all(len(line) > 20 for line in info.deviations)
    assert info.owns <= OWNABLE
    assert info.owns <= set(cases(arm)[0].cell.effective)


@every_arm
def test_it_is_one_short_documented_file(arm):
    kind = type(cases(arm)[0].algorithm)
    text = Path(inspect.getfile(kind)).read_text()
    assert len(text.splitlines()) <= 140
    for choice in ("plan", "credit", "select", "loss"):
        assert vars(kind)[choice].__doc__, f"{kind.__name__}.{choice} says nothing of its rule"


def test_every_algorithm_loads():
    assert ALGORITHMS.broken == {}
    assert set(VARIANTS) <= set(ALGORITHMS.values)
