from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import context

from bench import kernel
from bench.plan import Plan, branching, star, trunk, window, with_tail
from bench.schedule import shifted_sigmas
from bench.tree import Tree, forest

SIGMAS = shifted_sigmas(6, 3.0)


def good(**change) -> Plan:
    plan = branching(
        SIGMAS, slots=2, fanout=[2, 1, 2, 1, 1, 1], noise_level=[0.3] * 5 + [0.0], kernel="dance_sde", coupling=0.2
    )
    return replace(plan, **change)


def at(value: float, node: int, array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[node] = value
    return changed


def test_coupling_stands_at_splits_alone_and_noise_on_every_edge_but_the_last():
    plan = good()
    depth = plan.tree.depth
    assert (plan.coupling > 0).tolist() == np.isin(depth, (1, 3)).tolist()
    assert (plan.noise_level > 0).tolist() == ((depth > 0) & (depth < 6)).tolist()
    assert (plan.noise_scale == 1).all()


def test_a_star_has_independent_chains():
    plan = star(context(slots=2, group_size=3))
    assert plan.stochastic_steps() == set()
    assert np.bincount(plan.tree.depth).tolist() == [6] * 7
    assert (plan.coupling == 0).all()
    assert (plan.noise_level == 0).all()


def test_a_window_is_stochastic_and_fans_out_where_it_starts():
    plan = window(context(slots=1, solver="dpm2m"), start=2, size=2, noise_level=0.7, kernel="flow_sde")
    assert np.bincount(plan.tree.depth).tolist() == [1, 1, 1, 4, 4, 4, 4]
    assert sorted(set(plan.tree.depth[plan.noise_level > 0].tolist())) == [3, 4]
    assert plan.solver == ("dpm2m",) * 6


@pytest.mark.parametrize(("start", "size"), [(2, 4), (0, 6), (-1, 2), (0, 0), (5, 1)])
def test_a_window_that_is_empty_or_reaches_the_last_step_is_refused(start, size):
    with pytest.raises(ValueError, match="does not fit: steps 0 to 4"):
        window(context(slots=1), start=start, size=size, noise_level=0.7, kernel="flow_sde")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: {"sigmas": SIGMAS + 0.01}, "fall strictly"),
        (lambda p: {"sigmas": SIGMAS[::-1].copy()}, "fall strictly"),
        (lambda p: {"kernel": "langevin"}, "unknown kernel 'langevin'"),
        (lambda p: {"solver": ("euler",) * 5}, "each of the 6 steps"),
        (lambda p: {"solver": ("heun",) * 6}, "each of the 6 steps"),
        (lambda p: {"sigmas": shifted_sigmas(7, 3.0), "solver": ("euler",) * 7}, "end of the sigma grid"),
        (lambda p: {"noise_level": at(-0.1, 3, p.noise_level)}, "not negative"),
        (lambda p: {"noise_level": at(np.inf, 3, p.noise_level)}, "finite"),
        (lambda p: {"noise_level": at(0.3, -1, p.noise_level)}, "last step is ODE"),
        (lambda p: {"noise_level": np.where(p.tree.depth == 3, 0, p.noise_level)}, "siblings on ODE edges at step 2"),
        (lambda p: {"coupling": at(1.5, 3, p.coupling)}, "correlation"),
        (lambda p: {"coupling": at(-0.1, 3, p.coupling)}, "correlation"),
        (lambda p: {"noise_scale": at(0.0, 3, p.noise_scale)}, "positive"),
        (lambda p: {"kernel": "ode"}, "ode"),
    ],
)
def test_a_plan_that_is_mathematically_wrong_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        good(**change(good()))


def test_one_ode_child_beside_stochastic_ones_is_no_twin():
    plan = good()
    first_of_pair = int(plan.tree.offset[3])
    mixed = replace(plan, noise_level=at(0.0, first_of_pair, plan.noise_level))
    assert mixed.noise_level[first_of_pair] == 0


