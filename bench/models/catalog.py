"""The families and models that have a name. Importing this module imports no model library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An architecture: its adapter, and what is known of its models before anything is imported."""

    adapter: str
    """As module:class; the class is called with a folder and a `bench.policy.Build`."""
    media: Literal["image", "video"] = "image"
    patch: int = 1
    """Side of a token, in pixels of the VAE's latent."""
    first_frame: bool = False
    """Whether a video starts from an image, which prompts then come with."""
    transformer: str = ""
    """The class of the trained part in diffusers, where a folder's configuration must name it."""
    classifier_free: bool = False
    """Whether guidance is classifier-free: above 1, a velocity takes two forwards."""

    def calls(self, guidance: float) -> int:
        """Return the forwards that one velocity takes."""
        return 2 if self.classifier_free and guidance > 1 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """Where a model comes from and what it is used with by default."""

    family: str
    """The pipeline's class, as in model_index.json; a key of `FAMILIES`."""
    source: str
    """A local folder in diffusers' layout, or a hub id."""
    summary: str
    resolution: int | tuple[int, int]
    """Height and width, pixels."""
    frames: int = 1
    guidance: float
    preset: str
    """The preset when none is named."""
    prompts: str
    """The embedded world of that name, or the kind of file `--prompts` needs."""
    rewards: tuple[str, ...] = ()
    eval_rewards: tuple[str, ...] = ()
    features: str = ""
    """The scorer whose image features drift is measured in."""
    means: Mapping[str, Any] = field(default_factory=dict)
    """Shared keys that fit the model into memory: precision, micro_batch and the like."""
    licence: str = ""
    restrictions: str = ""
    """What stands between a reader and its files or their use: a gate, a kind of use that is not allowed."""
    size: int = 0
    """Of the files that a pipeline of it needs, bytes, about; 0 where it is not known."""


_WAN = Family(
    adapter="bench.models.wan:Wan",
    transformer="WanTransformer3DModel",
    patch=2,
    media="video",
    classifier_free=True,
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "FluxPipeline": Family(adapter="bench.models.flux:Flux", transformer="FluxTransformer2DModel", patch=2),
        "StableDiffusion3Pipeline": Family(
            adapter="bench.models.sd3:Sd3", transformer="SD3Transformer2DModel", patch=2, classifier_free=True
        ),
        "WanPipeline": _WAN,
        "WanImageToVideoPipeline": replace(_WAN, first_frame=True),
    }
)
"""Pipeline class of a folder's model_index.json -> family."""

IMAGE_REWARDS, IMAGE_JUDGES = ("hpsv2.1",), ("pickscore", "imagereward")
"""What published comparisons on FLUX train on, and what they hold out."""
VIDEO_REWARDS = ("videoalign(dimension=vq)", "videoalign(dimension=mq)")
VIDEO_JUDGES = ("videoalign(dimension=ta)",)
"""As DanceGRPO trains Wan and HunyuanVideo; text alignment is held out."""

_GPU = {"precision": "bf16", "frozen": "bf16", "gradient_checkpointing": True, "micro_batch": 4}

MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        "tiny-flux": ModelEntry(
            family="FluxPipeline",
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
        "tiny-wan": ModelEntry(
            family="WanPipeline",
            source=str(files("bench.embedded") / "tiny-wan"),
            summary="embedded: 0.6 M parameters, videos of moving shapes, 9 frames of 32x32, runs on a laptop",
            resolution=32,
            frames=9,
            guidance=1.0,
            preset="quick-video",
            prompts="moving",
            rewards=("motion",),
            eval_rewards=("motion", "moving-caption", "moving-strict"),
            features="motion",
        ),
        "flux-dev": ModelEntry(
            family="FluxPipeline",
            source="black-forest-labs/FLUX.1-dev",
            summary="FLUX.1-dev, 12 B parameters, 720x720, for H200s (FLUX.1-dev non-commercial licence)",
            resolution=720,
            guidance=3.5,
            preset="lora",
            prompts="a set of prompts",
            rewards=IMAGE_REWARDS,
            eval_rewards=IMAGE_JUDGES,
            means=_GPU,
            licence="FLUX.1 [dev] non-commercial",
            restrictions="gated: accept the licence first; no commercial use",
            size=33_750_000_000,
        ),
        "flux-schnell": ModelEntry(
            family="FluxPipeline",
            source="black-forest-labs/FLUX.1-schnell",
            summary="FLUX.1-schnell, 12 B parameters, distilled to few steps (Apache 2.0)",
            resolution=720,
            guidance=0.0,
            preset="lora",
            prompts="a set of prompts",
            rewards=IMAGE_REWARDS,
            eval_rewards=IMAGE_JUDGES,
            means=_GPU,
            licence="Apache 2.0",
            size=33_730_000_000,
        ),
        "sd3.5-medium": ModelEntry(
            family="StableDiffusion3Pipeline",
            source="stabilityai/stable-diffusion-3.5-medium",
            summary="Stable Diffusion 3.5 Medium, 2.2 B parameters, 512x512, guided (Stability community licence)",
            resolution=512,
            guidance=4.5,
            preset="lora",
            prompts="a set of prompts",
            rewards=IMAGE_REWARDS,
            eval_rewards=IMAGE_JUDGES,
            means=_GPU | {"micro_batch": 8},
            licence="Stability AI community",
            restrictions="gated: accept the licence first; free below 1 M USD of yearly revenue",
            size=16_280_000_000,
        ),
        "wan2.1-t2v-1.3b": ModelEntry(
            family="WanPipeline",
            source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            summary="Wan2.1 text to video, 1.3 B parameters, 480x832, 33 frames, guided (Apache 2.0)",
            resolution=(480, 832),
            frames=33,
            guidance=5.0,
            preset="lora",
            prompts="a set of prompts",
            rewards=VIDEO_REWARDS,
            eval_rewards=VIDEO_JUDGES,
            means=_GPU | {"micro_batch": 1},
            licence="Apache 2.0",
            size=28_930_000_000,
        ),
        "wan2.1-i2v-14b": ModelEntry(
            family="WanImageToVideoPipeline",
            source="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            summary="Wan2.1 image to video, 14 B parameters, 480x832, 33 frames, guided (Apache 2.0)",
            resolution=(480, 832),
            frames=33,
            guidance=5.0,
            preset="lora",
            prompts="a set of prompts with images",
            rewards=VIDEO_REWARDS,
            eval_rewards=VIDEO_JUDGES,
            means=_GPU | {"micro_batch": 1},
            licence="Apache 2.0",
            size=90_100_000_000,
        ),
    }
)
