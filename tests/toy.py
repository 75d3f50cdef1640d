"""Policies that cost microseconds: a small network, and the exact velocity of Gaussian data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench.contract import Algorithm, Context, Outcome
from bench.noise import Noise, keyed
from bench.plan import Plan
from bench.policy import Condition, Policy
from bench.rollout import rollout
from bench.schedule import shifted_sigmas
from bench.update import Iteration, Trainer


def normal(*shape: int, key: int = 0) -> Tensor:
    """Return standard normals that depend on the key alone."""
    return torch.from_numpy(keyed(key, "eval", *shape).standard_normal(shape, np.float32))


class ToyNet(nn.Module):
    """Velocity of a flattened latent from itself, its sigma and two numbers of the prompt."""

    def __init__(self, size: int, hidden: int = 16) -> None:
        super().__init__()
        self.inner = nn.Parameter(normal(hidden, size + 3, key=1) / (size + 3) ** 0.5)
        self.outer = nn.Parameter(normal(size, hidden, key=2) / hidden**0.5)
        self.bias = nn.Parameter(normal(size, key=3))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        seen = torch.cat([x.flatten(1), sigma[:, None], prompt], dim=1)
        return (torch.tanh(seen @ self.inner.T) @ self.outer.T + self.bias * self.frozen).view_as(x)


class ToyPolicy:
    """A `bench.policy.Policy` over a few numbers; counts the rows it was asked for."""

    calls_per_velocity = 1

    def __init__(self, latent_shape: tuple[int, ...] = (3, 2)) -> None:
        self.latent_shape = latent_shape
        self.device = torch.device("cpu")
        self.model: nn.Module = ToyNet(int(np.prod(latent_shape)))
        self.rows = 0
        self.calls: list[int] = []

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition(tensors=(torch.tensor([[len(p) / 10, sum(map(ord, p)) % 7 / 7] for p in prompts]),))

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.rows += len(x)
        self.calls.append(len(x))
        return self.model(x, sigma, condition.tensors[0])

    def decode(self, x0: Tensor) -> Tensor:
        return x0.flatten(1)[:, :3, None, None].sigmoid().expand(-1, 3, 4, 4)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


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


PROMPTS = ("a red square", "two blue circles", "one ring", "a green cross", "three stars", "dots", "a bar", "lines")


class RecordingSGD(torch.optim.SGD):
    """Plain gradient descent that keeps every gradient it stepped by."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.seen: list[Tensor] = []

    def step(self, closure=None):
        held = [p for group in self.param_groups for p in group["params"]]
        self.seen.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in held]))
        return super().step(closure)


def trainer(policy: Policy, *, lr: float = 0.1, max_grad_norm: float = 1e9, ema_decay: float = 0.0) -> Trainer:
    """Return a trainer whose steps are plain gradient descent."""
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    return Trainer(
        policy=policy,
        accelerator=Accelerator(cpu=True),
        optimizer=RecordingSGD(parameters, lr),
        ema_decay=ema_decay,
        max_grad_norm=max_grad_norm,
        ema=[p.detach().clone() for p in parameters] if ema_decay else [],
    )


def context(*, steps: int = 6, slots: int = 2, group_size: int = 4, iteration: int = 0, **more: Any) -> Context:
    """Return a context whose every step but the last may be trained."""
    ctx = Context(
        iteration=iteration,
        seed=5,
        sigmas=shifted_sigmas(steps, 3.0),
        slots=slots,
        group_size=group_size,
        train_steps=tuple(range(steps - 1)),
    )
    return replace(ctx, **more)


def rewards_of(plan: Plan) -> np.ndarray:
    """Return distinct rewards of a plan's leaves."""
    return np.sin(1.7 * np.arange(1.0, len(plan.tree.leaves()) + 1))


def iteration_of(
    policy: Policy, algorithm: Algorithm, ctx: Context, condition: Condition, reward: np.ndarray | None = None
) -> Iteration:
    """Return what an update reads, after a rollout with made-up rewards."""
    plan, noise = algorithm.plan(ctx), Noise(seed=ctx.seed, iteration=ctx.iteration)
    rolled = rollout(policy, plan, condition, noise, keep=range(plan.steps), chunk=1000)
    known = rewards_of(plan) if reward is None else reward
    outcome = Outcome(log_prob=rolled.log_prob, reward=known, leaf=plan.tree.leaves())
    advantage = np.nan_to_num(algorithm.credit(plan, outcome, ctx))
    selection = algorithm.select(plan, outcome, advantage, ctx)
    return Iteration(
        plan=plan, rollout=rolled, selection=selection, advantage=advantage, condition=condition, noise=noise
    )