def test_a_leaf_above_the_end_of_the_grid_is_refused():
    whole = forest([2, 1], slots=1)
    short = Tree(parent=whole.parent[:-1], depth=whole.depth[:-1], slot=whole.slot[:-1], offset=np.array([0, 1, 3, 4]))
    with pytest.raises(ValueError, match="every leaf must stand at depth 2"):
        Plan(
            tree=short,
            sigmas=shifted_sigmas(2, 1.0),
            kernel="cps",
            solver=("euler",) * 2,
            noise_level=np.array([0, 0.5, 0.5, 0]),
            coupling=np.zeros(4),
            noise_scale=np.ones(4),
        )


@pytest.mark.parametrize("name", ["dance_sde", "flow_sde", "cps"])
def test_the_std_that_is_known_before_any_tensor_is_the_kernels(name):
    plan = good(kernel=name)
    edges = np.flatnonzero(plan.noise_level > 0)
    x = torch.zeros(1, 2)
    for node in edges:
        step = int(plan.tree.depth[node]) - 1
        sigma, after = float(plan.sigmas[step]), float(plan.sigmas[step + 1])
        std = kernel.step(name, x, x, sigma, after, float(plan.noise_level[node]), float(plan.sigmas[1])).std
        assert plan.std()[node] == pytest.approx(float(std), rel=1e-6)
    assert (plan.std()[plan.noise_level == 0] == 0).all()


def test_independent_paths_are_stochastic_in_their_window_alone():
    plan = window(context(slots=2, group_size=3), start=1, size=2, noise_level=0.7, kernel="cps", roots="independent")
    assert np.bincount(plan.tree.depth).tolist() == [6] * 7
    assert plan.stochastic_steps() == {1, 2}


def a_trunk(slots: int = 2, **change) -> Plan:
    how = {"roots": 1, "at": [1, 3], "factor": 2, "noise_level": 0.7, "kernel": "flow_sde"}
    return trunk(context(slots=slots), **(how | change))


def test_a_trunk_goes_on_as_an_ode_and_its_branches_leave_it_with_noise():
    plan = a_trunk(slots=1)
    # Depth 2: the trunk and two branches; depth 4: two new branches, and the old ones; no trunk after the last.
    assert np.bincount(plan.tree.depth).tolist() == [1, 1, 3, 3, 4, 4, 4]
    assert plan.noise_level[plan.tree.level(2)].tolist() == [0.0, 0.7, 0.7]
    assert plan.noise_level[plan.tree.level(4)].tolist() == [0.7, 0.7, 0.0, 0.0]
    assert (plan.noise_level > 0).sum() == 4


def test_trunks_of_several_roots_and_slots_are_copies_of_one():
    one, many = a_trunk(slots=1), a_trunk(slots=3, roots=2)
    assert len(many.tree) == 6 * len(one.tree)
    for root in range(6):
        mine = many.tree.root() == root
        np.testing.assert_array_equal(many.noise_level[mine], one.noise_level)
        np.testing.assert_array_equal(many.tree.fanout()[mine], one.tree.fanout())


@pytest.mark.parametrize("at", [[], [3, 1], [1, 1], [-1], [5]])
def test_a_trunk_that_branches_nowhere_or_too_late_is_refused(at):
    with pytest.raises(ValueError, match="branching steps"):
        a_trunk(at=at)


@pytest.mark.parametrize(("ratio", "steps"), [(1.0, 4), (0.6, 3), (0.5, 2), (0.26, 2), (0.01, 1)])
def test_a_tail_keeps_a_share_of_the_steps_rounded_up(ratio, steps):
    ctx = context(steps=6, solver="euler")
    short = with_tail(ctx, first=2, ratio=ratio, solver="dpm")
    assert short.solver == ("euler",) * 2 + ("dpm2m",) * steps
    assert short.steps == 2 + steps
    np.testing.assert_array_equal(short.sigmas[:3], ctx.sigmas[:3])
