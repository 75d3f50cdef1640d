"""A policy that costs microseconds, and a trainer that keeps its gradients: what algorithms are checked with."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench.conformance.cases import rewards_of
from bench.contract import POLICIES, Algorithm, Context, Outcome
from bench.named import NamedPolicy
from bench.noise import Noise, keyed
from bench.policy import Condition, Encoder, Policy
from bench.rollout import rollout
from bench.update import Iteration, Trainer

PROMPTS = ("a red square", "two blue circles", "one ring", "a green cross", "three stars", "dots", "a bar", "lines")


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
        """Return the velocity of each row."""
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

    def encoder(self) -> Encoder:
        """Return what makes two numbers of a prompt."""
        return lambda p, image: (torch.tensor([len(p) / 10, sum(map(ord, p)) % 7 / 7]),)  # noqa: ARG005

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the network's velocity."""
        self.rows += len(x)
        self.calls.append(len(x))
        return self.model(x, sigma, condition.tensors[0])

    def decode(self, x0: Tensor) -> Tensor:
        """Return tiny images."""
        return x0.flatten(1)[:, :3, None, None].sigmoid().expand(-1, 3, 4, 4)

    def save(self, folder: Path) -> None:
        """Refuse: there is nothing to keep."""
        raise NotImplementedError


class RecordingSGD(torch.optim.SGD):
    """Plain gradient descent that keeps every gradient it stepped by."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.seen: list[Tensor] = []

    def step(self, closure=None):
        """Keep the gradient, then step."""
        held = [p for group in self.param_groups for p in group["params"]]
        self.seen.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in held]))
        return super().step(closure)


def trainer(
    policy: Policy,
    *,
    lr: float = 0.1,
    max_grad_norm: float = 1e9,
    ema_decay: float = 0.0,
    needs: Collection[str] = (),
    apart: float = 0.0,
) -> Trainer:
    """Return a trainer whose steps are plain gradient descent.

    Args:
        policy: that is trained.
        lr: step size.
        max_grad_norm: of the clipping.
        ema_decay: of the moving average; 0 keeps none.
        needs: as an algorithm's; the policies among them are kept.
        apart: how far those stand from the live policy, in every weight; at 0 they are the live one.
    """
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    named = {name: NamedPolicy() for name in sorted(POLICIES & set(needs))}
    for at, held in enumerate(named.values() if apart else ()):
        held.weights = [p.detach() + apart * normal(*p.shape, key=10 + at) for p in parameters]
        held.is_live = False
    return Trainer(
        policy=policy,
        accelerator=Accelerator(cpu=True),
        optimizer=RecordingSGD(parameters, lr),
        ema_decay=ema_decay,
        max_grad_norm=max_grad_norm,
        ema=[p.detach().clone() for p in parameters] if ema_decay else [],
        named=named,
    )


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
        plan=plan,
        rollout=rolled,
        selection=selection,
        advantage=advantage,
        condition=condition,
        noise=noise,
        owner=np.zeros(plan.tree.slot.max() + 1, int),
    )
