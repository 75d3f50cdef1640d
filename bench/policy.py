"""What the harness asks of a model family: prompts in, velocities and images out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Encoded prompts, one a row; what the tensors mean is the family's affair."""

    tensors: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Condition:
        """Return the condition on a device."""
        return Condition(tensors=tuple(t.to(device) for t in self.tensors))

    def rows(self, index: Tensor) -> Condition:
        """Return the condition of the given rows; a row may repeat."""
        return Condition(tensors=tuple(t.index_select(0, index) for t in self.tensors))


@runtime_checkable
class Policy(Protocol):
    """One adapter a model family, none an algorithm. Guidance lives here: a velocity is already guided."""

    model: nn.Module
    """The part that is trained."""
    latent_shape: tuple[int, ...]
    calls_per_velocity: int
    """Forwards of `model` that one velocity takes: 2 under classifier-free guidance."""
    device: torch.device

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return the encoded prompts, one a row; each distinct prompt is encoded once."""
        ...

    def velocity(
        self, x: Float[Tensor, "row *latent"], sigma: Float[Tensor, " row"], condition: Condition
    ) -> Float[Tensor, "row *latent"]:
        """Return the guided velocity (noise minus image), float32."""
        ...

    def decode(self, x0: Float[Tensor, "row *latent"]) -> Float[Tensor, "row 3 height width"]:
        """Return RGB images in [0, 1], float32."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model the way the ecosystem loads it."""
        ...


def enable_gradient_checkpointing(policy: Policy) -> None:
    """Let the model compute its activations again in the backward pass.

    Raises:
        ValueError: if it cannot.
    """
    enable = getattr(policy.model, "enable_gradient_checkpointing", None)
    if enable is None:
        raise ValueError(f"gradient_checkpointing: {type(policy.model).__name__} has none; leave it off")
    enable()


def in_chunks(rows: int, size: int) -> list[slice]:
    """Return slices of at most `size` rows, as even as possible."""
    count = max(1, -(-rows // size))
    edges = [round(i * rows / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


@torch.no_grad()
def velocities(
    policy: Policy, x: Tensor, sigma: Tensor, condition: Condition, slot: Tensor, chunk: int, calls: int = 0
) -> Float[Tensor, "row *latent"]:
    """Return the velocity of every row without gradients, at most `chunk` rows a call.

    `calls` is the least number of calls: processes that share a model's parts must call it equally often, and one
    with fewer rows repeats its first.
    """
    parts = [policy.velocity(x[rows], sigma[rows], condition.rows(slot[rows])) for rows in in_chunks(len(x), chunk)]
    for _ in range(calls - len(parts)):
        policy.velocity(x[:1], sigma[:1], condition.rows(slot[:1]))
    return torch.cat(parts)
