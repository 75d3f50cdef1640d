"""FLUX.1 in diffusers' format, from the embedded model to FLUX.1-dev: packed latents, guidance as an embedding."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.policy import Condition

LARGE = 2**26
"""Bytes from which a frozen file is shared with its source rather than copied."""


class Flux:
    """A FLUX policy; `model` is the transformer, everything else is frozen."""

    calls_per_velocity = 1
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    """All projections of attention, as in the field's recipes for FLUX."""

    def __init__(self, folder: Path, *, resolution: int, guidance: float, device: torch.device) -> None:
        """Load transformer and VAE.

        Args:
            folder: a complete FLUX pipeline in diffusers' layout.
            resolution: height and width of the images in pixels.
            guidance: of the guidance embedding; without effect on a model that has none (schnell).
            device: where everything lives.

        Raises:
            ValueError: if the resolution does not fit the VAE.
        """
        # From their own modules: diffusers' pipelines cost seconds to import, and no pipeline runs here.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        self.folder, self.device, self.guidance = folder, device, guidance
        # diffusers declares its configurations as plain dictionaries; they are read as attributes.
        transformer: Any = FluxTransformer2DModel.from_pretrained(folder / "transformer")
        vae: Any = AutoencoderKL.from_pretrained(folder / "vae")
        self.model, self.vae = transformer.to(device), vae.to(device).requires_grad_(False)
        self.guided: bool = transformer.config.guidance_embeds
        patch = 2 * 2 ** (len(self.vae.config.block_out_channels) - 1)
        if resolution % patch:
            raise ValueError(f"resolution={resolution}: this model makes images whose side is a multiple of {patch}")
        side = resolution // patch
        self.latent_shape = (side * side, int(self.model.config.in_channels))
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        image_ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1)
        self.image_ids = image_ids.reshape(-1, 3).to(device, torch.float32)
        self.side = side

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return CLIP's pooled and T5's token embeddings, one a row; the encoders leave memory afterwards."""
        from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

        clip: Any = CLIPTextModel.from_pretrained(self.folder / "text_encoder")
        t5: Any = T5EncoderModel.from_pretrained(self.folder / "text_encoder_2")
        clip, t5 = clip.to(self.device), t5.to(self.device)
        clip_tokens = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        t5_tokens = AutoTokenizer.from_pretrained(self.folder / "tokenizer_2")
        distinct = list(dict.fromkeys(prompts))
        pooled = [clip(_ids(clip_tokens, p).to(self.device)).pooler_output for p in distinct]
        tokens = [t5(_ids(t5_tokens, p).to(self.device)).last_hidden_state for p in distinct]
        place = {prompt: at for at, prompt in enumerate(distinct)}
        row = torch.tensor([place[p] for p in prompts], device=self.device)
        return Condition(tensors=(torch.cat(pooled).float(), torch.cat(tokens).float())).rows(row)

    def velocity(
        self, x: Float[Tensor, "row token channel"], sigma: Float[Tensor, " row"], condition: Condition
    ) -> Float[Tensor, "row token channel"]:
        """Return noise minus image as the transformer predicts it."""
        pooled, tokens = condition.tensors
        return self.model(
            hidden_states=x,
            timestep=sigma,
            guidance=torch.full_like(sigma, self.guidance) if self.guided else None,
            pooled_projections=pooled,
            encoder_hidden_states=tokens,
            txt_ids=self.image_ids.new_zeros(tokens.shape[1], 3),
            img_ids=self.image_ids,
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "row token channel"]) -> Float[Tensor, "row 3 height width"]:
        """Return the VAE's images of packed latents."""
        channels = self.latent_shape[1] // 4
        grid = x0.view(-1, self.side, self.side, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        z = grid.reshape(-1, channels, 2 * self.side, 2 * self.side)
        z = z / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        return (self.vae.decode(z.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path) -> None:
        """Write a pipeline that `from_pretrained(folder)` loads; of a model with adapters, these, for
        `load_lora_weights(folder)`.
        """
        if getattr(self.model, "peft_config", None):
            _save_lora(self.model, folder)
            return
        index = json.loads((self.folder / "model_index.json").read_text())
        folder.mkdir(parents=True)
        shutil.copy2(self.folder / "model_index.json", folder)
        for part in (name for name, value in index.items() if isinstance(value, list) and value[0]):
            if part != "transformer":
                shutil.copytree(self.folder / part, folder / part, copy_function=_link)
        self.model.save_pretrained(folder / "transformer")


def _save_lora(model: Any, folder: Path) -> None:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    # Without the metadata a loader takes alpha for the rank.
    about = _collate_lora_metadata({"transformer": model})
    layers: Any = get_peft_model_state_dict(model)
    FluxPipeline.save_lora_weights(folder, layers, **about)


def _link(source: str, target: str) -> str:
    """Link a large file, where the file system can; copy others."""
    real = Path(source).resolve()
    if real.stat().st_size >= LARGE:
        try:
            os.link(real, target)
        except OSError:  # another file system: a copy serves as well, it only takes longer
            shutil.copy2(real, target)
    else:
        shutil.copy2(real, target)
    return target


def _ids(tokenizer: Any, prompt: str) -> Tensor:
    length = tokenizer.model_max_length
    return tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
