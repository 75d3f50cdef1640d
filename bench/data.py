"""Prompts: how they are split, and which an iteration sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Int

from bench.datasets import Files, located
from bench.noise import keyed
from bench.prompts import Rows, first_frames, read
from bench.registry import InputError

NO_IMAGES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many prompts were read, and what became of them: what was read is the sum of all else."""

    read: int
    empty: int
    duplicates: int
    """Also those of a training split that are in the test split."""
    train: int
    tune: int
    heldout: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Disjoint sets: for training, for choosing hyper-parameters, and held out."""

    train: tuple[str, ...]
    tune: tuple[str, ...]
    heldout: tuple[str, ...]
    counts: Counts
    images: Mapping[str, str] = field(default_factory=lambda: NO_IMAGES)
    """Prompt -> absolute path of its first frame, for models that animate an image; empty for a set without."""

    @property
    def digest(self) -> str:
        """Return a short hash of all of them, and of the contents of their images."""
        sets = (self.train, self.tune, self.heldout)
        text = "\n".join((*self.train, "", *self.tune, "", *self.heldout))
        if text.count("\n") != sum(map(len, sets)) + 1:  # some prompts have lines of their own
            text = json.dumps(sets)
        sha = hashlib.sha256(text.encode())
        for prompt in (prompt for prompts in sets for prompt in prompts if prompt in self.images):
            image = Path(self.images[prompt])
            sha.update(f"\n{hashlib.sha256(prompt.encode()).hexdigest()} {_contents(image, _stamp(image))}".encode())
        return sha.hexdigest()[:10]


WORLDS: Mapping[str, str] = MappingProxyType({"world": "bench.embedded.world", "moving": "bench.embedded.moving"})
"""Name of an embedded model's prompts -> module."""


def load_prompts(source: str, *, framed: bool = False) -> Prompts:
    """Return the prompts of a set, without empty ones and duplicates.

    Where a set has a train and a test split, the test split is held out, and what is left of the other is cut by hash
    into those to train on and to tune by, 90 : 10; all others are cut by hash, 80 : 10 : 10.

    Args:
        source: `world`; a UTF-8 text file with one a line; a .jsonl, .json, .csv or .parquet file; a folder with a
            train and a test file; or `hub:OWNER/NAME[@REVISION][:FILE]`, a dataset of the hub.
        framed: whether the model starts from images: else a column of them is one of those that nobody reads.

    Raises:
        InputError: for what is missing or damaged, holds no prompts, or too few for three sets.
    """
    if source in WORLDS:
        world = import_module(WORLDS[source])
        train, tune, heldout = world.prompts("train"), world.prompts("tune"), world.prompts("heldout")
        return _counted(train, tune, heldout, read=len(train) + len(tune) + len(heldout), empty=0, images=NO_IMAGES)
    files = located(source)
    return _loaded(source, files, tuple(_stamp(file.path) for file in (*files.train, *files.test)), framed)


@lru_cache(maxsize=4)
def _loaded(source: str, files: Files, stamps: tuple[tuple[int, int], ...], framed: bool) -> Prompts:
    """Return the prompts of files; a process that asks twice reads them once, unless their stamps have changed."""
    del stamps
    train, test = (
        [(file.path.parent, read(file.path, file.name)) for file in part] for part in (files.train, files.test)
    )
    everything = [text for _, rows in (*train, *test) for text in rows.texts]
    images = (_images([*train, *test]) if framed else {}) or NO_IMAGES
    sets = split(_distinct(train), _distinct(test) if files.test else None)
    if not all(sets):
        raise InputError(f"prompts={source!r}: {_too_few(sets, files)}")
    return _counted(*sets, read=len(everything), empty=everything.count(""), images=images)


@lru_cache(maxsize=1 << 16)
def _contents(path: Path, stamp: tuple[int, int]) -> str:
    """Return the hash of a file, taken once a process, unless its stamp has changed."""
    del stamp
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    there = path.stat()
    return there.st_size, there.st_mtime_ns


