"""What a suite will cost and where its arms differ, known before torch is imported: `--dry-run`."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import record
from bench.config import Cell, settings
from bench.contract import Outcome
from bench.cost import Nfe, mean_nfe, nfe
from bench.plan import Plan
from bench.registry import InputError


def planned_nfe(cell: Cell) -> tuple[Nfe, int]:
    """Return the mean cost over the planned iterations, and the leaves of a prompt.

    Raises:
        InputError: if the algorithm has no plan for these settings, with its reason.
    """
    costs: list[Nfe] = []
    leaves, memory = 0, {}
    for iteration in range(cell.shared.iterations):
        ctx = cell.context(iteration, 1, memory)
        try:
            plan = cell.algorithm.plan(ctx)
            check_claims(cell, plan)
            outcome = made_up_outcome(plan)
            advantage = np.nan_to_num(cell.algorithm.credit(plan, outcome, ctx))
            selection = cell.algorithm.select(plan, outcome, advantage, ctx)
            memory = cell.algorithm.remember(plan, outcome, ctx)
        except ValueError as error:
            raise InputError(f"{cell.arm}: {error}") from error
        except Exception as error:  # an algorithm may be anyone's code
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename}:{frame.lineno}"
            raise InputError(f"{cell.arm}: {type(error).__name__}: {error} ({where})") from error
        if not len(selection.item_node):
            raise InputError(f"{cell.arm}: iteration {iteration} trains nothing; see train_steps={cell.shared.trained}")
        costs.append(nfe(plan, selection))
        leaves = len(outcome.leaf)
    return mean_nfe(costs), leaves


def check_claims(cell: Cell, plan: Plan) -> None:
    """Raise ValueError unless the plan has the leaves the arm claims."""
    leaves = len(plan.tree.leaves())
    if "group_size" in cell.algorithm.info.claims and leaves != cell.shared.group_size:
        raise ValueError(
            f"its plan has {leaves} leaves a prompt, but group_size is {cell.shared.group_size}; change one of them"
        )


def made_up_outcome(plan: Plan) -> Outcome:
    """Return an outcome with distinct rewards, for counting: how many edges are trained depends on no more."""
    leaf = plan.tree.leaves()
    log_prob = np.where(plan.noise_level > 0, 0.0, np.nan)
    return Outcome(log_prob=log_prob, reward=np.sin(np.arange(1.0, len(leaf) + 1)), leaf=leaf)


def config_diff(cells: Iterable[Cell]) -> dict[str, dict[str, Any]]:
    """Return the shared keys whose effective values differ between arms: key -> arm -> value.

    None, a key that has no meaning for an arm, differs from nothing.
    """
    arms = {cell.arm: cell.effective for cell in cells}
    by_key = {key: {arm: keys[key] for arm, keys in arms.items()} for key in next(iter(arms.values()))}
    return {
        key: by_arm for key, by_arm in by_key.items() if len({repr(v) for v in by_arm.values() if v is not None}) > 1
    }


def recorded_seconds(runs: Path, cell: Cell) -> float | None:
    """Return the median seconds an iteration of recorded cells that cost the same; None if there are none."""
    if not runs.is_dir():
        return None
    found = []
    for config in sorted(runs.glob("*/*/result.json")):
        if config.parent.name.startswith("base-"):
            continue
        result = record.read_cell(config.parent).result
        same = (
            result is not None
            and result["algorithm"] == settings(cell.algorithm)
            and _costs_alike(result["shared"], cell)
        )
        if same and result is not None:
            found.append(result["seconds_per_iteration"]["total"])
    return float(np.median(found)) if found else None


def _costs_alike(shared: Mapping[str, Any], cell: Cell) -> bool:
    keys = (
        "model",
        "resolution",
        "steps",
        "group_size",
        "prompts_per_iteration",
        "train_steps",
        "rewards",
        "precision",
    )
    mine = cell.effective
    return all(shared[key] == mine[key] for key in keys)


def dry_run(cells: Sequence[Cell], runs: Path) -> dict[str, Any]:
    """Return what `--dry-run` prints: cells with their cost, and the effective-configuration diff."""
    rows, known = [], {}
    for cell in cells:
        key = (cell.arm, cell.shared)
        if key not in known:
            known[key] = (*planned_nfe(cell), recorded_seconds(runs, cell))
        cost, leaves, seconds = known[key]
        row = {"arm": cell.arm, "algo": cell.algo, "seed": cell.seed, "hash": cell.hash, "leaves": leaves}
        rows.append(row | {"nfe": cost.nested(), "seconds_per_iteration": seconds})
    return {"cells": rows, "config_diff": config_diff(cells)}
