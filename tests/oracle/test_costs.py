"""Planned costs equal what loops over tree and queries count, policy by policy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from oracle.recursive import grow

from bench.config import Cell, Shared, make_cell, resolve
from bench.parse import parse_arms
from bench.preview import made_up_outcome, planned
from bench.registry import load

ALGORITHMS = load("algorithms")
SHARED = Shared(steps=12, group_size=16, iterations=4, prompts_per_iteration=4, updates_per_iteration=2)


def cell(arm: str) -> Cell:
    (spec,) = parse_arms(arm)
    return make_cell("test", spec, 0, SHARED, resolve(spec, SHARED, {}, ALGORITHMS), ())


def counted(found: Cell) -> dict[str, float]:
    """Return calls per leaf and iteration by kind: the live policy's weights have a number that every step raises."""
    calls: Counter[str] = Counter()
    leaves, live, memory = 0, 0, {}
    version = dict.fromkeys(found.algorithm.needs - {"noise"}, 0)
    for iteration in range(SHARED.iterations):
        ctx = found.context(iteration, range(4), memory)
        plan = found.algorithm.plan(ctx)
        for root in grow(plan.tree):
            calls["rollout"] += sum(bool(node.children) for node in root.all())
            leaves += len(root.leaves())
        outcome = made_up_outcome(plan)
        advantage = np.nan_to_num(found.algorithm.credit(plan, outcome, ctx))
        s = found.algorithm.select(plan, outcome, advantage, ctx)
        memory = found.algorithm.remember(plan, {outcome.name: outcome}, ctx)
        step = range(len(s.read)) if s.update is not None else [0] * len(s.read)  # with steps of their own: one each
        queries = set(zip(s.read.tolist(), s.sigma.tolist(), s.draw.tolist(), step, strict=True))
        for shard in ({0, 1}, {2, 3}):
            for read, *_ in queries:
                if int(plan.tree.slot[read]) in shard:
                    calls["update"] += 1
                    calls.update(name for name, weights in version.items() if weights != live)
            live += 1
        for name in version.keys() - {"reference"}:
            keeps = found.algorithm.decay(ctx).get(name, 0.0)
            version[name] = live if keeps == 0 else -1
    return {kind: count / leaves for kind, count in calls.items()}


@pytest.mark.parametrize("arm", [*ALGORITHMS.values, "flow(kl=0)", "awm(kl=0)", "tempflow(points=2,seeds=2)"])
def test_a_plans_cost_is_what_a_loop_counts(arm):
    found = cell(f"{arm}(splits=[0,1,2,5])" if arm.startswith("branch") else arm)
    cost, loops = planned(found).cost, counted(found)
    assert cost.rollout_calls == pytest.approx(loops.pop("rollout"))
    assert cost.update_calls == pytest.approx(loops.pop("update"))
    assert {name: calls for name, calls in cost.named_calls.items() if calls} == pytest.approx(loops)
