"""An arm at the horizons and group sizes it has a plan for, up to what it selects after made-up rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bench.config import Cell, Shared, make_cell, resolve
from bench.contract import Algorithm, Context, Outcome, checked_credit
from bench.parse import parse_arms
from bench.plan import Plan
from bench.preview import check_needs, made_up_log_prob, planned
from bench.registry import InputError, Registry, load
from bench.select import Selection

SHAPES = tuple((steps, group) for steps in (6, 12, 20) for group in (2, 4, 8, 16))
"""Steps T and group sizes G that are tried."""
SLOTS, ITERATION, SEED = 3, 1, 7


@dataclass(frozen=True, kw_only=True)
class Case:
    """An arm at one horizon and group size."""

    cell: Cell
    ctx: Context
    plan: Plan
    outcome: Outcome
    advantage: np.ndarray
    selection: Selection

    @property
    def algorithm(self) -> Algorithm:
        """Return the arm's algorithm."""
        return self.cell.algorithm


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An arm to be checked, as written on the command line, with the algorithms it may be looked up among."""

    arm: str
    algorithms: Registry
    plugins: Sequence[str] = ()

    def cell(self, steps: int, group: int, *, iteration: int = ITERATION, **shared: Any) -> Cell:
        """Return the arm's cell at a horizon and group size.

        Raises:
            InputError: if the arm does not resolve.
        """
        (spec,) = parse_arms(self.arm)
        keys = Shared(steps=steps, group_size=group, iterations=iteration + 1, prompts_per_iteration=SLOTS, **shared)
        return make_cell("check", spec, SEED, keys, resolve(spec, keys, {}, self.algorithms), self.plugins)

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Return the arm's cases at the shapes it has a plan for.

        Raises:
            InputError: if there is none, with the last reason.
        """
        check_needs(self.cell(*SHAPES[0]))
        found, why = [], None
        for steps, group in SHAPES:
            cell = self.cell(steps, group)
            try:
                planned(cell)
            except InputError as error:
                why = error
                continue
            found.append(case(cell))
        if not found:
            raise InputError(
                f"{why}; so at every one of {len(SHAPES)} horizons and group sizes, T x G from 6x2 to 20x16"
            )
        return tuple(found)

    @property
    def smallest(self) -> Case:
        """Return the case that costs least."""
        return self.cases[0]


def rewards_of(plan: Plan) -> np.ndarray:
    """Return distinct rewards of a plan's leaves."""
    return np.sin(1.7 * np.arange(1.0, len(plan.tree.leaves()) + 1))


def case(cell: Cell, reward: np.ndarray | None = None) -> Case:
    """Return a cell's choices after made-up rewards."""
    ctx = cell.context(ITERATION, range(SLOTS), {})
    plan = cell.algorithm.plan(ctx)
    leaf = plan.tree.leaves()
    known = rewards_of(plan) if reward is None else reward
    outcome = Outcome(log_prob=made_up_log_prob(plan), reward=known, leaf=leaf)
    advantage = np.nan_to_num(checked_credit(cell.algorithm.credit(plan, outcome, ctx), plan))
    selection = cell.algorithm.select(plan, outcome, advantage, ctx)
    return Case(cell=cell, ctx=ctx, plan=plan, outcome=outcome, advantage=advantage, selection=selection)


def subjects(target: str, files: Sequence[Path] = ()) -> list[Subject]:
    """Return the arms that a target names: arms as on the command line, or all those of a plugin file.

    Raises:
        InputError: for an unknown name, or a file that does not load or holds no algorithm.
    """
    path = Path(target)
    if path.suffix == ".py":
        files = [*files, path]
    algorithms = load("algorithms", files)
    plugins = tuple(str(file.resolve()) for file in files)
    if path.suffix == ".py":
        arms = [name for name, origin in algorithms.origins.items() if origin == str(path)]
        if not arms:
            raise InputError(f"{target} has no ARMS: a mapping of names to algorithms is wanted")
    else:
        arms = [spec.label for spec in parse_arms(target)]
        for spec in parse_arms(target):
            algorithms.get(spec.algo)
    return [Subject(arm=arm, algorithms=algorithms, plugins=plugins) for arm in arms]
