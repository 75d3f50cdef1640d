"""How much memory of a GPU a run takes, estimated from configurations before anything is fetched or computed.

Bytes of a phase are of what lives in it at once:

    state     weights; of what is trained, fp32: optimiser moments 8 a parameter, the moving average 4, every copy of
              `old`, `reference` or `ema` 4
    update    state, gradients 4, a bf16 copy 2 a parameter where fp32 weights compute in bf16, activations
    rollout   state, that copy, the activations of one block, latents
    decode    state, latents, the VAE's activations
    encode    the whole model, VAE, text and image encoders
    evaluate  the whole model, VAE, and the larger of a forward's activations and the VAE's

Activations of a row are `tokens x width x bytes x (blocks x kept)`, with `kept` the numbers a token and channel that
one block keeps for its backward pass; with gradient checkpointing `tokens x width x bytes x (blocks + kept)`: the
input of every block, and one block computed again. A call has `micro_batch` rows, twice as many under guidance by a
second forward. Attention is taken to keep no matrix of scores. FSDP2 divides the state of the model by the processes,
and adds two gathered blocks; DDP adds buckets of 4 a trained parameter. Scorers' weights are there in every phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.config import Shared
from bench.models.catalog import Family
from bench.models.sizes import Sizes
from bench.models.source import vae_factors

KEPT = {"FluxTransformer2DModel": 29.0, "SD3Transformer2DModel": 38.0, "WanTransformer3DModel": 50.0}
"""Numbers that one block keeps, a token and channel, by architecture: counted on the published configurations."""
KEPT_ELSEWHERE = 40.0
TEXT = {"FluxTransformer2DModel": 512, "SD3Transformer2DModel": 333, "WanTransformer3DModel": 0}
"""Tokens of the text in the same sequence as the image's."""
DECODED = 7
"""Tensors of the widest level's channels, at full size, that a VAE's last block holds at once."""
CACHED_FRAMES = 5
"""Further such tensors, a quarter of a frame each, that a causal VAE keeps of frames before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by phase."""

    phases: Mapping[str, float]
    trained: int
    """Parameters."""

    @property
    def peak(self) -> float:
        """Return the bytes of the largest phase."""
        return max(self.phases.values())


def estimate(
    sizes: Sizes,
    family: Family,
    shared: Shared,
    *,
    policies: int = 0,
    processes: int = 1,
    parallel: str = "ddp",
    scorers: float = 0.0,
) -> Memory:
    """Return how much memory a process takes.

    Args:
        sizes: of the model.
        family: of it.
        shared: the suite's keys.
        policies: copies of the weights that the algorithm keeps beside the live ones.
        processes: that share a cell.
        parallel: ddp or fsdp2.
        scorers: bytes of their weights, which stay where images are.
    """
    of_model = 2 if shared.lora_rank and shared.frozen == "bf16" else 4
    frozen = 2 if shared.frozen == "bf16" else 4
    adapters = shared.lora_rank * sizes.projections
    trained = adapters or sizes.model
    shards = processes if parallel == "fsdp2" else 1
    weights = sizes.model * of_model + adapters * 4
    follows = 8 + 4 * policies + (4 if shared.ema and shared.ema_device == "model" else 0)
    blocks, width = _blocks(sizes.config), _width(sizes.config)
    gathered = 2 * weights / max(blocks, 1) if shards > 1 else 0.0
    buckets = 4 * trained if processes > 1 and shards == 1 else 0
    vae = sizes.vae * frozen
    state = (weights + follows * trained) / shards + gathered + vae
    casts = 2 * sizes.model / shards if shared.precision == "bf16" and of_model == 4 else 0.0

    rows = shared.micro_batch * family.calls(shared.guidance)
    number = 2 if of_model == 2 else 3 if shared.precision == "bf16" else 4  # autocast mixes both
    kept = KEPT.get(sizes.config.get("_class_name", ""), KEPT_ELSEWHERE)
    unit = rows * tokens(sizes, family, shared) * width * number
    activations = unit * (blocks + kept if shared.gradient_checkpointing else blocks * kept)
    forward = unit * kept
    judged = forward / number * (2 if of_model == 2 else 4)
    images = decoding(sizes.vae_config, family, shared) * frozen
    latents = 4.0 * _latents(sizes, shared) / processes
    phases = {
        "encode": float(weights + vae + sizes.encoders * frozen),
        "evaluate": weights + vae + max(judged, images),
        "rollout": state + casts + latents + forward,
        "decode": state + latents + images,
        "update": state + casts + latents + 4 * trained / shards + buckets + activations,
    }
    return Memory(trained=trained, phases={name: size + scorers for name, size in phases.items()})


def tokens(sizes: Sizes, family: Family, shared: Shared) -> int:
    """Return the length of the sequence that a row of the model is: its image's tokens, and the text's beside them."""
    space, time = vae_factors(sizes.vae_config)
    side = space * family.patch
    of_image = (shared.height // side) * (shared.width // side) * ((shared.frames - 1) // time + 1)
    return of_image + TEXT.get(sizes.config.get("_class_name", ""), 0)


def decoding(vae: Mapping[str, Any], family: Family, shared: Shared) -> float:
    """Return the numbers that the VAE holds at once: of `micro_batch` images, or of its videos' newest frames."""
    pixels = shared.height * shared.width
    if family.media == "video":
        _, time = vae_factors(vae)
        held = pixels * vae.get("base_dim", 96) * (DECODED + CACHED_FRAMES / 4) * time + 3 * pixels * shared.frames
        return shared.micro_batch * held
    return float(shared.micro_batch * pixels) * min(vae.get("block_out_channels", [128])) * DECODED


def _latents(sizes: Sizes, shared: Shared) -> float:
    """Return the numbers of an iteration's latents that are kept: at most two more levels than are trained."""
    space, time = vae_factors(sizes.vae_config)
    channels = sizes.vae_config.get("latent_channels", sizes.vae_config.get("z_dim", 16))
    size = channels * (shared.height // space) * (shared.width // space) * ((shared.frames - 1) // time + 1)
    levels = len(shared.train_steps or range(shared.steps - 1)) + 2
    return float(shared.prompts_per_iteration * shared.group_size * levels * size)


def _blocks(config: Mapping[str, Any]) -> int:
    return config.get("num_layers", 0) + config.get("num_single_layers", 0)


def _width(config: Mapping[str, Any]) -> int:
    return config.get("num_attention_heads", 1) * config.get("attention_head_dim", 1)


def remedies(shared: Shared, processes: int, parallel: str) -> str:
    """Return the settings that are left to make a run smaller, as text."""
    left = [
        *(["--set lora_rank=64"] if not shared.lora_rank else []),
        *(["--set frozen=bf16"] if shared.lora_rank and shared.frozen == "fp32" else []),
        *(["--set gradient_checkpointing=true"] if not shared.gradient_checkpointing else []),
        *([f"--set micro_batch={max(1, shared.micro_batch // 4)}"] if shared.micro_batch > 1 else []),
        *(["torchrun with --parallel fsdp2"] if processes == 1 or parallel != "fsdp2" else ["more processes"]),
    ]
    return ", ".join(left)


def spoken(memory: Memory) -> str:
    """Return an estimate in a line."""
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in memory.phases.items())
    return f"{gigabytes(memory.peak)} GB a GPU, estimated ({parts}; {memory.trained / 1e6:,.4g} M parameters trained)"


def gigabytes(size: float) -> str:
    """Return bytes as 10^9 of them, in three digits."""
    return f"{size / 1e9:.3g}" if size < 1e12 else f"{math.ceil(size / 1e9):,}"
