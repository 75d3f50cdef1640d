from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from toy import context

from algorithms.mix import Mix
from bench.contract import Outcome

CTX = context(steps=12, slots=2, group_size=4)


def starts(algorithm: Mix, iterations: range, steps: int = 12, seed: int = 5) -> list[int]:
    return [algorithm.window_start(replace(context(steps=steps, iteration=i), seed=seed)) for i in iterations]


def test_the_window_moves_on_every_tau_iterations_over_full_windows_and_back():
    # Twelve steps, eleven of them usable: windows of 4 start at 0 ... 7.
    assert starts(Mix(tau=2), range(17)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 0]


def test_the_stride_is_the_distance_between_starts():
    assert starts(Mix(tau=1, stride=3), range(5)) == [0, 3, 6, 0, 3]


def test_linear_decay_stays_shorter_the_nearer_the_image():
    algorithm = Mix(strategy="linear-decay", tau=10)
    dwell = [algorithm.dwell(start, 25) for start in (0, 1, 10, 20)]
    # max (1 - p) + p with p = start / 23: 10, 9.6, 6.09, 2.17, rounded down.
    assert dwell == [10, 9, 6, 2]
    assert starts(algorithm, range(9, 20), steps=25) == [0] + [1] * 9 + [2]


def test_exponential_decay_begins_after_step_13():
    dwell = [Mix(strategy="exponential-decay", tau=25).dwell(start, 30) for start in (0, 13, 14, 18)]
    assert dwell == [25, 25, 23, 16]  # ceil(25 e^-.1) = ceil(22.6), ceil(25 e^-.5) = ceil(15.2)


def test_a_random_window_is_uniform_and_the_same_for_everyone():
    algorithm = Mix(strategy="random")
    drawn = starts(algorithm, range(400))
    assert drawn == starts(algorithm, range(400))
    assert drawn != starts(algorithm, range(400), seed=6)
    assert np.abs(np.bincount(drawn, minlength=8) - 50).max() < 5 * np.sqrt(400 / 8 * 7 / 8)


def test_a_frozen_window_stays():
    assert starts(Mix(strategy="frozen", start=3, tau=1), range(4)) == [3] * 4


def test_paths_are_one_before_the_window_and_stochastic_in_it_alone():
    plan = Mix(strategy="frozen", start=3, window=2).plan(replace(CTX, solver="dpm2m"))
    assert np.bincount(plan.tree.depth).tolist() == [2] * 4 + [8] * 9
    assert sorted(set((plan.tree.depth[plan.noise_level > 0] - 1).tolist())) == [3, 4]
    assert plan.solver == ("dpm2m",) * 12
    assert plan.kernel == "flow_sde"


def test_all_of_the_window_and_nothing_else_is_trained():
    algorithm = Mix(strategy="frozen", start=3, window=2)
    plan = algorithm.plan(CTX)
    outcome = Outcome(log_prob=np.zeros(len(plan.tree)), reward=np.arange(8.0), leaf=plan.tree.leaves())
    selection = algorithm.select(plan, outcome, np.zeros(len(plan.tree)), CTX)
    assert selection.item_node.tolist() == np.flatnonzero(plan.noise_level > 0).tolist()
    assert len(selection.read) == 2 + 8


def test_an_edge_has_the_advantage_of_its_leaf_and_the_shared_prefix_the_mean_of_all():
    algorithm = Mix(strategy="frozen", start=3)
    plan = algorithm.plan(CTX)
    reward = np.array([1.0, 2, 3, 6, 0, 0, 0, 4])
    outcome = Outcome(log_prob=np.zeros(len(plan.tree)), reward=reward, leaf=plan.tree.leaves())
    advantage = algorithm.credit(plan, outcome, CTX)
    std = np.sqrt(14 / 3)
    expected = [-2 / std, -1 / std, 0, 3 / std, -0.5, -0.5, -0.5, 1.5]
    np.testing.assert_allclose(advantage[plan.tree.level(4)], expected, atol=1e-7)
    np.testing.assert_allclose(advantage[plan.tree.level(3)], 0, atol=1e-9)


@pytest.mark.parametrize("window", [12, 13])
@pytest.mark.parametrize("strategy", ["progressive", "random", "linear-decay", "frozen"])
def test_a_window_longer_than_the_path_is_refused(strategy, window):
    with pytest.raises(ValueError, match="does not fit: steps 0 to 10"):
        Mix(strategy=strategy, window=window).plan(CTX)


@pytest.mark.parametrize("wrong", [{"window": 0}, {"stride": 0}, {"tau": 0}, {"start": -1}])
def test_settings_below_their_least_value_are_refused(wrong):
    with pytest.raises(ValueError, match="at least"):
        Mix(**wrong)
