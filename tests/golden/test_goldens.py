"""Numbers that the official implementations produced, on fixed inputs without random numbers.

Inputs: shape (1, 8, 8), j = 1..64: x = sin(.1 j), v = 1.1 cos(.07 j), next sample y = .97 x + .05 sin(.3 j);
20 steps, shift 3; Dance eta .3, Flow a .7, CPS eta .8. Keys of the file are steps. Official code: DanceGRPO 15cc71d,
BranchGRPO 19fbb9f, MixGRPO e5cdd6a, flow_grpo 9745241, DiffusionNFT 24af555.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.branch import Branch
from algorithms.branch_official import BranchOfficial
from algorithms.mix import Mix
from bench import kernel
from bench.contract import Context, Outcome
from bench.kernel import Gaussian
from bench.schedule import shifted_sigmas
from bench.solver import dpm2m
from bench.tree import fuse, log_share, normalize, path_sum

GOLDEN = json.loads((Path(__file__).parent / "goldens.json").read_text())
STEPS = (0, 1, 5, 10, 15, 18, 19)
SIGMAS = shifted_sigmas(20, 3.0)
J = torch.arange(1, 65, dtype=torch.float32).view(1, 8, 8)
X, V, V2 = torch.sin(0.1 * J), 1.1 * torch.cos(0.07 * J), 1.05 * torch.cos(0.08 * J)
Y = 0.97 * X + 0.05 * torch.sin(0.3 * J)
MEAN, LOG_PROB, ADVANTAGE = 1e-6, 5e-6, 1e-5
"""Absolute tolerances of float32 against float32; the tree's goldens are rounded to 1e-6 and 1e-5."""


def transition(name: str, level: float, step: int) -> Gaussian:
    return kernel.step(name, V, X, float(SIGMAS[step]), float(SIGMAS[step + 1]), level, float(SIGMAS[1]))


def context(iteration: int = 0, steps: int = 20) -> Context:
    return Context(
        iteration=iteration,
        seed=0,
        sigmas=shifted_sigmas(steps, 3.0),
        slots=1,
        group_size=16,
        train_steps=tuple(range(steps - 1)),
    )


@pytest.mark.parametrize("step", STEPS)
def test_dance_log_prob(step):
    found = float(transition("dance_sde", 0.3, step).log_prob(Y))
    assert found == pytest.approx(GOLDEN[str(step)]["dance_lp"], abs=LOG_PROB)
    assert found == pytest.approx(GOLDEN[str(step)]["branch_lp"], abs=LOG_PROB)


@pytest.mark.parametrize("step", STEPS)
def test_mixs_dance_log_prob_lacks_the_normaliser_and_differs_by_a_constant_of_the_step(step):
    gauss = transition("dance_sde", 0.3, step)
    quadratic = float(gauss.log_prob(Y)) + math.log(float(gauss.std)) + 0.5 * math.log(2 * math.pi)
    assert quadratic == pytest.approx(GOLDEN[str(step)]["mix_dance_lp(no const)"], abs=LOG_PROB)


@pytest.mark.parametrize("step", STEPS)
def test_flow_mean_and_log_prob(step):
    gauss = transition("flow_sde", 0.7, step)
    assert float(gauss.mean.mean()) == pytest.approx(GOLDEN[str(step)]["flow_mean_mean"], abs=MEAN)
    for key in ("flow_lp", "mix_flow_lp", "nft_flow_lp"):
        assert float(gauss.log_prob(Y)) == pytest.approx(GOLDEN[str(step)][key], abs=LOG_PROB)


@pytest.mark.parametrize("step", STEPS)
def test_cps_mean(step):
    mean = transition("cps", 0.8, step).mean
    assert float(mean.mean()) == pytest.approx(GOLDEN[str(step)]["cps_mean_mean"], abs=MEAN)


@pytest.mark.parametrize("step", STEPS[:-1])
def test_the_official_cps_log_prob_is_the_true_ones_quadratic_part_times_twice_the_variance(step):
    gauss = transition("cps", 0.8, step)
    s = float(gauss.std)
    mean_square = -(float(gauss.log_prob(Y)) + math.log(s) + 0.5 * math.log(2 * math.pi)) * 2 * s**2
    assert -mean_square == pytest.approx(GOLDEN[str(step)]["cps_lp"], abs=LOG_PROB)


def test_cps_is_deterministic_on_the_last_step_where_the_official_log_prob_goes_on():
    gauss = transition("cps", 0.8, 19)
    assert -float((Y - gauss.mean).square().mean()) == pytest.approx(GOLDEN["19"]["cps_lp"], abs=LOG_PROB)
    with pytest.raises(ValueError, match="deterministic"):
        gauss.log_prob(Y)


@pytest.mark.parametrize("step", STEPS)
def test_clean_prediction(step):
    found = kernel.clean_prediction(V, X, float(SIGMAS[step])).mean()
    assert float(found) == pytest.approx(GOLDEN[str(step)]["x0_mean"], abs=MEAN)


