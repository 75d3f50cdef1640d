"""Cells of a suite gathered by arm: the same settings under different seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.record import BaseResult, CellRecord, Result, SuiteRecord, name_and_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The cells that differ in nothing but the seed."""

    label: str
    cells: tuple[CellRecord, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the configuration; its seed and hash are the first cell's."""
        return self.cells[0].config

    @property
    def done(self) -> tuple[CellRecord, ...]:
        """Return the finished cells."""
        return tuple(cell for cell in self.cells if cell.result is not None)

    @property
    def results(self) -> tuple[Result, ...]:
        """Return the results of the finished cells."""
        return tuple(cell.result for cell in self.cells if cell.result is not None)

    @property
    def unfinished(self) -> tuple[CellRecord, ...]:
        """Return the cells that have no result yet."""
        return tuple(cell for cell in self.cells if cell.result is None)


def arms(record: SuiteRecord) -> tuple[Arm, ...]:
    """Return the arms in the suite's order; where one name has run under several settings, it is told apart by them."""
    groups: dict[tuple[str, str], list[CellRecord]] = {}
    place = {name: at for at, name in enumerate(record.suite["arms"])}
    later = set() if record.suite.get("open") else _not_of_all(record.cells)
    for cell in sorted(record.cells, key=lambda cell: (place.get(cell.config["arm"], len(place)), cell.config["seed"])):
        config = cell.config
        parts = [{k: v for k, v in config[part].items() if k not in later} for part in ("shared", "effective")]
        settings = json.dumps([*parts, config["algorithm"]], sort_keys=True)
        groups.setdefault((config["arm"], settings), []).append(cell)
    count = Counter(name for name, _ in groups)
    alike: dict[str, list[CellRecord]] = {}
    for (name, _), cells in groups.items():
        alike.setdefault(name, []).append(cells[0])
    return tuple(
        Arm(label=name if count[name] == 1 else _told_apart(cells[0], alike[name]), cells=tuple(cells))
        for (name, _), cells in groups.items()
    )


def _not_of_all(cells: Sequence[CellRecord]) -> set[str]:
    """Return shared keys that some cells are older than: in a closed suite, the others ran at their defaults."""
    keys = [set(cell.config["shared"]) for cell in cells]
    return set().union(*keys) - set.intersection(*keys) if keys else set()


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all an arm ran with, shared keys and its own, in one namespace."""
    return {**config["effective"], **config["algorithm"]}


def base_of(result: Result, bases: Mapping[str, BaseResult]) -> BaseResult:
    """Return the base record that a cell is measured against.

    Raises:
        ValueError: if the suite does not hold it.
    """
    if result["base"] not in bases:
        raise ValueError(
            f"{result['arm']} seed {result['seed']} is measured against {result['base']}, which has no result.json"
        )
    return bases[result["base"]]


def trained_on(shared: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the rewards that are trained on; in records each may carry a weight, as in soft:0.7."""
    return tuple(name_and_weight(name)[0] for name in shared["rewards"])


def _told_apart(cell: CellRecord, alike: Sequence[CellRecord]) -> str:
    mine = settings(cell.config)
    others = [settings(other.config) for other in alike]
    keys = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
    return f"{cell.config['arm']} [{', '.join(f'{key}={mine[key]}' for key in keys) or cell.config['hash']}]"
