"""Identities (i) to (iv) of a step; every expectation is the textbook's form, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from toy import normal

from bench import kernel, plan
from bench.kernel import Gaussian
from bench.schedule import shifted_sigmas

SIGMAS = shifted_sigmas(20, 3.0).tolist()
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def step_of(name: str, v, x, step: int, level: float) -> Gaussian:
    return kernel.step(name, v, x, SIGMAS[step], SIGMAS[step + 1], level, SIGMAS[1])


def textbook(name: str, v, x, step: int, level: float):
    """Return (mean, std) of the SDEs in Euler-Maruyama form: x + (v + g^2/(2 sigma) x1)(sigma' - sigma), g sqrt(d)."""
    sigma, after = SIGMAS[step], SIGMAS[step + 1]
    x1 = x + (1 - sigma) * v
    g = level if name == "dance_sde" else level * math.sqrt(sigma / (1 - (SIGMAS[1] if step == 0 else sigma)))
    return x + (v + g**2 / (2 * sigma) * x1) * (after - sigma), g * math.sqrt(sigma - after)


@pytest.mark.parametrize("step", [0, 1, 7, 18])
@pytest.mark.parametrize(("name", "level"), [("dance_sde", 0.3), ("flow_sde", 0.7)])
def test_the_unified_form_is_the_textbook_form(name, level, step):
    v, x = normal(2, 50, key=1).double(), normal(2, 50, key=2).double()
    mean, std = textbook(name, v, x, step, level)
    found = step_of(name, v, x, step, level)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(float(found.std), std)


@pytest.mark.parametrize(("name", "level"), [("dance_sde", 0.3), ("flow_sde", 0.7), ("cps", 0.8)])
def test_on_policy_the_expected_log_prob_is_the_entropy_of_a_normal(name, level):
    v, x, eps = (normal(1, 200_000, key=k) for k in (1, 2, 3))
    gauss = step_of(name, v, x, 5, level)
    expected = -0.5 - math.log(float(gauss.std)) - HALF_LOG_2PI
    standard_error = math.sqrt(0.5 / 200_000)
    assert float(gauss.log_prob(gauss.sample(eps))) == pytest.approx(expected, abs=4 * standard_error)


@pytest.mark.parametrize(("name", "level"), [("dance_sde", 0.3), ("flow_sde", 0.7), ("cps", 0.8)])
def test_the_gradient_of_the_log_prob_is_the_noise_times_cv_over_s_and_the_dimension(name, level):
    x, eps = normal(1, 64, key=2).double(), normal(1, 64, key=3).double()
    v = normal(1, 64, key=1).double().requires_grad_()
    sigma, after = SIGMAS[5], SIGMAS[6]
    gauss = step_of(name, v, x, 5, level)
    s = float(gauss.std)
    gauss.log_prob(gauss.sample(eps).detach()).sum().backward()
    B = math.sqrt(after**2 - s**2) if name == "cps" else after - s**2 / (2 * sigma)
    cv = B * (1 - sigma) - (1 - after) * sigma
    torch.testing.assert_close(v.grad, eps * cv / (s * 64))


# algorithms.md 0.4: gradient scale |cv|/s, measured on the official functions (rounded to three decimals).
@pytest.mark.parametrize(
    ("name", "level", "published"),
    [
        ("dance_sde", 0.3, {0: (0.039, 0.438), 5: (0.047, 0.530), 13: (0.070, 0.805), 18: (0.101, 1.275)}),
        ("flow_sde", 0.7, {0: (0.700, 0.025), 5: (0.332, 0.094), 13: (0.209, 0.329), 18: (0.136, 1.038)}),
    ],
)
def test_noise_and_gradient_scale_of_each_step_are_the_measured_ones(name, level, published):
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    for step, (s, scale) in published.items():
        gauss = step_of(name, one, zero, step, level)  # at x = 0 and v = 1 the mean is cv
        assert float(gauss.std) == pytest.approx(s, abs=5e-4)
        assert abs(float(gauss.mean)) / float(gauss.std) == pytest.approx(scale, abs=1e-3)


@pytest.mark.parametrize("step", [0, 5, 18])
def test_cps_keeps_the_variance_that_the_next_sigma_expects(step):
    x1_only = step_of("cps", torch.ones(1, 1), torch.full((1, 1), SIGMAS[step]), step, 0.8)  # x0 = 0, x1 = 1
    B, s = float(x1_only.mean), float(x1_only.std)
    assert B**2 + s**2 == pytest.approx(SIGMAS[step + 1] ** 2, abs=1e-7)


@pytest.mark.parametrize(("name", "level"), [("dance_sde", 0.3), ("flow_sde", 0.7)])
def test_dance_and_flow_leave_the_excess_variance_that_cps_removes(name, level):
    x1_only = step_of(name, torch.ones(1, 1), torch.full((1, 1), SIGMAS[8]), 8, level)
    B, s, sigma, after = float(x1_only.mean), float(x1_only.std), SIGMAS[8], SIGMAS[9]
    excess = s**2 * (sigma - after) / sigma + s**4 / (4 * sigma**2)
    assert B**2 + s**2 - after**2 == pytest.approx(excess, abs=1e-6)


@pytest.mark.parametrize("name", ["dance_sde", "flow_sde", "cps"])
def test_noise_level_zero_is_the_euler_step_under_every_kernel(name):
    v, x = normal(3, 5, key=1), normal(3, 5, key=2)
    gauss = step_of(name, v, x, 4, 0.0)
    torch.testing.assert_close(gauss.mean, x - (SIGMAS[4] - SIGMAS[5]) * v)
    assert float(gauss.std) == 0
    torch.testing.assert_close(kernel.ode(v, x, SIGMAS[4], SIGMAS[5]).mean, x - (SIGMAS[4] - SIGMAS[5]) * v)


def test_a_row_may_have_a_noise_level_and_sigma_of_its_own():
    v, x = normal(2, 4, key=1), normal(2, 4, key=2)
    sigma, after, level = torch.tensor([0.9, 0.5]), torch.tensor([0.8, 0.3]), torch.tensor([0.3, 1.0])
    together = kernel.dance_sde(v, x, sigma, after, level)
    for row in (0, 1):
        alone = kernel.dance_sde(v[[row]], x[[row]], float(sigma[row]), float(after[row]), float(level[row]))
        torch.testing.assert_close(together.mean[row], alone.mean[0])
        torch.testing.assert_close(together.std[row], alone.std)


def test_the_log_prob_is_the_mean_over_dimensions_of_the_gaussian_density():
    mean, value = normal(3, 4, 5, key=1), normal(3, 4, 5, key=2)
    std = torch.tensor([0.1, 1.0, 2.0])
    exact = torch.distributions.Normal(mean, std.view(3, 1, 1)).log_prob(value).mean((1, 2))
    torch.testing.assert_close(Gaussian(mean, std).log_prob(value), exact)


def test_a_deterministic_step_has_no_log_prob():
    with pytest.raises(ValueError, match="deterministic step"):
        Gaussian(torch.zeros(2, 3), torch.tensor([0.1, 0.0])).log_prob(torch.zeros(2, 3))


def test_flow_at_sigma_one_needs_the_sigma_that_stands_in_for_it():
    v, x = normal(1, 4, key=1), normal(1, 4, key=2)
    with pytest.raises(ValueError, match="sigma_one"):
        kernel.flow_sde(v, x, 1.0, 0.9, 0.7)
    s = float(kernel.flow_sde(v, x, 1.0, 0.9, 0.7, sigma_one=0.9).std)
    assert s == pytest.approx(0.7 * math.sqrt(0.1 * 1 / (1 - 0.9)), rel=1e-5)


@pytest.mark.parametrize("name", ["dance_sde", "flow_sde", "cps", "ode"])
def test_a_half_precision_velocity_is_widened_before_the_step(name):
    v, x = normal(2, 8, key=1).bfloat16(), normal(2, 8, key=2)
    gauss = step_of(name, v, x, 3, 0.3)
    assert gauss.mean.dtype == torch.float32
    torch.testing.assert_close(gauss.mean, step_of(name, v.float(), x, 3, 0.3).mean)


def test_the_clean_prediction_of_an_exact_velocity_is_the_image():
    image, noise = normal(4, 6, key=1), normal(4, 6, key=2)
    found = kernel.clean_prediction(noise - image, 0.4 * image + 0.6 * noise, 0.6)
    torch.testing.assert_close(found, image)


def test_a_plan_knows_the_kernels_there_are():
    assert tuple(kernel.KERNELS) == plan.KERNELS
