"""Policies beside the live one: their weights, and their velocities where a loss asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class NamedPolicy:
    """The weights of `old`, `reference` or `ema`."""

    weights: list[Tensor]
    """Of the trainable parameters, in order."""
    is_live: bool = True
    """Whether they equal the live policy's at this moment, so that its velocity needs no pass of its own."""


@contextmanager
def exchanged(parameters: Sequence[Tensor], named: NamedPolicy) -> Iterator[None]:
    """Let the model compute with a named policy's weights; afterwards both are as they were, bit for bit."""
    _exchange(parameters, named.weights)
    try:
        yield
    finally:
        _exchange(parameters, named.weights)


@torch.no_grad()
def follow(parameters: Sequence[Tensor], policies: Mapping[str, NamedPolicy], decay: Mapping[str, float]) -> None:
    """Move `old` and `ema` after an iteration: d * itself + (1-d) * live, with d 0 where `decay` does not name it."""
    for name, policy in policies.items():
        if name == "reference":
            continue
        keep = decay.get(name, 0.0)
        for weight, parameter in zip(policy.weights, parameters, strict=True):
            # A sum, not an interpolation: it is exactly the live weight at 0, and exactly itself at 1.
            weight.mul_(keep).add_(parameter.detach(), alpha=1 - keep)
        policy.is_live = keep == 0 or policy.is_live


@torch.no_grad()
def _exchange(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        kept = one.detach().clone()
        one.copy_(other)
        other.copy_(kept)
