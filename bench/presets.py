"""The settings that have a name. `quick` and `smoke` are tuned for the embedded model, `paper` is the papers'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Shared keys, and settings of single algorithms, that differ from the defaults of `bench.config.Shared`."""

    summary: str
    shared: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


# Measured on the embedded model: what an image shows is decided in the first steps; later steps carry no signal.
_EARLY = {
    "kernel": "dance_sde",
    "eta": 1.0,
    "clip": 1e-3,
    "train_steps": (0, 1, 2, 3),
    "lr": 1e-4,
    "betas": (0.9, 0.99),
}
_EARLY_SPLITS = {family: {"splits": (0, 1, 2, 3)} for family in ("branch", "branchofficial")}

_PAPER = {
    "steps": 20,
    "prompts_per_iteration": 32,
    "iterations": 300,
    "updates_per_iteration": 4,
    "lr": 1e-5,
    "clip": 1e-4,
    "eval_steps": 50,
    "checkpoint_every": 25,
}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "smoke": Preset(
            summary="seconds: does everything run? too short to show a gain",
            shared=_EARLY
            | {"steps": 10, "prompts_per_iteration": 2, "iterations": 4, "eval_prompts": 24, "eval_samples": 1}
            | {"eval_steps": 8, "checkpoint_every": 2},
            arms=_EARLY_SPLITS,
        ),
        "quick": Preset(
            summary="minutes on two CPU cores: three arms of the paper gain visibly on the embedded model",
            shared=_EARLY | {"steps": 10, "prompts_per_iteration": 8, "iterations": 30, "checkpoint_every": 10},
            arms=_EARLY_SPLITS,
        ),
        "smoke-video": Preset(
            summary="seconds: does everything run on videos? too short to show a gain",
            shared=_EARLY
            | {
                "lr": 5e-5,
                "steps": 8,
                "prompts_per_iteration": 2,
                "iterations": 2,
                "eval_prompts": 8,
                "eval_samples": 1,
            }
            | {"eval_steps": 6, "checkpoint_every": 2},
            arms=_EARLY_SPLITS,
        ),
        "quick-video": Preset(
            summary="minutes on two CPU cores: three arms of the paper gain visibly on the embedded video model",
            shared=_EARLY
            | {"lr": 5e-5, "steps": 10, "prompts_per_iteration": 8, "iterations": 20, "checkpoint_every": 10}
            | {"eval_prompts": 80, "eval_samples": 1, "eval_steps": 12},
            arms=_EARLY_SPLITS,
        ),
        "full": Preset(
            summary="half an hour on two CPU cores: three seeds, 150 iterations, the paper's splits",
            shared=_EARLY
            | {"steps": 16, "prompts_per_iteration": 8, "iterations": 150, "checkpoint_every": 25}
            | {"train_steps": None},
            seeds=(0, 1, 2),
        ),
        "paper": Preset(
            summary="the BranchGRPO paper's setting: 20 steps, 16 images a prompt, each algorithm's own SDE",
            shared=_PAPER,
        ),
        "lora": Preset(
            summary="the paper's setting with adapters of rank 64: a 12 B model fits one GPU of 80 GB",
            shared=_PAPER | {"lora_rank": 64, "lora_alpha": 128.0, "lr": 1e-4},
        ),
    }
)
