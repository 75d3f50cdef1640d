"""Prompts: where they come from, how they are split, and which an iteration sees."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from bench.noise import keyed
from bench.registry import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Disjoint sets: for training, for choosing hyper-parameters, and held out."""

    train: tuple[str, ...]
    tune: tuple[str, ...]
    heldout: tuple[str, ...]
    images: Mapping[str, str] = field(default_factory=dict)
    """The first frame's file of each prompt, for models that start from one; empty where prompts have none."""

    @property
    def digest(self) -> str:
        """Return a short hash of all of them."""
        text = "\n".join((*self.train, "", *self.tune, "", *self.heldout))
        return hashlib.sha256(text.encode()).hexdigest()[:10]


WORLDS: Mapping[str, str] = MappingProxyType({"world": "bench.embedded.world"})
"""Name of an embedded model's prompts -> module."""


def load_prompts(source: str) -> Prompts:
    """Return the prompts of `world`, or of a UTF-8 text file with one a line, split by hash 80 : 10 : 10.

    Raises:
        InputError: for a missing or unreadable file, or one with too few prompts for three sets.
    """
    if source in WORLDS:
        world = import_module(WORLDS[source])
        return Prompts(train=world.prompts("train"), tune=world.prompts("tune"), heldout=world.prompts("heldout"))
    path = Path(source)
    if not path.is_file():
        raise InputError(f"prompts={source!r}: no such file; give a text file with one prompt a line, or world")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"prompts={source!r} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    distinct = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    sets: dict[int, list[str]] = {}
    for prompt in distinct:
        sets.setdefault(hashlib.sha256(prompt.encode()).digest()[0] % 10, []).append(prompt)
    heldout, tune = sets.pop(0, []), sets.pop(1, [])
    train = [prompt for prompt in distinct if prompt not in {*heldout, *tune}]
    if not (train and tune and heldout):
        raise InputError(f"prompts={source!r}: {len(distinct)} distinct prompts are too few to split; give 40 or more")
    return Prompts(train=tuple(train), tune=tuple(tune), heldout=tuple(heldout))


def of_iteration(prompts: Sequence[str], seed: int, iteration: int, count: int) -> list[int]:
    """Return the positions of an iteration's prompts: every epoch is a keyed permutation of all of them."""
    first = iteration * count
    chosen: list[int] = []
    for at in range(first, first + count):
        epoch, place = divmod(at, len(prompts))
        chosen.append(int(keyed(seed, "prompts", epoch).permutation(len(prompts))[place]))
    return chosen


def of_run(prompts: Sequence[str], seed: int, iterations: int, count: int) -> list[int]:
    """Return the positions of all prompts that the first iterations see, in order of position."""
    return sorted({at for iteration in range(iterations) for at in of_iteration(prompts, seed, iteration, count)})


def evenly(prompts: Sequence[str], count: int) -> list[str]:
    """Return `count` of the prompts, evenly spread over their order; all of them if there are fewer."""
    count = min(count, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]