def _distinct(files: Sequence[tuple[Path, Rows]]) -> list[str]:
    """Return the prompts of files, each once, in their order."""
    return [text for text in dict.fromkeys(text for _, rows in files for text in rows.texts) if text]


def split(
    prompts: Sequence[str], test: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return distinct prompts as three sets: to train on, to tune by, and held out.

    A prompt's set hangs on the prompt alone: neither on its place nor on what else is there.

    Args:
        prompts: distinct ones; those that are in `test` too are held out.
        test: what is held out; None to hold out a tenth of the prompts.
    """
    part = {prompt: hashlib.sha256(prompt.encode()).digest()[0] % 10 for prompt in prompts}
    if test is None:
        test = [prompt for prompt in prompts if part[prompt] == 0]
    held = frozenset(test)
    rest = [prompt for prompt in prompts if prompt not in held]
    tune = tuple(prompt for prompt in rest if part[prompt] == 1)
    return tuple(prompt for prompt in rest if part[prompt] != 1), tune, tuple(test)


def _too_few(sets: tuple[tuple[str, ...], ...], files: Files) -> str:
    """Return what is wrong with sets of which one is empty."""
    if files.test and not sets[2]:
        return "its test split has no prompts; give another set"
    count = sum(map(len, sets[:2] if files.test else sets))
    what = "1 distinct prompt is" if count == 1 else f"{count} distinct prompts are"
    where = "beside the test split's " if files.test else ""
    return f"{where}{what} too few to split; give 40 or more"


def _counted(
    train: tuple[str, ...],
    tune: tuple[str, ...],
    heldout: tuple[str, ...],
    *,
    read: int,
    empty: int,
    images: Mapping[str, str],
) -> Prompts:
    kept = len(train) + len(tune) + len(heldout)
    counts = Counts(
        read=read,
        empty=empty,
        duplicates=read - empty - kept,
        train=len(train),
        tune=len(tune),
        heldout=len(heldout),
    )
    return Prompts(train=train, tune=tune, heldout=heldout, counts=counts, images=images)


def _images(files: Sequence[tuple[Path, Rows]]) -> Mapping[str, str]:
    """Return the image of each prompt that has one.

    Raises:
        InputError: if one has two.
    """
    found: dict[str, Path] = {}
    for folder, rows in files:
        for index, path in first_frames(rows, folder):
            text = rows.texts[index]
            if found.setdefault(text, path).resolve() != path.resolve():
                raise InputError(
                    f"{rows.place(index)}: this prompt has another image, {found[text].name!r}, in a row before; "
                    "a prompt has one: tell the two apart in words"
                )
    return MappingProxyType({text: str(path) for text, path in found.items()})


def of_iteration(prompts: Sequence[str], seed: int, iteration: int, count: int) -> list[int]:
    """Return the positions of an iteration's prompts: every epoch is a keyed permutation of all of them."""
    places = (divmod(at, len(prompts)) for at in range(iteration * count, (iteration + 1) * count))
    return [int(_order(seed, epoch, len(prompts))[place]) for epoch, place in places]


@lru_cache(maxsize=16)
def _order(seed: int, epoch: int, count: int) -> Int[np.ndarray, " prompt"]:
    """Return the order of an epoch's prompts, which all its iterations ask for."""
    order = keyed(seed, "prompts", epoch).permutation(count)
    order.flags.writeable = False
    return order


def of_run(prompts: Sequence[str], seed: int, iterations: int, count: int) -> list[int]:
    """Return the positions of all prompts that the first iterations see, in order of position."""
    return sorted({at for iteration in range(iterations) for at in of_iteration(prompts, seed, iteration, count)})


def evenly(prompts: Sequence[str], count: int) -> list[str]:
    """Return `count` of the prompts, evenly spread over their order; all of them if there are fewer."""
    count = min(count, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]
