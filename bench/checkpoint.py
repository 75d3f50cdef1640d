"""Checkpoints: written under a temporary name, then renamed; the newest complete one wins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from bench.contract import Memory
from bench.processes import like, local, whole
from bench.update import Trainer
from bench.writing import writing

KEEP = 2


def save(folder: Path, trainer: Trainer, iterations: int, memory: Memory) -> None:
    """Write the state after `iterations`, and drop all but the newest two.

    Tensors are written whole, by the first process, so that any number of processes can go on from them.
    """
    first = trainer.processes.first

    def kept(value: Any) -> Any:
        full = whole(value)  # all processes take part, one of them keeps it
        return full if first else None

    state = {
        "iterations": iterations,
        "optimizer_steps": trainer.optimizer_steps,
        "parameters": [kept(p.detach()) for p in trainer.parameters()],
        "optimizer": tree_map(kept, trainer.optimizer.state_dict()),
        "ema": [kept(average) for average in averages(trainer)],
        "named": {n: (tree_map(kept, policy.weights), policy.is_live) for n, policy in trainer.named.items()},
        "memory": dict(memory),
    }
    if first:
        write(folder, iterations, state)
    trainer.processes.gathered(None)  # what waits for a long write waits here, and not in a collective with a timeout


def averages(trainer: Trainer) -> Iterator[torch.Tensor]:
    """Yield the moving average of every parameter, held as the parameter is: whole, or in parts."""
    for parameter, average in zip(trainer.parameters(), trainer.ema, strict=True) if trainer.ema else ():
        if isinstance(parameter, DTensor):
            shaped = parameter.detach().clone()
            local(shaped).copy_(average)
            yield shaped
        else:
            yield average


def write(folder: Path, iterations: int, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, and drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    part, final = folder / f"{iterations:06d}.part", folder / f"{iterations:06d}.pt"
    with writing(part):
        with part.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(final)
    for old in sorted(folder.glob("*.pt"))[:-KEEP]:
        old.unlink()


@torch.no_grad()
def restore(folder: Path, trainer: Trainer) -> tuple[int, Memory]:
    """Load the newest checkpoint into the trainer; return its iterations and memory, (0, {}) if there is none.

    Raises:
        RuntimeError: if the checkpoint cannot be read, with the way out.
    """
    complete = sorted(folder.glob("*.pt"))
    if not complete:
        return 0, {}
    newest = complete[-1]
    try:
        state = _read(newest)
    except (RuntimeError, EOFError, OSError, ValueError, UnpicklingError, BadZipFile) as error:
        older = "the one before is used" if len(complete) > 1 else "the cell starts anew"
        raise RuntimeError(f"{newest} cannot be read ({type(error).__name__}); delete it and {older}") from error
    parameters = trainer.parameters()
    for parameter, value in zip(parameters, state["parameters"], strict=True):
        parameter.copy_(like(value, parameter))
    for number, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            if value.shape == parameters[number].shape:
                moments[name] = like(value, parameters[number])
    trainer.optimizer.load_state_dict(state["optimizer"])
    for average, value, parameter in zip(trainer.ema, state["ema"], parameters, strict=True) if trainer.ema else ():
        average.copy_(local(like(value, parameter)))
    for name, policy in trainer.named.items():
        weights, policy.is_live = state["named"][name]
        policy.weights = weights and [like(w, parameter) for w, parameter in zip(weights, parameters, strict=True)]
    trainer.optimizer_steps = state["optimizer_steps"]
    return state["iterations"], state["memory"]


def _read(path: Path) -> dict[str, Any]:
    # Torch writes checksums and does not look at them: weights with a flipped bit would be loaded.
    with ZipFile(path) as parts:
        if (damaged := parts.testzip()) is not None:
            raise BadZipFile(f"{damaged} is not what was written")
    return torch.load(path, map_location="cpu", weights_only=True)
