"""Prompts of an embedded world, cut into splits that share no meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

HELDOUT, TUNE, TRAIN = 20, 4, 8
"""Prompts a category in each split; `base` has all but those held out and for tuning."""


def cut(worded: Iterable[tuple[str, str, str]], split: str) -> tuple[str, ...]:
    """Return the prompts of a split, categories taken in turn so that every beginning is balanced.

    Args:
        worded: category, meaning and caption of every scene; captions of one meaning show the same.
        split: base, train, tune or heldout.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for category, meaning, caption in worded:
        groups.setdefault(category, {}).setdefault(meaning, []).append(caption)
    columns: list[list[str]] = []
    for group in groups.values():
        # One text of each meaning, in hash order: which split a meaning is in never depends on the others' wording.
        ranked = [sorted(group[meaning], key=_hash) for meaning in sorted(group, key=_hash)]
        rest = ranked[HELDOUT + TUNE :]
        columns.append(
            {
                "heldout": [texts[0] for texts in ranked[:HELDOUT]],
                "tune": [texts[0] for texts in ranked[HELDOUT : HELDOUT + TUNE]],
                "train": [texts[0] for texts in rest[:TRAIN]],
                "base": [text for texts in rest for text in texts],
            }[split]
        )
    longest = max(len(column) for column in columns)
    return tuple(column[row] for row in range(longest) for column in columns if row < len(column))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
