from __future__ import annotations

import numpy as np
import pytest

from bench.schedule import shifted_sigmas


def test_the_papers_grid_of_twenty_steps_has_the_published_sigmas():
    # fmt: off
    published = [1, .98276, .96429, .94444, .92308, .9, .875, .84783, .81818, .78571, .75,
                 .71053, .66667, .61765, .5625, .5, .42857, .34615, .25, .13636, 0]
    # fmt: on
    np.testing.assert_allclose(shifted_sigmas(20, 3.0), published, atol=5e-6)


def test_shift_one_is_the_plain_grid():
    np.testing.assert_allclose(shifted_sigmas(4, 1.0), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(("steps", "shift", "says"), [(1, 3.0, "at least 2"), (10, 0.0, "shift"), (10, -1.0, "shift")])
def test_a_path_of_one_step_or_a_shift_that_is_not_positive_is_refused(steps, shift, says):
    with pytest.raises(ValueError, match=says):
        shifted_sigmas(steps, shift)
