from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.schedule import double_shifted_sigmas, respaced, shifted_sigmas, sigma_grid, stratified


def test_the_papers_grid_of_twenty_steps_has_the_published_sigmas():
    # fmt: off
    published = [1, .98276, .96429, .94444, .92308, .9, .875, .84783, .81818, .78571, .75,
                 .71053, .66667, .61765, .5625, .5, .42857, .34615, .25, .13636, 0]
    # fmt: on
    np.testing.assert_allclose(shifted_sigmas(20, 3.0), published, atol=5e-6)


def test_sd3s_pipelines_shift_twice_and_end_in_a_forward_of_almost_nothing():
    # fmt: off
    measured = [1, .98187, .96239, .94137, .91865, .894, .86717, .83785, .80569, .77024, .73097,
                .68724, .63824, .58295, .52007, .44794, .36435, .26633, .14979, .00893, 0]
    # fmt: on
    np.testing.assert_allclose(double_shifted_sigmas(20, 3.0), measured, atol=5e-6)
    np.testing.assert_array_equal(sigma_grid(20, 3.0, "double-shift"), double_shifted_sigmas(20, 3.0))
    np.testing.assert_array_equal(sigma_grid(20, 3.0, "plain"), shifted_sigmas(20, 3.0))


def test_the_double_shifted_grid_is_what_the_scheduler_of_diffusers_makes():
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    np.testing.assert_allclose(double_shifted_sigmas(10, 3.0), scheduler.sigmas, atol=1e-6)


def test_shift_one_is_the_plain_grid():
    np.testing.assert_allclose(shifted_sigmas(4, 1.0), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(("steps", "shift", "says"), [(1, 3.0, "at least 2"), (10, 0.0, "shift"), (10, -1.0, "shift")])
def test_a_path_of_one_step_or_a_shift_that_is_not_positive_is_refused(steps, shift, says):
    with pytest.raises(ValueError, match=says):
        shifted_sigmas(steps, shift)


def test_a_grid_spaced_anew_with_as_many_steps_is_the_grid():
    grid = shifted_sigmas(25, 3.0)
    for first in (0, 4, 24):
        np.testing.assert_allclose(respaced(grid, 3.0, first, 25 - first), grid, atol=1e-12)


def test_fewer_steps_are_even_before_the_shift_and_end_at_the_image():
    grid = shifted_sigmas(20, 3.0)
    found = respaced(grid, 3.0, 8, 3)  # unshifted, step 8 of 20 is at .6
    np.testing.assert_array_equal(found[:9], grid[:9])
    np.testing.assert_allclose(found[9:], [3 * u / (1 + 2 * u) for u in (0.4, 0.2, 0.0)])
    assert found[-1] == 0


@pytest.mark.parametrize(("first", "steps"), [(-1, 3), (20, 1), (4, 0)])
def test_a_tail_that_is_none_is_refused(first, steps):
    with pytest.raises(ValueError, match="cannot take the place"):
        respaced(shifted_sigmas(20, 3.0), 3.0, first, steps)


@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=12),
    st.integers(1, 30),
)
def test_every_stratum_gives_one_choice_of_its_own(draw, choices):
    found = stratified(np.array(draw), range(choices))
    low = np.floor(np.arange(len(draw)) / len(draw) * choices)
    high = np.ceil((np.arange(len(draw)) + 1) / len(draw) * choices)
    assert ((found >= low) & (found < np.maximum(high, low + 1))).all()
    assert found.min() >= 0
    assert found.max() < choices
