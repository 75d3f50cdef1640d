"""A policy that costs microseconds, the toy of `bench.conformance`, and contexts for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
from bench.schedule import shifted_sigmas

__all__ = [
    "PROMPTS",
    "RecordingSGD",
    "ToyNet",
    "ToyPolicy",
    "context",
    "iteration_of",
    "normal",
    "rewards_of",
    "trainer",
]


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
