"""What a suite will cost and where its arms differ, known before torch is imported: `--dry-run`."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bench import contract, record
from bench.config import Cell, settings
from bench.contract import (
    CHOICES,
    NEEDS,
    POLICIES,
    Algorithm,
    Outcome,
    checked_credit,
    checked_decay,
    checked_plan,
    checked_selection,
    checked_updates,
)
from bench.cost import Nfe, mean_nfe, nfe
from bench.environment import cpu_name
from bench.hosts import owns
from bench.models.source import described
from bench.plan import Plan
from bench.registry import InputError

COSTLY = (
    *("model", "resolution", "steps", "group_size", "prompts_per_iteration", "train_steps", "rewards", "precision"),
    *("micro_batch", "updates_per_iteration", "anchor"),
)
"""Keys that an iteration's seconds hang on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What an arm will do, known from its plans."""

    cost: Nfe
    """Mean over the planned iterations."""
    leaves: int
    """Of a prompt."""
    deeds: str
    """A hash of plans, credit of made-up rewards, and selections: what tells arms apart, but for their losses."""


def planned(cell: Cell) -> Planned:
    """Return what a cell's arm will do.

    Raises:
        InputError: if the algorithm has no plan for these settings, with its reason.
    """
    check_needs(cell)
    costs: list[Nfe] = []
    live = dict.fromkeys(sorted(cell.algorithm.needs & POLICIES), True)
    leaves, memory, deeds = 0, {}, hashlib.sha256(type(cell.algorithm).__qualname__.encode())
    owned = "updates_per_iteration" in owns(cell.algorithm)
    calls = described(cell.shared.model, [Path(p) for p in cell.plugins]).family.calls(cell.keys["guidance"])
    for iteration in range(cell.shared.iterations):
        try:
            ctx = cell.context(iteration, (0,), memory)
            plan = checked_plan(cell.algorithm.plan(ctx))
            check_claims(cell, plan)
            outcome = made_up_outcome(plan)
            advantage = np.nan_to_num(checked_credit(cell.algorithm.credit(plan, outcome, ctx), plan))
            selection = checked_selection(cell.algorithm.select(plan, outcome, advantage, ctx))
            updates = checked_updates(ctx.updates, selection, owned=owned)
            memory = cell.algorithm.remember(plan, {outcome.name: outcome}, ctx)
            decay = checked_decay(cell.algorithm.decay(ctx))
        except ValueError as error:
            raise InputError(f"{cell.arm}: {error}") from error
        except TypeError as error:
            raise InputError(f"{cell.arm}: {error}{_place(error)}") from error
        except (Exception, SystemExit) as error:  # an algorithm may be anyone's code
            raise InputError(f"{cell.arm}: {type(error).__name__}: {error}{_place(error)}") from error
        if not len(selection.item_node):
            raise InputError(f"{cell.arm}: iteration {iteration} trains nothing; see train_steps={ctx.train_steps}")
        first_step = len(selection.read) / updates
        rows = {name: len(selection.read) - first_step * is_live for name, is_live in live.items()}
        costs.append(nfe(plan, selection, calls, named_rows=rows))
        live = {name: name != "reference" and decay.get(name, 0.0) == 0 for name in live}
        leaves = len(outcome.leaf)
        for array in (
            plan.noise_level,
            plan.coupling,
            plan.noise_scale,
            plan.tree.parent,
            advantage,
            selection.item_node,
            selection.sigma,
            *([] if selection.update is None else [selection.update]),
        ):
            deeds.update(array.tobytes())
        deeds.update(f"{plan.kernel} {plan.solver} {plan.policy}".encode())
    return Planned(cost=mean_nfe(costs), leaves=leaves, deeds=deeds.hexdigest())


def _place(error: BaseException) -> str:
    """Return the file and line of the last frame that is not this module's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (__file__, contract.__file__)]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def check_needs(cell: Cell) -> None:
    """Raise InputError if an algorithm lacks a choice, or needs what there is not."""
    lacking = [name for name in CHOICES if getattr(type(cell.algorithm), name) is getattr(Algorithm, name)]
    if lacking:
        raise InputError(f"{cell.arm} has no method {lacking[0]}: an algorithm is {', '.join(CHOICES)}")
    if not isinstance(cell.algorithm.needs, frozenset):
        raise InputError(f"{cell.arm}: needs is a property that returns a frozenset, as in frozenset({{'old'}})")
    unknown = cell.algorithm.needs - NEEDS
    if unknown:
        raise InputError(f"{cell.arm} needs {sorted(unknown)}; an algorithm may need {sorted(NEEDS)}")


def check_claims(cell: Cell, plan: Plan) -> None:
    """Raise ValueError unless the plan has the leaves the arm claims, and a sampler it needs."""
    if plan.policy != "live" and plan.policy not in cell.algorithm.needs:
        raise ValueError(f"its plan is sampled by policy {plan.policy!r}, which its needs do not name")
    leaves = len(plan.tree.leaves())
    if "group_size" in cell.algorithm.info.claims and leaves != cell.shared.group_size:
        raise ValueError(
            f"its plan has {leaves} leaves a prompt, but group_size is {cell.shared.group_size}; change one of them"
        )


def made_up_outcome(plan: Plan) -> Outcome:
    """Return an outcome with distinct rewards and log-probs: what is trained can be counted without a model."""
    leaf = plan.tree.leaves()
    return Outcome(log_prob=made_up_log_prob(plan), reward=np.sin(np.arange(1.0, len(leaf) + 1)), leaf=leaf)


def made_up_log_prob(plan: Plan) -> Float[np.ndarray, " node"]:
    """Return distinct log-probs of a plan's stochastic edges."""
    return np.where(plan.noise_level > 0, np.cos(np.arange(len(plan.tree))), np.nan)


