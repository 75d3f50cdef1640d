"""Checkpoints: written under a temporary name, then renamed; the newest complete one wins."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from bench.contract import Memory
from bench.record import writing
from bench.update import Trainer

KEEP = 2


def save(folder: Path, trainer: Trainer, iterations: int, memory: Memory) -> None:
    """Write the state after `iterations`, and drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    part, final = folder / f"{iterations:06d}.part", folder / f"{iterations:06d}.pt"
    state = {
        "iterations": iterations,
        "optimizer_steps": trainer.optimizer_steps,
        "parameters": [p.detach() for p in trainer.parameters()],
        "optimizer": trainer.optimizer.state_dict(),
        "ema": trainer.ema,
        "named": {name: (policy.weights, policy.is_live) for name, policy in trainer.named.items()},
        "memory": dict(memory),
    }
    with writing(part):
        with part.open("wb") as file:
            torch.save(state, file)
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
    for parameter, value in zip(trainer.parameters(), state["parameters"], strict=True):
        parameter.copy_(value)
    trainer.optimizer.load_state_dict(state["optimizer"])
    for average, value in zip(trainer.ema, state["ema"], strict=True):
        average.copy_(value)
    for name, policy in trainer.named.items():
        weights, policy.is_live = state["named"][name]
        devices = [parameter.device for parameter in trainer.parameters()]
        policy.weights = weights and [w.to(device) for w, device in zip(weights, devices, strict=True)]
    trainer.optimizer_steps = state["optimizer_steps"]
    return state["iterations"], state["memory"]


def _read(path: Path) -> dict[str, Any]:
    # Torch writes checksums and does not look at them: weights with a flipped bit would be loaded.
    with ZipFile(path) as parts:
        if (damaged := parts.testzip()) is not None:
            raise BadZipFile(f"{damaged} is not what was written")
    return torch.load(path, map_location="cpu", weights_only=True)
