"""The models that have a name. Importing this module imports no model library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """Where a model comes from and what it is used with by default."""

    family: str
    """The adapter, as module:class."""
    source: str
    """A local folder in diffusers' layout, or a hub id."""
    summary: str
    resolution: int
    """Height and width in pixels."""
    guidance: float
    preset: str
    """The preset when none is named."""
    prompts: str
    """`world`, or the kind of file `--set prompts=` needs."""
    rewards: tuple[str, ...]
    eval_rewards: tuple[str, ...]
    features: str
    """The scorer whose image features drift is measured in."""


FAMILIES: Mapping[str, str] = MappingProxyType({"FluxPipeline": "bench.models.flux:Flux"})
"""Pipeline class of a folder's model_index.json -> adapter."""

PATCH: Mapping[str, int] = MappingProxyType({"bench.models.flux:Flux": 2})
"""Adapter -> side of a token in pixels of its VAE's latent."""

MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        "tiny-flux": ModelEntry(
            family="bench.models.flux:Flux",
            source=str(files("bench.embedded") / "tiny-flux"),
            summary="embedded: 0.9 M parameters, 32x32 pictures of coloured shapes, runs on a laptop",
            resolution=32,
            guidance=3.5,
            preset="quick",
            prompts="world",
            rewards=("soft",),
            eval_rewards=("soft", "graded", "strict", "tiny-clip"),
            features="tiny-clip",
        ),
        "flux-dev": ModelEntry(
            family="bench.models.flux:Flux",
            source="black-forest-labs/FLUX.1-dev",
            summary="FLUX.1-dev, 12 B parameters, 720x720, for H200s (FLUX.1-dev non-commercial licence)",
            resolution=720,
            guidance=3.5,
            preset="paper",
            prompts="a text file, one prompt a line",
            rewards=(),
            eval_rewards=(),
            features="",
        ),
    }
)
