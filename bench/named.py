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

    weights: list[Tensor] | None = None
    """Of the trainable parameters, in order; none while they are the live policy's as the iteration began."""
    is_live: bool = True
    """Whether they equal the live policy's at this moment, so that its velocity needs no pass of its own."""


def keep(parameters: Sequence[Tensor], policies: Mapping[str, NamedPolicy], decay: Mapping[str, float]) -> None:
    """Copy the live weights, before they move, for every policy that will keep a part of them (`Algorithm.decay`).

    A policy that is renewed with every iteration is never copied: what is asked of it is asked before the first step.
    """
    for name, policy in policies.items():
        if policy.weights is None and (name == "reference" or decay.get(name, 0.0) > 0):
            policy.weights = [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def follow(parameters: Sequence[Tensor], policies: Mapping[str, NamedPolicy], decay: Mapping[str, float]) -> None:
    """Move `old` and `ema` after an iteration: d * itself + (1-d) * live, with d 0 where `decay` does not name it."""
    for name, policy in policies.items():
        d = 1.0 if name == "reference" else decay.get(name, 0.0)
        if d == 0:
            policy.weights, policy.is_live = None, True
        elif d < 1:
            assert policy.weights is not None, f"the weights of {name} were not kept"
            for weight, parameter in zip(policy.weights, parameters, strict=True):
                weight.mul_(d).add_(parameter.detach(), alpha=1 - d)


@contextmanager
def exchanged(parameters: Sequence[Tensor], named: NamedPolicy) -> Iterator[None]:
    """Let the model compute with a named policy's weights; afterwards both are as they were, bit for bit."""
    assert named.weights is not None, "the policy is the live one"
    _exchange(parameters, named.weights)
    try:
        yield
    finally:
        _exchange(parameters, named.weights)


@torch.no_grad()
def _exchange(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        kept = one.detach().clone()
        one.copy_(other)
        other.copy_(kept)
