"""The families as their tests see them: tiny checkpoints, adapters, and diffusers' own pipelines beside them."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.models.catalog import FAMILIES
from bench.models.tiny import T5_LENGTH, WAN_LENGTH
from bench.noise import Noise
from bench.plan import Plan, branching
from bench.policy import Build, Condition, Policy, encoded
from bench.schedule import sigma_grid

STEPS, HEIGHT, WIDTH, SHIFT = 4, 32, 48, 3.0
PROMPTS = ("a red circle", "Ünïcödé, two blue squares", 'a "quoted" ring 🎉')
CPU = torch.device("cpu")
PLAIN = np.linspace(1.0, 1.0 / STEPS, STEPS)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family: how its tiny checkpoint is loaded by us and by diffusers."""

    fixture: str
    """Of tests/conftest.py: the checkpoint's folder."""
    pipeline: str
    """Class in diffusers, and key of `FAMILIES`."""
    guidance: float
    """1 or below is unguided, where guidance is classifier-free."""
    frames: int = 1
    told: Callable[[Any, str], tuple[Tensor, ...]]
    """The pipeline, a prompt -> a row as the adapter's encoder makes it, by the pipeline's own means."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """What the pipeline is called with besides."""
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"plain": {}})
    """Name of a grid of ours -> what the pipeline is called with to sample on it."""
    lora: str
    """How the names of all layers with adapters end."""

    def policy(self, folder: Path, **how: Any) -> Any:
        module, _, name = FAMILIES[self.pipeline].adapter.partition(":")
        return getattr(importlib.import_module(module), name)(folder, self.build(**how))

    def build(self, **how: Any) -> Build:
        size = {"height": HEIGHT, "width": WIDTH, "frames": self.frames, "guidance": self.guidance, "device": CPU}
        return Build(**(size | how))

    def load(self, folder: Path, **parts: Any) -> Any:
        """Return diffusers' pipeline, with the sampler that we sample as, and with these parts."""
        import diffusers

        pipe = getattr(diffusers, self.pipeline).from_pretrained(folder, **parts)
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT)  # pyright: ignore[reportPrivateImportUsage]
        pipe.set_progress_bar_config(disable=True)
        return pipe


def flux_told(pipe: Any, prompt: str) -> tuple[Tensor, ...]:
    tokens, pooled, _ = pipe.encode_prompt([prompt], None, max_sequence_length=T5_LENGTH)
    return pooled[0], tokens[0]


def sd3_told(pipe: Any, prompt: str) -> tuple[Tensor, ...]:
    tokens, _, pooled, _ = pipe.encode_prompt([prompt], None, None, max_sequence_length=T5_LENGTH)
    return pooled[0], tokens[0]


def wan_told(pipe: Any, prompt: str) -> tuple[Tensor, ...]:
    tokens, _ = pipe.encode_prompt([prompt], do_classifier_free_guidance=False, max_sequence_length=WAN_LENGTH)
    return (tokens[0],)


CASES = {
    "flux": Case(
        fixture="random_flux",
        pipeline="FluxPipeline",
        guidance=3.5,
        told=flux_told,
        call={"max_sequence_length": T5_LENGTH},
        lora=r"\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$",
    ),
    "sd3": Case(
        fixture="random_sd3",
        pipeline="StableDiffusion3Pipeline",
        guidance=4.5,
        told=sd3_told,
        call={"max_sequence_length": T5_LENGTH},
        grids={"double-shift": {}, "plain": {"sigmas": PLAIN}},
        lora=r"\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$",
    ),
    "wan": Case(
        fixture="random_wan",
        pipeline="WanPipeline",
        guidance=5.0,
        frames=5,
        told=wan_told,
        grids={"double-shift": {}},
        lora=r"\.attn[12]\.(to_[qkv]|to_out\.0)$",
    ),
}
GUIDED = [name for name in CASES if name != "flux"]
"""Families whose guidance is classifier-free."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a pipeline's sampler was handed."""

    sigma: Tensor
    latent: Tensor
    velocity: Tensor


@dataclass(frozen=True, kw_only=True)
class Stock:
    """A run of diffusers' own pipeline."""

    steps: tuple[Step, ...]
    images: Tensor


def ode(grid: str) -> Plan:
    """Return the plan that samples a path a prompt without noise."""
    sigmas = sigma_grid(STEPS, SHIFT, grid)
    return branching(sigmas, slots=len(PROMPTS), fanout=[1] * STEPS, noise_level=[0.0] * STEPS, kernel="ode")


def sampled_by(pipe: Any, case: Case, plan: Plan, shape: tuple[int, ...], **call: Any) -> Stock:
    """Return what the pipeline makes of our root noise."""
    steps, step = [], pipe.scheduler.step

    def seen(output: Tensor, timestep: Tensor, sample: Tensor, **how: Any) -> Any:
        steps.append(Step(sigma=pipe.scheduler.sigmas[len(steps)], latent=sample, velocity=output))
        return step(output, timestep, sample, **how)

    pipe.scheduler.step = seen
    roots = torch.from_numpy(Noise(seed=0, iteration=0).roots(plan.tree, plan.coupling, shape))
    many = {"num_frames": case.frames} if case.frames > 1 else {}
    size = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS, "guidance_scale": case.guidance, **many}
    images = pipe(
        prompt=list(PROMPTS), latents=roots, output_type="pt", return_dict=False, **{**size, **case.call, **call}
    )[0]
    del pipe.scheduler.step
    return Stock(steps=tuple(steps), images=images)


def point(policy: Policy, prompts: Sequence[str] = PROMPTS) -> tuple[Tensor, Tensor, Condition]:
    """Return arguments of a velocity."""
    plan = ode("plain")
    x = Noise(seed=1, iteration=0).roots(plan.tree, plan.coupling, policy.latent_shape)[: len(prompts)]
    return torch.from_numpy(x), torch.linspace(0.9, 0.3, len(prompts)), encoded(policy, prompts)


def copied(folder: Path, target: Path, part: str, **changes: Any) -> Path:
    """Return a copy of a pipeline whose part is configured otherwise."""
    shutil.copytree(folder, target)
    file = next(path for path in (target / part).iterdir() if path.name in ("config.json", "scheduler_config.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return target
