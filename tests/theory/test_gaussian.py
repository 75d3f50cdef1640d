"""The closed forms: what a tree's law is, against the harness's rollouts of any plan, and against a plain rollout's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import context

from bench.plan import Plan, branching, star
from bench.policy import Policy
from bench.schedule import shifted_sigmas
from bench.theory.gaussian import GaussianData, GaussianPolicy, law, sampled, steps_of, to_leaf

DATA = GaussianData(mean=np.array([0.7, -1.0]), variance=np.array([0.25, 2.0]))
COPIES = 20_000
LEVELS = {"dance_sde": 1.0, "flow_sde": 0.9, "cps": 1.0}


@dataclass(frozen=True)
class Drawn:
    """A tree by eq. (2), and the chain that it branches."""

    tree: Plan
    chain: Plan


RECIPES = st.fixed_dictionaries(
    {
        "kernel": st.sampled_from(sorted(LEVELS)),
        "noise": st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=1, max_size=5),
        "split": st.lists(st.booleans(), min_size=5, max_size=5),
        "shift": st.sampled_from([1.0, 3.0]),
        "coupling": st.sampled_from([0.0, 0.06, 0.5, 0.9]),
        "roots": st.integers(1, 2),
        "root_coupling": st.sampled_from([0.0, 0.8]),
    }
)


def made(recipe: Mapping[str, Any]) -> Drawn:
    levels = [LEVELS[recipe["kernel"]] * noise for noise in recipe["noise"]] + [0.0]
    fanout = [2 if split and level else 1 for split, level in zip(recipe["split"], levels[:-1], strict=False)] + [1]
    sigmas = shifted_sigmas(len(levels), recipe["shift"])
    common: dict[str, Any] = {"slots": 1, "noise_level": levels, "kernel": recipe["kernel"]}
    tree = branching(sigmas, fanout=fanout, coupling=recipe["coupling"], roots=recipe["roots"], **common)
    coupled = np.where(tree.tree.depth == 0, recipe["root_coupling"], tree.coupling)
    return Drawn(replace(tree, coupling=coupled), branching(sigmas, fanout=[1] * len(levels), **common))


@settings(max_examples=25, derandomize=True, deadline=None)
@given(RECIPES, st.sampled_from([1.0, 1.5]))
def test_a_rollout_of_any_plan_has_the_closed_forms_means_and_covariances(recipe, scale):
    drawn = made(recipe)
    plan = replace(drawn.tree, noise_scale=np.where(drawn.tree.coupling > 0, scale, 1.0))
    known = law(DATA, plan)
    leaf = sampled(DATA, plan, seed=4, copies=(COPIES,)).x0.double().numpy()
    variance = known.variance()
    assert (np.abs(leaf.mean(1) - known.mean) <= 5 * np.sqrt(variance / COPIES) + 1e-6).all()
    centred = leaf - leaf.mean(1, keepdims=True)
    found = np.einsum("acd,bcd->abd", centred, centred) / COPIES
    error = np.sqrt((variance[:, None] * variance + known.covariance**2) / COPIES)
    assert (np.abs(found - known.covariance) <= 5 * error + 1e-6).all()


@given(RECIPES)
def test_split_noise_by_equation_two_leaves_every_nodes_marginal_as_it_was(recipe):
    """Lemmas 1 and 2 and theorem 1, exactly: at every depth, whatever the kernel, the splits and s."""
    drawn = made(recipe)
    for depth in range(drawn.tree.steps + 1):
        tree, plain = law(DATA, drawn.tree, depth=depth), law(DATA, drawn.chain, depth=depth)
        np.testing.assert_allclose(tree.mean, np.broadcast_to(plain.mean, tree.mean.shape), atol=1e-12)
        np.testing.assert_allclose(tree.variance(), np.broadcast_to(plain.variance(), tree.mean.shape), rtol=1e-12)


@given(RECIPES, st.sampled_from([0.5, 4.0]))
def test_split_noise_of_another_std_than_the_steps_moves_every_leafs_variance(recipe, scale):
    drawn = made(recipe)
    split = (drawn.tree.tree.parent >= 0) & (drawn.tree.tree.fanout()[drawn.tree.tree.parent] > 1)
    assume(split.any())
    changed = law(DATA, replace(drawn.tree, noise_scale=np.where(split, scale, 1.0))).variance()
    plain = law(DATA, drawn.chain).variance()
    assert (np.sign(changed - plain) == np.sign(scale - 1)).all()


@given(RECIPES)
def test_leaves_covary_by_at_least_what_a_shared_root_leaves_and_at_most_by_their_variance(recipe):
    drawn = made(recipe)
    known = law(DATA, drawn.tree)
    gain, _ = to_leaf(DATA, drawn.tree, 0)
    assert (known.covariance <= known.variance()[:, None] + 1e-12).all()
    of_root = drawn.tree.tree.root()[drawn.tree.tree.leaves()]
    same = of_root[:, None] == of_root
    assert (known.covariance[same] >= gain**2 - 1e-12).all()


@given(RECIPES)
def test_given_its_root_a_leafs_mean_is_the_line_along_its_path(recipe):
    drawn = made(recipe)
    gain, shift = to_leaf(DATA, drawn.chain, 0)
    given_root, freely = law(DATA, drawn.chain, root_variance=0.0), law(DATA, drawn.chain)
    np.testing.assert_allclose(given_root.mean[0], shift, atol=1e-12)
    np.testing.assert_allclose(freely.variance()[0], gain**2 + given_root.variance()[0])


def test_the_deterministic_flow_carries_noise_to_the_data():
    plan = star(context(steps=400, slots=1, group_size=1))
    known = law(DATA, plan)
    np.testing.assert_allclose(known.mean[0], DATA.mean, atol=0.01)
    np.testing.assert_allclose(known.variance()[0], DATA.variance, rtol=0.02)


def test_a_multistep_solvers_path_is_refused():
    with pytest.raises(ValueError, match="multistep"):
        steps_of(DATA, star(context(steps=4, slots=1, group_size=1, solver="dpm2m")))


def test_the_exact_velocity_is_a_policy_with_nothing_to_train():
    policy = GaussianPolicy(DATA, copies=(3,))
    assert isinstance(policy, Policy)
    assert policy.latent_shape == (3, 2)
    assert list(policy.model.parameters()) == []
