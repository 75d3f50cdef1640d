"""What the harness asks of a model family: prompts in, velocities and images or videos out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Row: TypeAlias = tuple[Tensor, ...]
"""What a model is told of one prompt, without a batch axis."""
Encoder: TypeAlias = Callable[[str, Path | None], Row]
"""A prompt, and the first frame of models that start from one -> what the model is told, on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How an adapter is to build a model."""

    height: int
    """Pixels; so is the width."""
    width: int
    frames: int = 1
    guidance: float
    device: torch.device
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the architecture of the folder's configurations, to measure speed and memory with."""
    dtype: torch.dtype = torch.float32
    """Of the trained part."""
    frozen: torch.dtype = torch.float32
    """Of all others: VAE, text encoders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Encoded prompts, one a row; what the tensors mean is the family's affair."""

    tensors: tuple[Tensor, ...]
    negative: Row | None = None
    """Of the empty prompt, for all rows: what classifier-free guidance leads away from."""

    def to(self, device: torch.device) -> Condition:
        """Return the condition on a device."""
        negative = None if self.negative is None else tuple(t.to(device) for t in self.negative)
        return Condition(tensors=tuple(t.to(device) for t in self.tensors), negative=negative)

    def rows(self, index: Tensor) -> Condition:
        """Return the condition of the given rows; a row may repeat."""
        return Condition(tensors=tuple(t.index_select(0, index) for t in self.tensors), negative=self.negative)


@runtime_checkable
class Rows(Protocol):
    """Encoded prompts that need not all be in memory."""

    def rows(self, index: Tensor) -> Condition:
        """Return the condition of the given rows; a row may repeat."""
        ...


@runtime_checkable
class Policy(Protocol):
    """One adapter a model family, none an algorithm. Guidance lives here: a velocity is already guided."""

    model: nn.Module
    """The part that is trained."""
    latent_shape: tuple[int, ...]
    calls_per_velocity: int
    """Forwards of `model` that one velocity takes: 2 under classifier-free guidance."""
    device: torch.device

    def encoder(self) -> Encoder:
        """Return what encodes a prompt; the text encoders live as long as it does."""
        ...

    def velocity(
        self, x: Float[Tensor, "row *latent"], sigma: Float[Tensor, " row"], condition: Condition
    ) -> Float[Tensor, "row *latent"]:
        """Return the guided velocity (noise minus image), float32."""
        ...

    def decode(self, x0: Float[Tensor, "row *latent"]) -> Float[Tensor, "row *frame 3 height width"]:
        """Return RGB images in [0, 1], float32; of a model of videos, frames of them."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model the way the ecosystem loads it."""
        ...


@torch.no_grad()
def encoded(policy: Policy, prompts: Sequence[str], images: Mapping[str, str] = MappingProxyType({})) -> Condition:
    """Return encoded prompts, one a row, on the policy's device; each distinct prompt is encoded once.

    Args:
        policy: whose encoder is loaded for it.
        prompts: texts.
        images: the first frame's file of each prompt, for models that start from one.
    """
    encode, rows = policy.encoder(), dict[str, Row]()
    for prompt in dict.fromkeys(prompts):
        rows[prompt] = encode(prompt, Path(images[prompt]) if prompt in images else None)
    negative = encode("", None) if policy.calls_per_velocity == 2 else None
    stacked = tuple(torch.stack(parts) for parts in zip(*(rows[prompt] for prompt in prompts), strict=True))
    return Condition(tensors=stacked, negative=negative).to(policy.device)


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
