"""Flow-GRPO, Fast, Flash, TempFlow, Guard and DDPO: what their rules say, counted and written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from toy import PROMPTS, ToyPolicy, context, iteration_of, normal

from algorithms.branch import Branch
from algorithms.dance import Dance
from algorithms.ddpo import Ddpo
from algorithms.flow import Flow
from algorithms.flow_fast import FlowFast
from algorithms.guard import Guard
from algorithms.mix import ARMS as MIX
from algorithms.tempflow import TempFlow
from bench.contract import Algorithm, Batch, Outcome
from bench.plan import Plan
from bench.policy import encoded
from bench.update import anchored, build_batch

CTX = context(steps=6, slots=2, group_size=4)


def batch_of(algorithm: Algorithm) -> Batch:
    policy = ToyPolicy()
    it = iteration_of(policy, algorithm, CTX, encoded(policy, PROMPTS[:2]))
    return build_batch(it, np.arange(len(it.selection.read)), it.rollout.log_prob, 1.0, algorithm.needs)


def outcome(plan: Plan, reward: np.ndarray) -> Outcome:
    return Outcome(log_prob=np.zeros(len(plan.tree)), reward=reward, leaf=plan.tree.leaves())


@pytest.mark.parametrize("kl_std", ["step", "diffusion"])
def test_flows_penalty_is_the_kl_of_the_steps_gaussians(kl_std):
    flow = Flow(kl=0.5, kl_std=kl_std, kernel="flow_sde", eta=0.7)
    batch = batch_of(flow)
    live = normal(*batch.x.shape, key=1)
    reference = live + 0.1 * normal(*batch.x.shape, key=2)
    plain = replace(flow, kl=0.0).loss(batch, {"live": live})
    penalty = float(flow.loss(batch, {"live": live, "reference": reference}) - plain)
    one, other = batch.transition(live), batch.transition(reference)
    expected = 0.0
    for i in range(len(batch.target)):
        q = int(batch.item_query[i])
        duration = float(batch.sigma[q] - batch.sigma_next[q]) if kl_std == "diffusion" else 1.0
        variance = float(one.std[i]) ** 2 / duration
        apart = (one.mean[i] - other.mean[i]).double()
        expected += 0.5 * float(batch.weight[i]) * float((apart**2).mean()) / (2 * variance)
        if kl_std == "step":
            exact = torch.distributions.kl_divergence(
                torch.distributions.Normal(one.mean[i].double(), one.std[i].double()),
                torch.distributions.Normal(other.mean[i].double(), other.std[i].double()),
            )
            assert float(exact.mean()) == pytest.approx(float((apart**2).mean()) / (2 * variance), rel=1e-5)
    assert penalty == pytest.approx(expected, rel=1e-3)


def test_flow_asks_for_the_reference_if_it_weighs_anything():
    assert Flow().needs == {"reference"}
    assert Flow(kl=0.0).needs == frozenset()


def test_flow_normalises_by_the_prompts_mean_and_the_std_of_all():
    reward = np.array([1.0, 2, 3, 6, 10, 20, 30, 40])
    plan = Flow().plan(CTX)
    found = Flow().credit(plan, outcome(plan, reward), CTX)[plan.tree.leaves()]
    mean = np.repeat([3.0, 25.0], 4)
    np.testing.assert_allclose(found, (reward - mean) / (reward.std() + 1e-4))


def test_a_fast_window_is_drawn_in_the_first_half_among_trained_steps():
    def starts(version: Literal["split", "window"], **more) -> list[int]:
        fast = FlowFast(version=version, window=3)
        return [fast.window_start(context(steps=10, iteration=i, **more)) for i in range(300)]

    assert set(starts("split")) == {0, 1, 2, 3, 4, 5}  # it starts in the first half, as the code draws it
    assert set(starts("window")) == {0, 1, 2}  # or lies in it as a whole
    assert min(np.bincount(starts("window"))) > 70
    assert set(starts("split", train_steps=(1, 2, 3, 4))) == {1, 2}  # and all of it is trained
    assert FlowFast(start=4).window_start(context(steps=10, iteration=3)) == 4
    with pytest.raises(ValueError, match="no window of 3 trained steps"):
        starts("split", train_steps=(0, 1, 5))


@pytest.mark.parametrize("version", ["split", "window"])
def test_fast_splits_once_or_never(version):
    plan = FlowFast(version=version, start=2, window=2).plan(CTX)
    assert np.bincount(plan.tree.depth).tolist() == ([2, 2, 2, 8, 8, 8, 8] if version == "split" else [8] * 7)
    assert sorted(set(plan.tree.depth[plan.noise_level > 0].tolist())) == [3, 4]


def test_flash_takes_fewer_steps_after_the_window_and_ends_at_the_image():
    ctx = context(steps=25, slots=1, group_size=12, iteration=20)
    plan = MIX["mix-flash"].plan(ctx)  # window 1 ... 4; of 20 steps after it, 8 remain
    assert plan.steps == 13
    assert plan.solver == ("euler",) * 5 + ("dpm2m",) * 8
    np.testing.assert_array_equal(plan.sigmas[:6], ctx.sigmas[:6])
    assert plan.sigmas[-1] == 0
    unshifted = plan.sigmas[5:] / (3 - 2 * plan.sigmas[5:])
    np.testing.assert_allclose(np.diff(unshifted), -0.8 / 8)


@pytest.mark.parametrize(("ratio", "expected"), [(0.6, 19.17), (0.4, 16.08), (0.2, 13.0)])
def test_flash_has_the_papers_mean_number_of_steps_over_starts_0_to_11(ratio, expected):
    steps = []
    for start in range(12):
        ctx = context(steps=25, slots=1, group_size=12)
        steps.append(replace(MIX["mix-flash"], strategy="frozen", start=start, tail_ratio=ratio).plan(ctx).steps)
    assert np.mean(steps) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize(("ratio", "expected"), [(0.4, 13), (0.3, 11), (0.2, 9)])
def test_flash_star_stands_at_the_start(ratio, expected):
    # 4 window steps and ceil(21 r); the paper's 12, 10 and 8 count one fewer.
    plan = replace(MIX["mix-flash-star"], tail_ratio=ratio).plan(
        context(steps=25, slots=1, group_size=12, iteration=99)
    )
    assert plan.steps == expected
    assert sorted(set(plan.tree.depth[plan.noise_level > 0].tolist())) == [1, 2, 3, 4]


def test_branch_mix_with_a_multistep_tail_saves_two_fifths_of_its_rollout():
    ctx = context(steps=20, slots=1, group_size=16)
    plain, short = Branch(mix=True).plan(ctx), Branch(mix=True, tail="dpm").plan(ctx)

    def calls(plan: Plan) -> int:
        return int((plan.tree.fanout() > 0).sum())

    assert (calls(plain), calls(short)) == (203, 123)
    assert (plain.noise_level > 0).sum() == (short.noise_level > 0).sum() == 34


def test_a_tail_needs_a_last_stochastic_step_before_it():
    with pytest.raises(ValueError, match="without mix every step but the last is stochastic"):
        Branch(tail="dpm")


def test_one_trunk_serves_all_branching_steps_of_tempflow():
    tempflow, ctx = TempFlow(points=2), context(steps=6, slots=1, group_size=4, train_steps=(1, 3))
    plan = tempflow.plan(ctx)
    # Steps 0 and 1 of the trunk, the branching at 1 (trunk and two), at 3 (two; the trunk ends), and the image.
    assert np.bincount(plan.tree.depth).tolist() == [1, 1, 3, 3, 4, 4, 4]
    assert plan.tree.depth[plan.noise_level > 0].tolist() == [2, 2, 4, 4]
    assert (plan.tree.fanout() > 0).sum() == 1 + 1 + 3 + 3 + 4 + 4


def test_tempflow_compares_the_branches_of_one_point_alone():
    tempflow, ctx = TempFlow(points=2), context(steps=6, slots=1, group_size=4, train_steps=(1, 3))
    plan = tempflow.plan(ctx)
    edges = np.flatnonzero(plan.noise_level > 0)
    reward = np.zeros(4)
    reward[plan.tree.first_leaf()[edges]] = [1.0, 3.0, 100.0, 50.0]
    found = tempflow.credit(plan, outcome(plan, reward), ctx)[edges]
    np.testing.assert_allclose(found, np.array([-1, 1, 1, -1]) / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("kernel", ["flow_sde", "dance_sde", "cps"])
def test_tempflow_weighs_a_step_by_the_std_of_its_noise_with_mean_one_over_the_trained_steps(kernel):
    tempflow = TempFlow(points=4, kernel=kernel, eta=0.5)
    ctx = context(steps=6, slots=3, group_size=8, train_steps=(0, 1, 2, 3))
    plan = tempflow.plan(ctx)
    chosen = tempflow.select(plan, outcome(plan, np.arange(24.0)), np.zeros(len(plan.tree)), ctx)
    std = plan.std()[chosen.item_node]
    np.testing.assert_allclose(chosen.weight, std / std.mean() / 24)
    assert chosen.weight.sum() == pytest.approx(1)


def test_guards_loss_is_the_clipped_surrogate_of_the_centred_and_scaled_ratio():
    guard = Guard(host=Dance(kernel="flow_sde", eta=0.7), clip=1e-3)
    batch = batch_of(guard)
    assert batch.noise is not None
    velocity, expected = normal(*batch.x.shape, key=5), 0.0
    step = batch.transition(velocity)
    for i in range(len(batch.target)):
        q, s = int(batch.item_query[i]), float(step.std[i])
        mean_old = batch.target[i] - s * batch.noise[i]
        bias = float(((step.mean[i] - mean_old) ** 2).double().mean()) / (2 * s**2)
        log_prob = -float(((batch.target[i] - step.mean[i]) ** 2).double().mean()) / (2 * s**2)
        log_prob += -np.log(s) - 0.5 * np.log(2 * np.pi)
        ratio = np.exp((log_prob - float(batch.log_prob_old[i]) + bias) * s)
        a = float(batch.advantage[i])
        loss = max(-a * ratio, -a * min(max(ratio, 1 - 1e-3), 1 + 1e-3))
        expected += float(batch.weight[i]) * loss / float(batch.sigma[q] - batch.sigma_next[q])
    assert float(guard.loss(batch, {"live": velocity})) == pytest.approx(expected, rel=1e-4)


def test_guards_ratio_is_centred_where_the_plain_one_is_shifted_below_one():
    # Weights and advantages of -1: a loss of a clipless surrogate is then the mean ratio.
    policy = ToyPolicy((40, 40))
    host = Dance(kernel="flow_sde", eta=0.7)
    guard = Guard(host=host, reweight=False, clip=1e9)
    it = iteration_of(policy, guard, CTX, encoded(policy, PROMPTS[:2]))
    batch = build_batch(it, np.arange(len(it.selection.read)), it.rollout.log_prob, 1.0, guard.needs)
    n = len(batch.target)
    batch = replace(batch, advantage=-torch.ones(n), weight=torch.full((n,), 1 / n))
    with torch.no_grad():
        slot = torch.from_numpy(it.plan.tree.slot[it.selection.read])
        old = policy.velocity(batch.x, batch.sigma, it.condition.rows(slot))
    moved = {"live": old + 0.5 * normal(*old.shape, key=9)}
    plain, centred = (float(a.loss(batch, moved)) for a in (replace(host, clip=1e9), guard))
    assert plain < 1 - 0.01
    assert abs(centred - 1) < 0.2 * (1 - plain)


def test_guards_first_ratio_is_one_whatever_rounding_did_to_the_velocity():
    policy, guard = ToyPolicy(), Guard(host=Dance(kernel="flow_sde", eta=0.7), reweight=False)
    it = iteration_of(policy, guard, CTX, encoded(policy, PROMPTS[:2]))
    batch = build_batch(it, np.arange(len(it.selection.read)), it.rollout.log_prob, 1.0, guard.needs)
    jittered = normal(*batch.x.shape, key=3)  # anything but the velocity that sampled
    n = len(batch.target)
    batch = replace(anchored(batch, jittered), advantage=-torch.ones(n), weight=torch.full((n,), 1 / n))
    assert float(guard.loss(batch, {"live": jittered})) == pytest.approx(1, abs=1e-7)


def test_a_guard_on_a_guard_is_refused():
    with pytest.raises(ValueError, match="the outer one alone"):
        Guard(host=Guard(host=Dance()))


@pytest.mark.parametrize("host", [Flow(), Flow(kl=0.1)])
def test_guard_refuses_a_host_whose_penalty_it_would_drop(host):
    with pytest.raises(ValueError, match="choose a host without KL"):
        Guard(host=host).plan(CTX)


def test_ddpo_compares_with_what_the_prompt_has_earned_before():
    ddpo = Ddpo(at_least=5, buffer=6)
    ctx = replace(CTX, prompts=(17, 4), memory={"total": {"17": [0.0, 1.0, 2.0], "4": []}})
    plan = ddpo.plan(ctx)
    reward = np.array([1.0, 2, 3, 4, 10, 20, 30, 40])
    found = ddpo.credit(plan, outcome(plan, reward), ctx)[plan.tree.leaves()]
    known = np.array([1.0, 2.0, 1, 2, 3, 4])  # the last six
    np.testing.assert_allclose(found[:4], (reward[:4] - known.mean()) / (known.std() + 1e-6))
    np.testing.assert_allclose(found[4:], (reward[4:] - reward.mean()) / (reward.std() + 1e-6))  # four are too few
    memory = ddpo.remember(plan, {"total": outcome(plan, reward)}, ctx)
    assert memory == {"total": {"17": known.tolist(), "4": [10.0, 20.0, 30.0, 40.0]}}


def test_ddpo_remembers_by_reward_and_leaves_failed_images_out():
    ddpo, ctx = Ddpo(), replace(CTX, prompts=(1, 1))
    plan = ddpo.plan(ctx)
    reward = np.array([1.0, np.nan, 3, 4, 5, 6, 7, 8])
    named = {name: replace(outcome(plan, reward * k), name=name) for k, name in ((1, "a"), (2, "b"))}
    memory = ddpo.remember(plan, named, ctx)
    assert memory["a"]["1"] == [1.0, 3, 4, 5, 6, 7, 8]  # one prompt in two slots
    assert memory["b"]["1"] == [2.0, 6, 8, 10, 12, 14, 16]


def test_ddpo_compares_a_reward_with_what_that_reward_has_been():
    ddpo = Ddpo(at_least=5, buffer=6)
    plan = ddpo.plan(CTX)
    reward = np.arange(8.0)
    ctx = replace(CTX, prompts=(0, 1), memory={"a": {"0": [50.0, 60.0]}, "b": {"0": [0.0, 1.0]}})
    a, b = (ddpo.credit(plan, replace(outcome(plan, reward), name=n), ctx)[plan.tree.leaves()] for n in ("a", "b"))
    known = np.array([50.0, 60, 0, 1, 2, 3])
    np.testing.assert_allclose(a[:4], (reward[:4] - known.mean()) / (known.std() + 1e-6))
    assert not np.allclose(a[:4], b[:4])
