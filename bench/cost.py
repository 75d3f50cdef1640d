"""What an iteration costs: model evaluations by a stated definition, seconds by phase, peak memory, FLOPs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.plan import Plan
from bench.select import Selection

if TYPE_CHECKING:
    from bench.policy import Policy, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Nfe:
    """Number of function evaluations per leaf. Rollout and training calls are never added up."""

    rollout_paper: float
    """As papers count: T where a tree has at most one fan-out, else nodes (root and leaves included) per leaf."""
    rollout_edges: float
    """Edges per leaf."""
    rollout_calls: float
    """Forwards that run, per leaf: shared prefixes and parents once."""
    update_edges: float
    """Trained items per leaf."""
    update_calls: float
    """Forward-and-backward passes per leaf: children of one parent once."""
    named_calls: Mapping[str, float] = field(default_factory=dict)
    """Forwards of `old`, `reference` and `ema` per leaf, each where the loss needs it."""

    def nested(self) -> dict[str, dict[str, float]]:
        """Return the numbers as rollout, update and named, for JSON."""
        return {
            "rollout": {"paper": self.rollout_paper, "edges": self.rollout_edges, "calls": self.rollout_calls},
            "update": {"edges": self.update_edges, "calls": self.update_calls},
            "named": dict(self.named_calls),
        }


def nfe(
    plan: Plan, selection: Selection, calls_per_velocity: int = 1, named_rows: Mapping[str, float] | None = None
) -> Nfe:
    """Return the cost of a plan and of what is trained of it.

    Args:
        plan: the forest.
        selection: what is trained.
        calls_per_velocity: 2 under classifier-free guidance.
        named_rows: rows at which policies beside the live one are evaluated.
    """
    tree = plan.tree
    fanout = tree.fanout()
    leaves, edges = int((fanout == 0).sum()), int((tree.parent >= 0).sum())
    forks = np.bincount(tree.root()[fanout > 1], minlength=int(tree.offset[1]))
    return Nfe(
        rollout_paper=float(plan.steps) if forks.max() <= 1 else len(tree) / leaves,
        rollout_edges=edges / leaves,
        rollout_calls=calls_per_velocity * int((fanout > 0).sum()) / leaves,
        update_edges=len(selection.item_node) / leaves,
        update_calls=calls_per_velocity * len(selection.read) / leaves,
        named_calls={name: calls_per_velocity * rows / leaves for name, rows in (named_rows or {}).items()},
    )


def mean_nfe(costs: Sequence[Nfe]) -> Nfe:
    """Return the mean over iterations."""
    kinds = Nfe.__dataclass_fields__.keys() - {"named_calls"}
    named = {name: float(np.mean([cost.named_calls[name] for cost in costs])) for name in costs[0].named_calls}
    return Nfe(**{kind: float(np.mean([getattr(cost, kind) for cost in costs])) for kind in kinds}, named_calls=named)


@dataclass(slots=True)
class Clock:
    """Seconds by phase, with the device synchronised at the edges of each."""

    synchronize: Callable[[], None] = lambda: None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase."""
        self.synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Return the seconds by phase since the last reading, and start anew."""
        seconds, self.seconds = self.seconds, {}
        return seconds


def forget_host_peak() -> None:
    """Start the process's peak anew, where the system can (Linux)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def peak_host_bytes() -> int:
    """Return the process's largest resident size, on Linux since `forget_host_peak`, elsewhere ever."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def flops_per_call(policy: Policy, condition: Rows) -> float:
    """Return the floating-point operations of one forward of one row, counted, not estimated."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros((1, *policy.latent_shape), device=policy.device)
    first = condition.rows(torch.zeros(1, dtype=torch.long)).to(policy.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy.velocity(x, torch.ones(1, device=policy.device), first)
    return counter.get_total_flops() / policy.calls_per_velocity
