"""Stable Diffusion 3 and 3.5 in diffusers' format: latents as the VAE has them, classifier-free guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.models.parts import (
    ATTENTION,
    computing,
    guided,
    has_part,
    load_encoder,
    load_part,
    negative_first,
    random_encoder,
    save,
    token_ids,
)
from bench.policy import Build, Condition, Encoder, Row

CLIP_LENGTH = 77
"""Tokens of a prompt for both CLIPs where the weights are random and no tokenizer says it."""
T5_LENGTH = 256
"""Tokens of a prompt for T5, unless its tokenizer allows fewer."""


class Sd3:
    """An SD3 policy; `model` is the transformer, everything else is frozen."""

    lora_targets = (
        *(f"attn.{layer}" for layer in ATTENTION),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    """The projections of joint attention, as in Flow-GRPO's recipe; not those of the images' second attention."""

    def __init__(self, folder: Path, build: Build) -> None:
        """Load transformer and VAE.

        Args:
            folder: a complete pipeline in diffusers' layout; of random weights, its configurations.
            build: guidance above 1 leads away from the empty prompt, and takes two forwards.

        Raises:
            ValueError: if the size does not fit the VAE, or is beyond the transformer's positions.
        """
        # From their own modules: diffusers' pipelines cost seconds to import, and no pipeline runs here.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        self.folder, self.build, self.device = folder, build, build.device
        self.model = load_part(SD3Transformer2DModel, folder, "transformer", build, build.dtype)
        self.vae = load_part(AutoencoderKL, folder, "vae", build, build.frozen).requires_grad_(False)
        self.calls_per_velocity = 2 if build.guidance > 1 else 1
        pixels, config = 2 ** (len(self.vae.config.block_out_channels) - 1), self.model.config
        patch = config.patch_size * pixels
        if build.height % patch or build.width % patch:
            raise ValueError(f"{build.height} x {build.width} pixels: sides are multiples of {patch}")
        if max(build.height, build.width) > patch * config.pos_embed_max_size:
            most = patch * config.pos_embed_max_size
            raise ValueError(f"{build.height} x {build.width} pixels: sides are at most {most}")
        self.latent_shape = (int(config.in_channels), build.height // pixels, build.width // pixels)

    def encoder(self) -> Encoder:
        """Return what makes pooled and token embeddings of a prompt, by two CLIPs and T5.

        A pipeline without T5 has zeros in its place.
        """
        config, build = self.model.config, self.build
        if build.weights == "random":
            shape = (CLIP_LENGTH + T5_LENGTH, config.joint_attention_dim)
            return random_encoder((config.pooled_projection_dim,), shape)
        from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

        clips = [
            load_encoder(CLIPTextModelWithProjection, self.folder, name, build)
            for name in ("text_encoder", "text_encoder_2")
        ]
        readers: Any = [AutoTokenizer.from_pretrained(self.folder / name) for name in ("tokenizer", "tokenizer_2")]
        t5 = None
        if has_part(self.folder, "text_encoder_3"):
            t5 = load_encoder(T5EncoderModel, self.folder, "text_encoder_3", build)
        t5_reader: Any = AutoTokenizer.from_pretrained(self.folder / "tokenizer_3") if t5 is not None else None

        @torch.no_grad()
        def encode(prompt: str, image: Path | None) -> Row:  # noqa: ARG001
            length = readers[0].model_max_length  # of both, as in the pipeline
            read = [token_ids(reader, prompt, length).to(self.device) for reader in readers]
            seen = [clip(ids, output_hidden_states=True) for clip, ids in zip(clips, read, strict=True)]
            pooled = torch.cat([clip.text_embeds for clip in seen], dim=-1)
            tokens = torch.cat([clip.hidden_states[-2] for clip in seen], dim=-1)
            if t5 is None:
                more = tokens.new_zeros(1, T5_LENGTH, config.joint_attention_dim)
            else:
                ids = token_ids(t5_reader, prompt, min(T5_LENGTH, t5_reader.model_max_length))
                more = t5(ids.to(self.device)).last_hidden_state
            tokens = torch.nn.functional.pad(tokens, (0, more.shape[-1] - tokens.shape[-1]))
            return pooled[0].cpu(), torch.cat([tokens, more], dim=1)[0].cpu()

        return encode

    def velocity(
        self, x: Float[Tensor, "row channel high wide"], sigma: Float[Tensor, " row"], condition: Condition
    ) -> Float[Tensor, "row channel high wide"]:
        """Return noise minus image, guided: with the empty prompt's half of the batch first, as in the pipeline."""
        twice = self.calls_per_velocity == 2
        pooled, tokens = negative_first(condition) if twice else condition.tensors
        with computing(self.build):
            velocity = self.model(
                hidden_states=torch.cat([x, x]) if twice else x,
                timestep=1000 * (torch.cat([sigma, sigma]) if twice else sigma),
                pooled_projections=pooled.float(),
                encoder_hidden_states=tokens.float(),
                return_dict=False,
            )[0].float()
        return guided(velocity, self.build.guidance) if twice else velocity

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "row channel high wide"]) -> Float[Tensor, "row 3 height width"]:
        """Return the VAE's images of latents."""
        z = x0 / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        return (self.vae.decode(z.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path) -> None:
        """Write a pipeline, or the adapters of one (`bench.models.parts.save`)."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

        save(self.model, self.folder, folder, "transformer", StableDiffusion3Pipeline.save_lora_weights)
