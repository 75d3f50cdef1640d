"""Every registered arm keeps the contract, at every horizon and group size it has a plan for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from oracle.edges import edge_gradient, log_prob
from toy import PROMPTS, RecordingSGD, ToyPolicy, iteration_of, trainer

from bench.conformance import CHECKS, Subject
from bench.conformance.cases import SLOTS
from bench.contract import Algorithm
from bench.policy import encoded
from bench.registry import load
from bench.update import Iteration, update

ALGORITHMS = load("algorithms")
VARIANTS = {
    "dance": ("dance(tf=0.6)", "dance(roots=independent)", "dance(scope=global,kernel=cps)"),
    "mix": ("mix(window=2,strategy=random)", "mix(strategy=linear-decay,tau=2)", "mix(strategy=frozen,start=1)"),
    "mix-flash": ("mix-flash(tail=euler,tail_ratio=0.6)",),
    "branch": (
        "branch(splits=[0,2])",
        "branch(splits=[0],factor=4)",
        "branch(credit_by=leaf)",
        "branch(fusion=uniform)",
    ),
    "branch-official": (
        "branch-official(splits=[0,2])",
        "branch-official(splits=[0,2],width=mode1,noise=2)",
        "branch-official(splits=[0,2],mix=true,slide=5,window=2)",
        "branch-official(splits=[0,1],depths=[5],stop=4,slide=1)",
    ),
    "branch-widpru": ("branch-widpru(splits=[0,2])",),
    "branch-widpru-extreme": ("branch-widpru-extreme(splits=[0,1,2])",),
    "branch-deppru": ("branch-deppru(splits=[0,2],window=2,slide=1)",),
    "branch-mix": ("branch-mix(splits=[0,2],window=2,slide=1)",),
    "branch-mix-dpm": ("branch-mix-dpm(splits=[0,2],window=2,tail_ratio=0.3)",),
    "flow": ("flow(roots=shared,std=group)", "flow(kl_std=diffusion,kl=0.5)", "flow(kl=0)"),
    "flow-fast": ("flow-fast(window=3,start=1,std=group)",),
    "tempflow": ("tempflow(points=2,seeds=2)", "tempflow(points=1,noise_aware=false)"),
    "guard": (
        "guard(host=dance)",
        "guard(host=branch(splits=[0,2]),reweight=false)",
        "guard(host=tempflow(points=2),ratio_norm=false)",
    ),
    "nft": ("nft(beta=0.1,kl=0,schedule=late)",),
    "vgrpo": ("vgrpo(draws=2,kl=0)",),
    "awm": (
        "awm(weighting=uniform,kl=0,kl_ema=0)",
        "awm(weighting=huber)",
        "awm(weighting=t2)",
        "awm(weighting=t,draws=2)",
    ),
    "ddpo": ("ddpo(at_least=2,buffer=4)",),
}
ARMS = [arm for name in sorted(ALGORITHMS.values) for arm in (name, *VARIANTS.get(name, ()))]
TRANSITIONS = [arm for arm in ARMS if arm.split("(")[0] not in ("nft", "vgrpo", "awm")]
"""Arms that train densities of transitions."""


@cache
def subject(arm: str) -> Subject:
    return Subject(arm=arm, algorithms=ALGORITHMS)


def trained(arm: str, updates: int = 1) -> tuple[ToyPolicy, Algorithm, Iteration]:
    """Return a rolled-out iteration of the arm's smallest case, to be trained in so many optimiser steps."""
    small, policy = subject(arm).smallest, ToyPolicy()
    ctx = replace(small.ctx, updates=updates)
    return policy, small.algorithm, iteration_of(policy, small.algorithm, ctx, encoded(policy, PROMPTS[:SLOTS]))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_keeps_the_contract(arm, check):
    check(subject(arm))


@pytest.mark.parametrize("arm", [arm for arm in TRANSITIONS if not arm.startswith("guard")])
def test_the_first_update_is_the_textbooks_policy_gradient(arm):
    policy, algorithm, it = trained(arm)
    expected, t = edge_gradient(policy, it), trainer(policy, needs=algorithm.needs)
    update(t, algorithm, it, updates=1, chunk=5, anchor="rollout", clip=1e-4)
    assert isinstance(t.optimizer, RecordingSGD)
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(t.optimizer.seen[0], expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("arm", TRANSITIONS)
def test_an_update_makes_good_edges_likelier_and_bad_ones_less_likely(arm):
    policy, algorithm, it = trained(arm)
    nodes, weight = it.selection.item_node.tolist(), it.selection.weight * it.advantage[it.selection.item_node]

    def gain() -> float:
        with torch.no_grad():
            return float(sum(w * float(log_prob(policy, it, n)) for n, w in zip(nodes, weight, strict=True)))

    before = gain()
    t = trainer(policy, lr=1e-4, needs=algorithm.needs)
    update(t, algorithm, it, updates=1, chunk=100, anchor="rollout", clip=1e-4)
    assert gain() > before


@pytest.mark.parametrize("arm", [arm for arm in TRANSITIONS if "kl=0.5" not in arm])
def test_a_ratio_beyond_the_clip_range_stops_what_its_advantage_pushes(arm):
    policy, algorithm, it = trained(arm, SLOTS)
    lower = replace(it, rollout=replace(it.rollout, log_prob=it.rollout.log_prob - 1.0))
    good = replace(lower, advantage=np.ones(len(it.advantage)))
    t = trainer(policy, lr=0.0, needs=algorithm.needs)
    update(t, algorithm, good, updates=SLOTS, chunk=100, anchor="rollout", clip=1e-4)
    assert isinstance(t.optimizer, RecordingSGD)
    first, *later = t.optimizer.seen
    assert float(first.abs().max()) > 0
    assert all(float(gradient.abs().max()) < 1e-6 * float(first.abs().max()) for gradient in later)


def test_every_algorithm_loads():
    assert ALGORITHMS.broken == {}
    assert set(VARIANTS) <= set(ALGORITHMS.values)
