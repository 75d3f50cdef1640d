"""A cell ends when its budget does, and never after its iterations."""

from __future__ import annotations

from typing import Any

import pytest

from bench.budget import exhausted, spent
from bench.config import Shared
from bench.parse import replaced
from bench.registry import InputError


def row(reward: float) -> Any:
    return {
        "reward_total": reward,
        "calls": {"rollout": 100, "update": 10, "anchor": 5},
        "seconds": {"rollout": 1.5, "update": 0.5},
        "samples": 16,
    }


ROWS = [row(r) for r in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]


@pytest.mark.parametrize(
    ("budget", "value"),
    [("iterations", 6), ("calls", 6 * (100 + 5 + 3 * 10)), ("seconds", 12.0), ("samples", 96), ("target", 0.4)],
)
def test_each_budget_counts_what_it_is_named_after(budget: Any, value: float) -> None:
    assert spent(ROWS, budget) == pytest.approx(value)


def test_a_target_needs_five_iterations_before_it_can_be_met() -> None:
    assert not exhausted(ROWS[:4], "target", 0.0, iterations=10)
    assert exhausted(ROWS[:5], "target", 0.3, iterations=10)
    assert not exhausted(ROWS[:5], "target", 0.31, iterations=10)


def test_iterations_end_a_cell_under_every_budget() -> None:
    assert exhausted(ROWS, "samples", 1e9, iterations=6)
    assert not exhausted(ROWS, "samples", 97.0, iterations=7)
    assert exhausted(ROWS, "samples", 96.0, iterations=7)


@pytest.mark.parametrize("keys", [{"budget": "calls"}, {"budget_limit": 5}])
def test_a_budget_and_its_limit_go_together(keys: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="budget_limit"):
        replaced(Shared(), keys, "run")
