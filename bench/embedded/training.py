"""What the training stages share: a resumable loop, its checkpoint, its log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bench.embedded import world


@runtime_checkable
class Stateful(Protocol):
    """A module or an optimiser: what a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore the state."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """One stage: what is optimised, by what loss, for how long."""

    name: str
    steps: int
    parts: Mapping[str, Stateful]
    """What the checkpoint holds; the optimisers are added to it."""
    optimisers: Sequence[torch.optim.Optimizer]
    loss: Callable[[int], Tensor]
    """The loss of step n; draws everything from generators seeded with n, so that a restart changes nothing."""
    after: Callable[[int], None]
    """Called when step n was made (averages of weights)."""
    check: Callable[[], Mapping[str, float]]
    """Progress worth a line in the log."""
    check_every: int
    save_every: int = 250


def seeded(*keys: int) -> tuple[np.random.Generator, torch.Generator]:
    """Return generators that depend on `keys` alone."""
    rng = np.random.default_rng(keys)
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def stratified_sigmas(count: int, centre: float, noise: torch.Generator) -> Tensor:
    """Return one logit-normal sigma a sample, stratified over the batch so that its loss varies less."""
    strata = (torch.arange(count) + torch.rand(count, generator=noise)) / count
    return torch.sigmoid(centre + torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)))


def rate(step: int, steps: int, *, warm: int = 100, last: float = 0.03) -> float:
    """Return the factor on the learning rate: a linear warm-up, then half a cosine down to `last`."""
    if step < warm:
        return (step + 1) / warm
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def muon_and_adamw(module: torch.nn.Module, *, inside: str) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, whose names contain `inside`, and AdamW for everything else."""
    matrix = {name: inside in name and parameter.ndim == 2 for name, parameter in module.named_parameters()}
    inner = [parameter for name, parameter in module.named_parameters() if matrix[name]]
    outer = [parameter for name, parameter in module.named_parameters() if not matrix[name]]
    return _muon_and_adamw(inner, outer)


def muon_of_kernels(module: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the convolutions' kernels, as matrices of one row an output channel, and AdamW for the rest."""
    kernels = [parameter for parameter in module.parameters() if parameter.ndim > 2 and parameter.shape[0] > 1]
    rest = [parameter for parameter in module.parameters() if parameter.ndim <= 2 or parameter.shape[0] == 1]
    return _muon_and_adamw([_as_matrix(kernel) for kernel in kernels], rest)


def _muon_and_adamw(
    matrices: Sequence[torch.nn.Parameter], rest: Sequence[torch.nn.Parameter]
) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def _as_matrix(kernel: torch.nn.Parameter) -> torch.nn.Parameter:
    """Return a matrix that shares the kernel's memory and is handed its gradient."""
    matrix = torch.nn.Parameter(kernel.detach().flatten(1))

    def hand_over(parameter: Tensor) -> None:
        assert parameter.grad is not None
        matrix.grad, parameter.grad = parameter.grad.flatten(1), None

    kernel.register_post_accumulate_grad_hook(hand_over)
    return matrix


@torch.no_grad()
def follow(average: torch.nn.Module, module: torch.nn.Module, step: int) -> None:
    """Move the average of the weights towards `module`; early steps count for little in the end."""
    decay = min(0.999, (1 + step) / (10 + step))
    for mean, value in zip(average.parameters(), module.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


def _save(path: Path, training: Training, step: int, seconds: float) -> None:
    state = {name: part.state_dict() for name, part in training.parts.items()}
    optimisers = [optimiser.state_dict() for optimiser in training.optimisers]
    new = path.with_suffix(".new")
    torch.save({"parts": state, "optimisers": optimisers, "step": step, "seconds": seconds}, new)
    new.replace(path)  # a checkpoint is whole or absent, however the run ends


def _load(path: Path, training: Training) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path, weights_only=True)
    for name, part in training.parts.items():
        part.load_state_dict(saved["parts"][name])
    for optimiser, state in zip(training.optimisers, saved["optimisers"], strict=True):
        optimiser.load_state_dict(state)
    return saved["step"], saved["seconds"]


def train(training: Training, work: Path) -> float:
    """Train from the newest checkpoint in `work` to the end and return the seconds spent in all."""
    path = work / f"{training.name}.pt"
    done, before = _load(path, training)
    base = [[group["lr"] for group in optimiser.param_groups] for optimiser in training.optimisers]
    if done:  # a restored group holds the decayed rate; the undecayed one is kept beside it
        base = [[group["initial_lr"] for group in optimiser.param_groups] for optimiser in training.optimisers]
    start, seconds, running = time.perf_counter(), before, float("nan")
    for step in range(done, training.steps):
        for optimiser, rates in zip(training.optimisers, base, strict=True):
            for group, initial in zip(optimiser.param_groups, rates, strict=True):
                group["initial_lr"], group["lr"] = initial, initial * rate(step, training.steps)
            optimiser.zero_grad(set_to_none=True)
        loss = training.loss(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            [p for o in training.optimisers for g in o.param_groups for p in g["params"]], 1.0
        )
        for optimiser in training.optimisers:
            optimiser.step()
        training.after(step)
        running = float(loss.detach()) if math.isnan(running) else 0.98 * running + 0.02 * float(loss.detach())
        seconds = before + time.perf_counter() - start
        if (step + 1) % 100 == 0:
            print(
                f"{training.name} step {step + 1}/{training.steps} loss {running:.4f} seconds {seconds:.0f}", flush=True
            )
        if (step + 1) % training.save_every == 0 or step + 1 == training.steps:
            _save(path, training, step + 1, seconds)
        if (step + 1) % training.check_every == 0 or step + 1 == training.steps:
            line = " ".join(f"{name} {value:.4f}" for name, value in training.check().items())
            print(f"{training.name} step {step + 1}: {line}", flush=True)
    return seconds


def draw_pictures(prompts: Sequence[str], rng: np.random.Generator, *, web: float) -> list[world.Picture]:
    """Return one picture a prompt, a share `web` of them as a careless crawl has them."""
    pictures = [world.draw(world.parse(prompt), rng) for prompt in prompts]
    return [world.corrupt(picture, rng) if rng.random() < web else picture for picture in pictures]


WEIGHTS: Mapping[str, float] = {"single": 1.0, "size": 1.0, "place": 1.0, "count": 2.0, "two": 2.0, "relation": 2.0}
"""How often a category is drawn in training; the hard ones more often."""


def choose_prompts(count: int, rng: np.random.Generator) -> list[str]:
    """Return base prompts drawn with the weights of their categories."""
    groups: dict[str, list[str]] = {category: [] for category in WEIGHTS}
    for prompt in world.prompts("base"):
        groups[world.parse(prompt).category].append(prompt)
    share = np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())
    picks = rng.choice(len(share), size=count, p=share)
    columns = list(groups.values())
    return [columns[pick][int(rng.integers(len(columns[pick])))] for pick in picks]
