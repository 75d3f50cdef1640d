"""What plan, credit, select and remember must keep to: numbers alone, no model."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.config import cell_from_record, cell_record
from bench.conformance.cases import SLOTS, Case, Subject, case
from bench.conformance.statements import ContractError, close, of_transitions, require
from bench.contract import CHOICES
from bench.hosts import settings
from bench.parse import replaced
from bench.registry import InputError
from bench.select import Selection

LONGEST = 140
"""Lines of an algorithm's file."""


def a_plan_is_a_forest_with_the_claimed_leaves(subject: Subject) -> None:
    """At every horizon and group size that it accepts, a plan has trees in every slot, with G leaves if claimed."""
    for c in subject.cases:
        leaves = np.bincount(c.plan.tree.slot[c.outcome.leaf], minlength=SLOTS)
        require(len(leaves) == SLOTS and leaves.min() > 0, f"T={c.ctx.steps}: leaves by slot are {leaves.tolist()}")
        claimed = "group_size" not in c.algorithm.info.claims or bool((leaves == c.ctx.group_size).all())
        require(claimed, f"{leaves.tolist()} leaves a slot, though it claims group_size, here {c.ctx.group_size}")
        grid = "steps" in c.algorithm.info.owns or np.array_equal(c.plan.sigmas, c.ctx.sigmas)
        require(grid, "its plan has a sigma grid of its own, though it does not own steps")


def a_prompts_plan_is_the_same_alone_or_among_others(subject: Subject) -> None:
    """What happens to a prompt does not depend on how many others the iteration has."""
    for c in subject.cases:
        alone, first = c.algorithm.plan(replace(c.ctx, slots=1)), c.plan.tree.slot == 0
        require(len(alone.tree) == first.sum(), f"{len(alone.tree)} nodes alone, {first.sum()} among others")
        for name in ("noise_level", "coupling", "noise_scale"):
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


def better_images_below_a_node_do_not_lower_its_advantage(subject: Subject) -> None:
    """Raising the rewards of all leaves below a node never lowers that node's advantage."""
    for c in subject.cases:
        tree = c.plan.tree
        for depth in range(1, tree.steps, max(1, tree.steps // 4)):
            node = int(tree.offset[depth])
            below = tree.ancestor(depth)[c.outcome.leaf] == node
            reward = c.outcome.reward + 0.5 * below
            better = np.nan_to_num(c.algorithm.credit(c.plan, replace(c.outcome, reward=reward), c.ctx))[node]
            said = f"the leaves below node {node} earn more, and its advantage falls from {c.advantage[node]:.3g}"
            require(better >= c.advantage[node] - 1e-9, f"{said} to {better:.3g}")


def equal_rewards_teach_nothing(subject: Subject) -> None:
    """Where all images are worth the same, all advantages are 0."""
    for c in subject.cases:
        flat = replace(c.outcome, reward=np.full(len(c.outcome.leaf), 0.3))
        found = np.nan_to_num(c.algorithm.credit(c.plan, flat, c.ctx))
        close(found, np.zeros(len(found)), "advantages of equal rewards, and 0")


def a_selection_is_in_range(subject: Subject) -> None:
    """Stored latents: stochastic edges at trained steps, each once, read at their parents. Noised ones: leaves."""
    for c in subject.cases:
        idle = set() if c.selection.update is None else {*range(c.ctx.updates)} - {*c.selection.update.tolist()}
        require(not idle, f"of {c.ctx.updates} optimiser steps {sorted(idle)} train nothing")
        for allowed in (c.ctx.train_steps, c.ctx.train_steps[: len(c.ctx.train_steps) // 2 + 1]):
            ctx = replace(c.ctx, train_steps=allowed)
            s = c.algorithm.select(c.plan, c.outcome, c.advantage, ctx)
            require(set(s.item_query.tolist()) == set(range(len(s.read))), "a query has no item: a pass for nothing")
            require(((s.sigma > 0) & (s.sigma <= 1)).all(), "a query's sigma lies in (0, 1]")
            if (s.draw >= 0).any():
                _noised_in_range(c, s)
            else:
                _stored_in_range(c, s, allowed)


def _stored_in_range(c: Case, s: Selection, allowed: tuple[int, ...]) -> None:
    tree = c.plan.tree
    close(s.sigma, c.plan.sigmas[tree.depth[s.read]], "queries' sigmas and their nodes'", 1e-12)
    steps = set(tree.depth[s.read].tolist())
    require(steps <= set(allowed), f"steps {sorted(steps - set(allowed))} are selected, train_steps has {allowed}")
    if not of_transitions(c.plan, s):
        return  # items are candidates, and may weigh on several queries
    require(len(set(s.item_node.tolist())) == len(s.item_node), "an edge is selected twice")
    require((c.plan.noise_level[s.item_node] > 0).all(), "an ODE edge is selected: it has no density")
    shared = s.update is not None or len(set(s.read.tolist())) == len(s.read)  # siblings may be trained steps apart
    require(shared, "children of one parent have a query each; they can share one")


def _noised_in_range(c: Case, s: Selection) -> None:
    require((s.draw >= 0).all(), "stored latents and noised leaves are mixed in one selection")
    require(np.isin(s.read, c.outcome.leaf).all(), "a node is noised that is no leaf")
    require((s.sigma < 1).any(), "every image is noised to sigma 1, where nothing of it is left")
    close(s.item_node, s.read[s.item_query], "items' nodes and the leaves that are read", 0.0)


def every_slot_weighs_the_same(subject: Subject) -> None:
    """Weights are positive and finite, and no prompt has more say than another."""
    for c in subject.cases:
        require((np.isfinite(c.selection.weight) & (c.selection.weight > 0)).all(), "a weight is not positive")
        by_slot = np.bincount(c.plan.tree.slot[c.selection.item_node], c.selection.weight, minlength=SLOTS)
        close(by_slot, np.full(SLOTS, by_slot.mean()), "total weights of the slots", 1e-9)
        total = c.selection.weight.sum()
        require(0.1 < total < 10, f"weights sum to {total:.3g}; they are already divided, and sum to about 1")


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


def a_plan_follows_its_settings(subject: Subject) -> None:
    """Where it has settings of these names, the plan has that kernel, and noise in proportion to eta."""
    c = subject.smallest
    own = settings(c.algorithm)
    kernel_ok = "kernel" not in own or c.plan.kernel == own["kernel"]
    require(kernel_ok, f"its setting says kernel={own.get('kernel')}, its plan {c.plan.kernel}")
    if own.get("eta"):
        halved = replaced(c.algorithm, {"eta": own["eta"] / 2}, subject.arm).plan(c.ctx)
        close(halved.noise_level, c.plan.noise_level / 2, "noise levels at half of eta, and half of those at eta")


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
    """Paper, reference and deviations; a documented class and documented choices."""
    algorithm = subject.smallest.algorithm
    info = algorithm.info
    require(bool(info.paper and info.reference), "info says neither paper nor reference, or only one")
    require(all(len(line) > 20 for line in info.deviations), "a deviation is too short to be understood")
    silent = [name for name in CHOICES if not (getattr(type(algorithm), name).__doc__ or "").strip()]
    require(not silent, f"no docstring says the rule of {', '.join(silent)}")
    require(bool((type(algorithm).__doc__ or "").strip()), "its class has no docstring")


def its_file_is_short(subject: Subject) -> None:
    """An algorithm reads like its paper's method section."""
    lines = len(Path(inspect.getfile(type(subject.smallest.algorithm))).read_text(encoding="utf-8").splitlines())
    require(lines <= LONGEST, f"its file has {lines} lines; {LONGEST} are the most")
