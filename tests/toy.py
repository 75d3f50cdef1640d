"""Policies that cost microseconds: the toy of `bench.conformance`, and the exact velocity of Gaussian data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.conformance.cases import rewards_of
from bench.conformance.toy import (
    PROMPTS,
    RecordingSGD,
    ToyNet,
    ToyPolicy,
    iteration_of,
    normal,
    trainer,
)
from bench.contract import Context
from bench.policy import Condition
from bench.schedule import shifted_sigmas

__all__ = [
    "PROMPTS",
    "GaussianPolicy",
    "RecordingSGD",
    "ToyNet",
    "ToyPolicy",
    "context",
    "iteration_of",
    "normal",
    "rewards_of",
    "trainer",
]


class GaussianPolicy(ToyPolicy):
    """The exact rectified-flow velocity of data N(mean, std^2), each dimension on its own."""

    def __init__(self, latent_shape: tuple[int, ...], mean: float, std: float) -> None:
        super().__init__(latent_shape)
        self.mean, self.std = mean, std

    def line(self, sigma: float) -> tuple[float, float]:
        """Return (a, b) of the velocity a*x + b: noise minus image, each expected given x."""
        variance = (1 - sigma) ** 2 * self.std**2 + sigma**2
        image, noise = (1 - sigma) * self.std**2 / variance, sigma / variance
        centre = (1 - sigma) * self.mean
        return noise - image, -(noise - image) * centre - self.mean

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.rows += len(x)
        lines = torch.tensor([self.line(float(s)) for s in sigma.double()], dtype=torch.float64)
        a, b = (lines[:, i].view(-1, *[1] * (x.ndim - 1)) for i in (0, 1))
        return (a * x + b).float()


def context(*, steps: int = 6, slots: int = 2, group_size: int = 4, iteration: int = 0, **more: Any) -> Context:
    """Return a context whose every step but the last may be trained."""
    ctx = Context(
        iteration=iteration,
        seed=5,
        sigmas=shifted_sigmas(steps, 3.0),
        slots=slots,
        group_size=group_size,
        train_steps=tuple(range(steps - 1)),
        shift=3.0,
        prompts=tuple(range(slots)),
    )
    return replace(ctx, **more)
