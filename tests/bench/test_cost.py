from __future__ import annotations

import numpy as np
import pytest
from toy import context

from bench.cost import Clock, Nfe, mean_nfe, nfe, peak_host_bytes
from bench.plan import branching, window
from bench.schedule import shifted_sigmas
from bench.select import trajectory

SIGMAS = shifted_sigmas(4, 3.0)


def forked(fanout):
    return branching(SIGMAS, slots=2, fanout=fanout, noise_level=[0.3] * 3 + [0.0], kernel="cps")


def test_a_tree_costs_its_nodes_edges_and_inner_nodes_a_leaf():
    plan = forked([2, 1, 2, 1])  # a slot: 1 + 2 + 2 + 4 + 4 nodes
    cost = nfe(plan, trajectory(plan, plan.noise_level > 0))
    assert cost == Nfe(
        rollout_paper=13 / 4, rollout_edges=12 / 4, rollout_calls=9 / 4, update_edges=8 / 4, update_calls=5 / 4
    )
    assert cost.nested()["update"] == {"edges": 2.0, "calls": 1.25}


def test_papers_count_every_step_of_every_image_where_a_tree_fans_out_at_most_once():
    chains = window(
        context(sigmas=SIGMAS, slots=1, group_size=3),
        start=0,
        size=3,
        noise_level=0.3,
        kernel="cps",
        roots="independent",
    )
    for plan in (forked([4, 1, 1, 1]), chains):
        assert nfe(plan, trajectory(plan, plan.noise_level > 0)).rollout_paper == 4


def test_guidance_doubles_calls_and_nothing_else():
    plan = forked([2, 1, 2, 1])
    selection = trajectory(plan, plan.noise_level > 0)
    once, twice = nfe(plan, selection), nfe(plan, selection, calls_per_velocity=2)
    assert (twice.rollout_calls, twice.update_calls) == (2 * once.rollout_calls, 2 * once.update_calls)
    assert (twice.rollout_edges, twice.update_edges) == (once.rollout_edges, once.update_edges)


def test_a_mean_is_taken_of_each_kind():
    def cost(value: float) -> Nfe:
        kinds = ("rollout_paper", "rollout_edges", "rollout_calls", "update_edges", "update_calls")
        return Nfe(**{kind: value + i for i, kind in enumerate(kinds)}, named_calls={"old": value})

    assert mean_nfe([cost(1.0), cost(4.0)]) == cost(2.5)


def test_a_clock_adds_up_phases_synchronises_at_their_edges_and_starts_anew_when_read():
    synchronised = []
    clock = Clock(synchronize=lambda: synchronised.append(None))
    for name in ("rollout", "score", "rollout"):
        with clock.phase(name):
            pass
    with pytest.raises(KeyError), clock.phase("update"):
        raise KeyError
    assert len(synchronised) == 8
    assert list(clock.read()) == ["rollout", "score", "update"]
    assert clock.read() == {}


def test_peak_memory_is_in_bytes():
    held = np.ones(25_000_000, np.uint8)
    assert peak_host_bytes() > held.nbytes
