"""Gaussian data, for which everything about a rollout is exact: the velocity, and the joint law of a tree's nodes.

Data N(m, C) with C diagonal: a rotation makes it so, and no sampler notices. With x_sigma = (1-sigma) x0 + sigma x1
and x1 ~ N(0, I), the rectified-flow velocity E[x1 - x0 | x_sigma = x] is a line a x + b in every dimension, so a step
of any kernel is y = k x + l + s xi, and means and covariances follow level by level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.noise import Noise
from bench.plan import Plan
from bench.policy import Condition, Encoder, encoded
from bench.rollout import Rollout, rollout

ROWS = 1 << 20
"""Most numbers of a policy call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianData:
    """N(mean, variance), dimensions independent."""

    mean: Float[np.ndarray, " dim"]
    variance: Float[np.ndarray, " dim"]

    def line(self, sigma: float) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]:
        """Return (a, b) of the exact velocity a x + b: noise minus image, each expected given x."""
        a = (sigma - (1 - sigma) * self.variance) / ((1 - sigma) ** 2 * self.variance + sigma**2)
        return a, -self.mean * (1 + (1 - sigma) * a)


class GaussianPolicy:
    """A `bench.policy.Policy` without parameters: the exact velocity of Gaussian data.

    A latent is [*copies, dim]: independent copies make a large sample of one tree.
    """

    calls_per_velocity = 1

    def __init__(self, data: GaussianData, copies: Sequence[int] = ()) -> None:
        self.data = data
        self.latent_shape = (*copies, len(data.mean))
        self.device = torch.device("cpu")
        self.model = nn.Module()

    def encoder(self) -> Encoder:
        """Return what says nothing of a prompt: every one has the same images."""
        return lambda prompt, image: (torch.zeros(()),)  # noqa: ARG005

    def velocity(
        self,
        x: Float[Tensor, "row *latent"],
        sigma: Float[Tensor, " row"],
        condition: Condition,  # noqa: ARG002
    ) -> Float[Tensor, "row *latent"]:
        """Return a x + b of each row's sigma."""
        levels, row = np.unique(sigma.double().numpy(), return_inverse=True)
        lines = torch.from_numpy(np.array([self.data.line(level) for level in levels.tolist()])[row]).float()
        a, b = (lines[:, i].view(len(x), *[1] * (x.ndim - 2), -1) for i in (0, 1))
        return a * x + b

    def decode(self, x0: Float[Tensor, "row *latent"]) -> Float[Tensor, "row 3 height width"]:
        """Refuse: Gaussian data are no images."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Refuse: there is nothing to keep."""
        raise NotImplementedError


def sampled(data: GaussianData, plan: Plan, *, seed: int, copies: Sequence[int] = ()) -> Rollout:
    """Return the harness's rollout of a plan under the exact velocity, every latent kept."""
    policy = GaussianPolicy(data, copies)
    condition = encoded(policy, [""] * (int(plan.tree.slot.max()) + 1))
    chunk = max(1, ROWS // int(np.prod(policy.latent_shape)))
    return rollout(policy, plan, condition, Noise(seed=seed, iteration=0), keep=range(plan.steps), chunk=chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The incoming edge of each node as y = gain x + shift + std xi; a root's is 1, 0, 0."""

    gain: Float[np.ndarray, "node dim"]
    shift: Float[np.ndarray, "node dim"]
    std: Float[np.ndarray, " node"]
    """As sampled, `Plan.noise_scale` included."""


def steps_of(data: GaussianData, plan: Plan) -> Steps:
    """Return every edge of a plan, with `bench.kernel`'s coefficients written out: (1-sigma') x0 + B x1 + s xi.

    Raises:
        ValueError: for a plan with a multistep solver: its step is no function of one latent.
    """
    if set(plan.solver) != {"euler"}:
        raise ValueError("the law of a multistep solver's path is not propagated; use euler")
    scored, gain = plan.std(), np.ones((len(plan.tree), len(data.mean)))
    shift = np.zeros_like(gain)
    for step in range(plan.steps):
        level = plan.tree.level(step + 1)
        sigma, after, s = float(plan.sigmas[step]), float(plan.sigmas[step + 1]), scored[level, None]
        B = np.sqrt(after**2 - s**2) if plan.kernel == "cps" else after - s**2 / (2 * sigma)
        a, b = data.line(sigma)
        gain[level] = (1 - after) * (1 - sigma * a) + B * (1 + (1 - sigma) * a)
        shift[level] = b * (B * (1 - sigma) - (1 - after) * sigma)
    return Steps(gain=gain, shift=shift, std=scored * plan.noise_scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The joint law of the nodes of one depth; dimensions are independent."""

    mean: Float[np.ndarray, "node dim"]
    covariance: Float[np.ndarray, "node node dim"]

    def variance(self) -> Float[np.ndarray, "node dim"]:
        """Return each node's own variance."""
        return np.einsum("nnd->nd", self.covariance)


def law(data: GaussianData, plan: Plan, *, depth: int | None = None, root_variance: float = 1.0) -> Law:
    """Return the joint law of a depth's nodes, by default the leaves'.

    Args:
        data: whose velocity is followed.
        plan: any, with Euler steps where it is deterministic.
        depth: of the nodes.
        root_variance: 1, or 0 for the law given roots at 0.
    """
    tree, steps = plan.tree, steps_of(data, plan)
    roots = tree.level(0)
    shape = (int(tree.offset[1]), len(data.mean))
    mean = np.zeros(shape)
    covariance = np.repeat(root_variance * correlation(tree.slot[roots], plan.coupling[roots])[..., None], shape[1], 2)
    for d in range(1, (tree.steps if depth is None else depth) + 1):
        level = tree.level(d)
        up, gain, std = tree.parent[level] - int(tree.offset[d - 1]), steps.gain[level], steps.std[level]
        mean = gain * mean[up] + steps.shift[level]
        noise = std[:, None] * std * correlation(up, plan.coupling[level])
        covariance = gain[:, None] * gain * covariance[up][:, up] + noise[..., None]
    return Law(mean=mean, covariance=covariance)


def correlation(family: np.ndarray, coupling: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """Return the correlation of noises by eq. (2): sqrt(rho_i rho_j) within a family, 1 with oneself, else 0."""
    shared = np.where(family[:, None] == family, np.sqrt(coupling[:, None] * coupling), 0.0)
    return np.where(np.eye(len(family), dtype=bool), 1.0, shared)


def to_leaf(data: GaussianData, plan: Plan, depth: int) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]:
    """Return (gain, shift) of the first leaf as a line of its ancestor at a depth, but for the noise between them."""
    tree, steps = plan.tree, steps_of(data, plan)
    gain, shift = np.ones(len(data.mean)), np.zeros(len(data.mean))
    node = int(tree.leaves()[0])
    while tree.depth[node] > depth:
        shift = shift + gain * steps.shift[node]
        gain = gain * steps.gain[node]
        node = int(tree.parent[node])
    return gain, shift