def test_two_steps_of_dpm_solver_plus_plus():
    s4, s5, s6 = SIGMAS[4:7].tolist()
    first = dpm2m(V, X, s4, s5)
    second = dpm2m(V2, first, s5, s6, kernel.clean_prediction(V, X, s4), s4)
    golden = GOLDEN["dpm_4_5"]
    assert float(first.mean()) == pytest.approx(golden["z1_mean"], abs=MEAN)
    assert float(first.flatten()[0]) == pytest.approx(golden["z1_first"], abs=MEAN)
    assert float(second.mean()) == pytest.approx(golden["z2_mean"], abs=MEAN)
    assert float(second.flatten()[0]) == pytest.approx(golden["z2_first"], abs=MEAN)
    assert float(second.flatten()[-1]) == pytest.approx(golden["z2_last"], abs=MEAN)
    assert float(first.mean()) == pytest.approx(GOLDEN["nft_dpm_4_5"]["z1_mean"], abs=MEAN)
    assert float(second.mean()) == pytest.approx(GOLDEN["nft_dpm_4_5"]["z2_mean"], abs=MEAN)


REWARD = 0.3 + 0.02 * np.sin(np.arange(16) + 1)


def test_branchs_uniform_fusion_and_depth_wise_advantages():
    algorithm, ctx = Branch(fusion="uniform"), context()
    plan = algorithm.plan(ctx)
    leaf = plan.tree.leaves()
    assert len(plan.tree) == GOLDEN["n_nodes"]
    outcome = Outcome(log_prob=np.zeros(len(plan.tree)), reward=REWARD, leaf=leaf)
    advantage, value = algorithm.credit(plan, outcome, ctx), fuse(plan.tree, leaf, REWARD)
    for depth, golden in GOLDEN["tree_uniform"].items():
        level = plan.tree.level(int(depth))
        np.testing.assert_allclose(value[level], golden["reward"], rtol=0, atol=MEAN)
        np.testing.assert_allclose(advantage[level], golden["adv"], rtol=0, atol=ADVANTAGE)


def test_branch_officials_path_weighting_and_depth_wise_advantages():
    """The code's recursion is not eq. (3): a leaf weighs the product of softmaxes over siblings along its path.

    The child log-prob is .9 + .01 sin(k), k = 0, 1, ... in breadth-first order.
    """
    algorithm, ctx = BranchOfficial(), context()
    plan = algorithm.plan(ctx)
    tree, leaf = plan.tree, plan.tree.leaves()
    log_prob = 0.9 + 0.01 * np.sin(np.arange(len(tree)) - 1)
    advantage = algorithm.credit(plan, Outcome(log_prob=log_prob, reward=REWARD, leaf=leaf), ctx)
    value = fuse(tree, leaf, REWARD, path_sum(tree, log_share(tree, log_prob))[leaf])
    for depth, golden in GOLDEN["tree_pathweighted"].items():
        np.testing.assert_allclose(value[tree.level(int(depth))], golden["reward"], rtol=0, atol=MEAN)
        # The golden advantages follow from rewards of a spread of about .01: rounding counts a hundredfold.
        np.testing.assert_allclose(advantage[tree.level(int(depth))], golden["adv"], rtol=0, atol=ADVANTAGE)


def test_flow_grpos_advantage_with_the_prompts_own_std_is_normalisation_with_ddof_0_and_eps_1e_4():
    reward, prompt = np.array([1.0, 2, 3, 5, 8, 13]), np.array([0, 1, 0, 1, 0, 1])
    found = normalize(reward, prompt, ddof=0, eps=1e-4)
    np.testing.assert_allclose(found, GOLDEN["stat_global_False"], rtol=0, atol=MEAN)


def test_flow_grpos_advantage_with_the_std_of_all_images():
    reward, prompt = np.array([1.0, 2, 3, 5, 8, 13]), np.array([0, 1, 0, 1, 0, 1])
    found = normalize(reward, prompt, spread=np.zeros(6, int), ddof=0, eps=1e-4)
    np.testing.assert_allclose(found, GOLDEN["stat_global_True"], rtol=0, atol=MEAN)


def starts(algorithm: Mix, every: int, count: int) -> list[int]:
    return [algorithm.window_start(context(i * every, steps=25)) for i in range(count)]


def test_mixs_progressive_window_is_the_official_one_while_it_ends_before_t_minus_2():
    full = {int(i): steps for i, steps in GOLDEN["mix_progressive"].items() if steps and steps[0] + 4 <= 23}
    assert sorted(full) == [0, 24, 25, 275, 299, 600]
    full.pop(600)  # by then the official window has shrunk to nothing (575) and rolled back; ours rolled back at 525
    for iteration, steps in full.items():
        assert Mix().window_start(context(iteration, steps=25)) == steps[0]
    assert [Mix().window_start(context(i, steps=25)) for i in (500, 524, 525)] == [20, 20, 0]


def test_mixs_linear_decay_starts_are_the_official_ones_while_windows_are_full():
    full = GOLDEN["mix_decay_starts"][: GOLDEN["mix_decay_starts"].index(None)]
    assert starts(Mix(strategy="linear-decay", tau=10), 20, 7)[: len(full)] == full


def test_mixs_exponential_decay_starts_are_the_official_ones_while_windows_are_full():
    full = [start for start in GOLDEN["mix_exp_decay_starts"][:20] if start + 4 <= 23]
    assert len(full) == 19
    assert starts(Mix(strategy="exponential-decay", tau=25), 25, 19) == full
