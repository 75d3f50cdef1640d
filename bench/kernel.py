"""One denoising step as a Gaussian: `mean = (1 - sigma')*x0 + B*x1`, `y = mean + s*eps`.

Every sampler of the field is a choice of s and B (the ODE has s = 0, B = sigma'):

    Dance-SDE  s = eta*sqrt(d)                   B = sigma' - s^2 / (2 sigma)       DanceGRPO, arXiv 2505.07818
    Flow-SDE   s = a*sqrt(d * sigma/(1-sigma))   B = sigma' - s^2 / (2 sigma)       Flow-GRPO, arXiv 2505.05470
    CPS        s = sigma'*sin(eta*pi/2)          B = sigma'*cos(eta*pi/2)           arXiv 2509.05952

with d = sigma - sigma' > 0, clean prediction x0 = x - sigma*v and noise prediction x1 = x + (1-sigma)*v.
A row of a tensor is its first axis; sigma, sigma_next and noise_level are floats or one number a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Number: TypeAlias = Tensor | float


@dataclass(frozen=True, slots=True)
class Gaussian:
    """The transition of one full step."""

    mean: Float[Tensor, "*row_and_latent"]
    std: Float[Tensor, "*row"]
    """Always of the full step, sqrt(d) included; a scalar or one number a row; 0 for an ODE step."""

    def sample(self, noise: Number) -> Float[Tensor, "*row_and_latent"]:
        """Return mean + std * noise, with standard normal noise of the mean's shape."""
        return self.mean + _rows(self.std, self.mean) * torch.as_tensor(noise, device=self.mean.device)

    def log_prob(self, value: Number) -> Float[Tensor, "*row"]:
        """Return the log-density of `value`, as the mean over the latent's dimensions.

        Clip ranges of the field (1e-6 ... 1e-3) are calibrated to the mean; it is not a density's logarithm.

        Raises:
            ValueError: where a std is 0: a deterministic step has no density; index the stochastic rows first.
        """
        if bool((self.std <= 0).any()):
            raise ValueError("log_prob of a deterministic step (std 0); index the stochastic rows first")
        residual = torch.as_tensor(value, device=self.mean.device).to(self.mean.dtype) - self.mean
        square = residual.square()
        mean_square = square.flatten(1).mean(1) if square.ndim > 1 else square
        std = self.std.to(self.mean.device)
        return -mean_square / (2 * std.square()) - std.log() - 0.5 * math.log(2 * math.pi)


Kernel: TypeAlias = Callable[..., Gaussian]


def ode(velocity: Number, x: Number, sigma: Number, sigma_next: Number, noise_level: Number = 0.0) -> Gaussian:
    """Return the Euler step of the probability-flow ODE, std 0; `noise_level` has no effect."""
    velocity, x, sigma, sigma_next, _ = _float32(velocity, x, sigma, sigma_next, noise_level)
    return _gaussian(velocity, x, sigma, sigma_next, torch.zeros_like(sigma), sigma_next)


def dance_sde(velocity: Number, x: Number, sigma: Number, sigma_next: Number, noise_level: Number) -> Gaussian:
    """Return the step of DanceGRPO's SDE, whose diffusion is the constant `noise_level` (eta)."""
    velocity, x, sigma, sigma_next, eta = _float32(velocity, x, sigma, sigma_next, noise_level)
    s = eta * (sigma - sigma_next).sqrt()
    return _gaussian(velocity, x, sigma, sigma_next, s, sigma_next - s.square() / (2 * sigma))


def flow_sde(
    velocity: Number,
    x: Number,
    sigma: Number,
    sigma_next: Number,
    noise_level: Number,
    sigma_one: Number | None = None,
) -> Gaussian:
    """Return the step of Flow-GRPO's SDE, diffusion a*sqrt(sigma/(1-sigma)) with a the `noise_level`.

    `sigma_one` stands in for a sigma of 1 in that denominator, and there alone; the field takes the grid's second
    sigma.

    Raises:
        ValueError: if a sigma is 1 and nothing stands in for it.
    """
    velocity, x, sigma, sigma_next, a = _float32(velocity, x, sigma, sigma_next, noise_level)
    at_one = sigma >= 1
    if sigma_one is None:
        if bool((at_one & (a > 0)).any()):
            raise ValueError(
                "flow_sde at sigma = 1 needs sigma_one, the sigma that stands in for 1 (the grid's second)"
            )
        denominator = torch.where(at_one, 1.0, 1 - sigma)  # where there is no noise, any number will do
    else:
        denominator = 1 - torch.where(at_one, torch.as_tensor(sigma_one, dtype=sigma.dtype), sigma)
    s = a * ((sigma - sigma_next) * sigma / denominator).sqrt()
    return _gaussian(velocity, x, sigma, sigma_next, s, sigma_next - s.square() / (2 * sigma))


def cps(velocity: Number, x: Number, sigma: Number, sigma_next: Number, noise_level: Number) -> Gaussian:
    """Return the coefficients-preserving step: B^2 + s^2 = sigma_next^2, so no excess noise is left in the image."""
    velocity, x, sigma, sigma_next, eta = _float32(velocity, x, sigma, sigma_next, noise_level)
    angle = eta * (math.pi / 2)
    return _gaussian(velocity, x, sigma, sigma_next, sigma_next * angle.sin(), sigma_next * angle.cos())


KERNELS: Mapping[str, Kernel] = {"dance_sde": dance_sde, "flow_sde": flow_sde, "cps": cps, "ode": ode}


def step(
    name: str, velocity: Tensor, x: Tensor, sigma: Number, sigma_next: Number, noise_level: Number, sigma_one: float
) -> Gaussian:
    """Return the step of the kernel of that name; `sigma_one` serves Flow-SDE alone."""
    if name == "flow_sde":
        return flow_sde(velocity, x, sigma, sigma_next, noise_level, sigma_one)
    return KERNELS[name](velocity, x, sigma, sigma_next, noise_level)


def clean_prediction(velocity: Tensor, x: Tensor, sigma: Number) -> Tensor:
    """Return x0 = x - sigma * velocity, in float32 at least."""
    velocity, x, sigma, *_ = _float32(velocity, x, sigma)
    return x - _rows(sigma, x) * velocity


def _float32(*values: Number) -> tuple[Tensor, ...]:
    # Official code lets a bf16 model output pull the drift to bf16; every number of a step is float32 at least here.
    double = any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in values[:2])
    wide = torch.float64 if double else torch.float32
    return tuple(torch.as_tensor(value, dtype=wide) for value in values)


def _rows(number: Tensor, like: Tensor) -> Tensor:
    """Return a per-row number in a shape that multiplies `like`, on its device."""
    if number.ndim == 1:
        number = number.view(-1, *[1] * (like.ndim - 1))
    return number.to(like.device)


def _gaussian(velocity: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, s: Tensor, B: Tensor) -> Gaussian:
    # The coefficients live where the sigmas do (the CPU, in the harness), so that no check reads from the device.
    A = 1 - sigma_next
    mean = _rows(A + B, x) * x + _rows(B * (1 - sigma) - A * sigma, x) * velocity
    return Gaussian(mean, s)
