"""What the arms ran with: where their configurations differ, their own settings, papers, deviations, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.record import SuiteRecord
from reports.arms import Arm
from reports.grid import Column, Grid, code, csv_text, escape, grid, markdown
from reports.numbers import NONE, plain_value


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An arm's provenance."""

    label: str
    paper: str
    reference: str
    deviations: tuple[str, ...]
    owns: tuple[str, ...]
    settings: Grid


def difference_grid(arms: Sequence[Arm]) -> Grid:
    """Return the shared keys that not all arms ran alike, with each arm's value."""
    return grid(
        [Column(title="shared key", numeric=False, code=True), *_headings(arms)],
        [(key, *(_shown(arm.config["effective"], key) for arm in arms)) for key in differing_keys(arms)],
    )


def differing_keys(arms: Sequence[Arm]) -> list[str]:
    """Return the shared keys that not all arms ran alike, in the configuration's order.

    None, a key that has no meaning for an arm, differs from nothing.
    """
    ran = [arm.config["effective"] for arm in arms]
    keys = dict.fromkeys(key for effective in ran for key in effective)
    return [key for key in keys if len({_shown(one, key) for one in ran if one.get(key) is not None}) > 1]


def shared_grid(shared: Mapping[str, Any]) -> Grid:
    """Return the suite's shared configuration."""
    return _pairs("shared key", shared)


def prompt_lines(record: SuiteRecord) -> list[str]:
    """Return what was read of each prompt set, and what became of it; nothing of records that do not say."""
    sources = (*record.bases.values(), *(cell.result for cell in record.cells if cell.result is not None))
    found = [source["prompt_counts"] for source in sources if "prompt_counts" in source]
    lines = [
        f"Prompts: {n['read']} read, {n['empty']} empty, {n['duplicates']} duplicate{'s' * (n['duplicates'] != 1)}; "
        f"{n['train']} to train on, {n['tune']} to tune by, {n['heldout']} held out."
        for n in found
    ]
    return list(dict.fromkeys(lines))


def cards(arms: Sequence[Arm]) -> list[Card]:
    """Return the provenance of each arm."""
    return [
        Card(
            label=arm.label,
            paper=arm.config["info"]["paper"],
            reference=arm.config["info"]["reference"],
            deviations=tuple(arm.config["info"]["deviations"]),
            owns=tuple(arm.config["info"].get("owns", ())),
            settings=_pairs("setting", arm.config["algorithm"]),
        )
        for arm in arms
    ]


def environment_grid(arms: Sequence[Arm]) -> Grid:
    """Return the cells' environments: one value where they agree, else each value with its number of cells."""
    flat = [_flat(cell.environment) for arm in arms for cell in arm.cells if cell.environment]
    rows = []
    for key in dict.fromkeys(key for one in flat for key in one):
        values = [one.get(key, NONE) for one in flat]
        counts = {value: values.count(value) for value in dict.fromkeys(values)}
        shown = [value if len(counts) == 1 else f"{value} ({count} cells)" for value, count in counts.items()]
        rows.append((key, "; ".join(shown)))
    return grid(["", "value"], rows)


def difference_markdown(arms: Sequence[Arm]) -> str:
    """Return config_diff.md: the differences, then each arm's settings and provenance."""
    table = difference_grid(arms)
    parts = [
        "# Effective configurations\n",
        "Shared keys that differ between arms; none where an arm has no such setting:\n",
    ]
    parts.append(markdown(table) if table.rows else "None: all arms ran the same shared configuration.\n")
    for card in cards(arms):
        parts += [
            f"## {code(card.label)}\n",
            f"Paper: {escape(card.paper)}  ",
            f"Reference: {escape(card.reference)}  ",
        ]
        parts.append(f"May set itself: {escape(', '.join(card.owns) or 'nothing')}\n")
        parts.append(markdown(card.settings))
        if card.deviations:
            parts += ["Deviations:\n", *(f"- {escape(line)}" for line in card.deviations), ""]
    return "\n".join(parts)


def difference_csv(arms: Sequence[Arm]) -> str:
    """Return config_diff.csv: all shared keys and all settings, a column an arm, values as JSON."""
    rows = []
    for section in ("effective", "algorithm"):
        keys = dict.fromkeys(key for arm in arms for key in arm.config[section])
        for key in keys:
            values = [json.dumps(arm.config[section][key]) if key in arm.config[section] else "" for arm in arms]
            rows.append((section, key, len(set(values)) > 1, *values))
    return csv_text(["section", "key", "differs", *(arm.label for arm in arms)], rows)


def _headings(arms: Sequence[Arm]) -> list[Column]:
    return [Column(title=arm.label, numeric=False) for arm in arms]


def _pairs(title: str, values: Mapping[str, Any]) -> Grid:
    return grid(
        [Column(title=title, numeric=False, code=True), "value"], [(k, plain_value(v)) for k, v in values.items()]
    )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return plain_value(values[key]) if key in values else NONE


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = plain_value(item)
    return flat
