"""An algorithm that becomes another one at the edge of its settings is, there, the other one: everything equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toy import PROMPTS, RecordingSGD, ToyPolicy, context, iteration_of, trainer

from algorithms.branch import Branch
from algorithms.dance import Dance
from algorithms.mix import Mix
from bench.contract import Algorithm, Context
from bench.update import Iteration, update

CTX = context(steps=6, slots=3, group_size=5)
SAME: dict[str, Any] = {"kernel": "flow_sde", "eta": 0.7, "clip": 1e-3}


def made(algorithm: Algorithm, ctx: Context) -> tuple[Iteration, list[torch.Tensor]]:
    policy = ToyPolicy()
    it = iteration_of(policy, algorithm, ctx, policy.encode(PROMPTS[: ctx.slots]))
    t = trainer(policy)
    update(t, algorithm, it, updates=ctx.slots, chunk=7, anchor="rollout", clip=1e-3)
    assert isinstance(t.optimizer, RecordingSGD)
    return it, t.optimizer.seen


def assert_the_same(one: Algorithm, other: Algorithm, ctx: Context = CTX) -> None:
    (a, gradients), (b, others) = made(one, ctx), made(other, ctx)
    for name in ("parent", "depth", "slot", "offset"):
        np.testing.assert_array_equal(getattr(a.plan.tree, name), getattr(b.plan.tree, name))
    for name in ("sigmas", "noise_level", "coupling", "noise_scale"):
        np.testing.assert_array_equal(getattr(a.plan, name), getattr(b.plan, name))
    assert (a.plan.kernel, a.plan.solver, a.plan.policy) == (b.plan.kernel, b.plan.solver, b.plan.policy)
    assert torch.equal(a.rollout.x0, b.rollout.x0)
    assert torch.equal(a.rollout.latent, b.rollout.latent)
    np.testing.assert_array_equal(a.rollout.log_prob, b.rollout.log_prob)
    edges = a.plan.tree.depth > 0  # a root has no incoming edge, and no advantage
    np.testing.assert_allclose(a.advantage[edges], b.advantage[edges], rtol=0, atol=1e-12)
    for name in ("read", "sigma", "draw", "unit", "item_query", "item_node", "weight"):
        np.testing.assert_array_equal(getattr(a.selection, name), getattr(b.selection, name))
    for gradient, expected in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert len(gradients) == ctx.slots
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("credit_by", ["depth", "leaf"])
def test_branch_with_one_split_at_step_0_of_independent_siblings_is_dance(credit_by):
    """Identity (vii)."""
    branch = Branch(splits=(0,), factor=5, s=float("inf"), credit_by=credit_by, **SAME)
    assert_the_same(branch, Dance(tf=1.0, **SAME))


@pytest.mark.parametrize("strategy", ["progressive", "random", "linear-decay", "exponential-decay", "frozen"])
def test_mix_with_a_window_over_all_stochastic_steps_is_dance(strategy):
    """Identity (viii), with one root: Flow-GRPO with its roots shared is this arm too."""
    assert_the_same(Mix(window=5, strategy=strategy, **SAME), Dance(tf=1.0, **SAME), context(slots=3, iteration=40))


def test_branch_mix_with_a_window_over_all_stochastic_steps_is_branch():
    ctx = context(slots=2, group_size=4)
    splits: dict[str, Any] = {"splits": (0, 2), **SAME}
    assert_the_same(Branch(mix=True, window=5, **splits), Branch(**splits), ctx)


def test_branch_with_one_split_in_the_middle_of_a_mix_window_is_mix_after_it():
    """Splitting where the window starts, stochastic nowhere else: Mix's window of one step."""
    ctx = context(slots=2, group_size=4, train_steps=(0,))
    branch = Branch(splits=(0,), factor=4, s=float("inf"), mix=True, window=1, **SAME)
    assert_the_same(branch, Mix(window=1, strategy="frozen", start=0, **SAME), ctx)


def test_path_weights_at_beta_0_are_uniform():
    ctx = context(slots=2, group_size=4)
    splits: dict[str, Any] = {"splits": (0, 2), **SAME}
    assert_the_same(Branch(fusion="path", beta=0.0, **splits), Branch(fusion="uniform", **splits), ctx)


def test_path_weights_at_beta_1_are_not_uniform():
    ctx = context(slots=2, group_size=4)
    splits: dict[str, Any] = {"splits": (0, 2), **SAME}
    path, _ = made(Branch(fusion="path", **splits), ctx)
    uniform, _ = made(Branch(fusion="uniform", **splits), ctx)
    assert np.abs(path.advantage - uniform.advantage).max() > 1e-6