def config_diff(cells: Iterable[Cell]) -> dict[str, dict[str, Any]]:
    """Return the shared keys whose effective values differ between arms: key -> arm -> value.

    None, a key that has no meaning for an arm, differs from nothing.
    """
    arms = {cell.arm: cell.effective for cell in cells}
    by_key = {key: {arm: keys[key] for arm, keys in arms.items()} for key in next(iter(arms.values()))}
    return {
        key: by_arm for key, by_arm in by_key.items() if len({repr(v) for v in by_arm.values() if v is not None}) > 1
    }


def recorded(runs: Path) -> list[record.Result]:
    """Return the readable results of cells that ran on this kind of machine."""
    found = []
    for path in sorted(runs.glob("*/*/result.json")) if runs.is_dir() else ():
        try:
            result = json.loads(path.read_text())
            where = json.loads((path.parent / "environment.json").read_text())
        except (OSError, ValueError):
            continue  # a cell that is being written, or no cell at all: it has no say
        if where.get("cpu") == cpu_name() and "seconds_per_iteration" in result:
            found.append(result)
    return found


def recorded_seconds(cell: Cell, results: Iterable[record.Result]) -> float | None:
    """Return the median seconds an iteration of the results that cost what the cell will; None if there are none."""
    mine = cell.effective
    alike = [
        result["seconds_per_iteration"]["total"]
        for result in results
        if result["algorithm"] == settings(cell.algorithm)
        and all(result["effective"].get(key) == mine[key] for key in COSTLY)
    ]
    return float(np.median(alike)) if alike else None


def dry_run(cells: Sequence[Cell], runs: Path | None) -> dict[str, Any]:
    """Return what `--dry-run` prints: cells with their cost, the effective-configuration diff, arms that are alike.

    Args:
        cells: the suite's.
        runs: where recorded seconds are looked for; None for nowhere.
    """
    results = recorded(runs) if runs else []
    arms = {cell.arm: cell for cell in cells}
    known = {arm: planned(cell) for arm, cell in arms.items()}
    seconds = {arm: recorded_seconds(cell, results) for arm, cell in arms.items()}
    rows = [
        {
            "arm": cell.arm,
            "algo": cell.algo,
            "seed": cell.seed,
            "hash": cell.hash,
            "leaves": known[cell.arm].leaves,
            "nfe": known[cell.arm].cost.nested(),
            "seconds_per_iteration": seconds[cell.arm],
        }
        for cell in cells
    ]
    first = {known[arm].deeds: arm for arm in reversed(known)}
    alike = {arm: first[one.deeds] for arm, one in known.items() if first[one.deeds] != arm}
    return {"cells": rows, "config_diff": config_diff(cells), "alike": alike}


def spoken(preview: Mapping[str, Any]) -> str:
    """Return what `dry_run` found as text: a table, the keys that differ, the arms that are alike."""
    names = sorted({name for cell in preview["cells"] for name in cell["nfe"]["named"]})
    columns = ("paper", "edges", "calls", "edges", "calls", *names)
    head = ("arm", "seed", "leaves", *columns, "s/iteration", "hash")
    over = ("rollout NFE", "", "", "update NFE", "", *(["other policies"] if names else []), *[""] * (len(names) - 1))
    rows = [("", "", "", *over, "", ""), head]
    for cell in preview["cells"]:
        roll, up, seconds = cell["nfe"]["rollout"], cell["nfe"]["update"], cell["seconds_per_iteration"]
        known = [cell["nfe"]["named"].get(name) for name in names]
        numbers = (roll["paper"], roll["edges"], roll["calls"], up["edges"], up["calls"], *known)
        rows.append(
            (
                *(cell["arm"], str(cell["seed"]), str(cell["leaves"])),
                *("" if x is None else f"{x:.7g}" for x in numbers),
                *(f"{seconds:.2f}" if seconds else "not recorded", cell["hash"]),
            )
        )
    width = [max(len(row[i]) for row in rows[1:]) for i in range(len(head))]
    lines = ["  ".join(text.ljust(w) for text, w in zip(row, width, strict=True)).rstrip() for row in rows]
    diff = [f"{key}: {_by_value(by)}" for key, by in preview["config_diff"].items()]
    tail = ["", "shared keys that differ between arms:", *(f"  {line}" for line in diff or ["none"])]
    tail += [
        f"{arm} samples, credits and selects exactly as {twin} does under these settings"
        for arm, twin in preview["alike"].items()
    ]
    return "\n".join([*lines, *tail])


def _by_value(by_arm: Mapping[str, Any]) -> str:
    """Return the arms that have each value; those for which the key has no meaning are left out."""
    arms: dict[str, list[str]] = {}
    for arm, value in by_arm.items():
        if value is not None:
            arms.setdefault(str(value), []).append(arm)
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in arms.items())
