"""FLUX.1 in diffusers' format, from the embedded model to FLUX.1-dev: packed latents, guidance as an embedding."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bench.models.parts import ATTENTION, computing, load_encoder, load_part, random_encoder, save, token_ids
from bench.policy import Build, Condition, Encoder, Row

T5_LENGTH = {True: 512, False: 256}
"""Tokens of a prompt, with a guidance embedding (dev) and without (schnell), unless the tokenizer allows fewer."""


class Flux:
    """A FLUX policy; `model` is the transformer, everything else is frozen."""

    calls_per_velocity = 1
    lora_targets = (
        *(f"attn.{layer}" for layer in ATTENTION),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    """All projections of attention, as in the field's recipes for FLUX."""

    def __init__(self, folder: Path, build: Build) -> None:
        """Load transformer and VAE.

        Args:
            folder: a complete FLUX pipeline in diffusers' layout; of random weights, its configurations.
            build: its guidance is the embedding's, without effect on a model that has none (schnell).

        Raises:
            ValueError: if the size does not fit the VAE.
        """
        # From their own modules: diffusers' pipelines cost seconds to import, and no pipeline runs here.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        self.folder, self.build, self.device = folder, build, build.device
        self.model = load_part(FluxTransformer2DModel, folder, "transformer", build, build.dtype)
        self.vae = load_part(AutoencoderKL, folder, "vae", build, build.frozen).requires_grad_(False)
        self.guided: bool = self.model.config.guidance_embeds
        patch = 2 * 2 ** (len(self.vae.config.block_out_channels) - 1)
        if build.height % patch or build.width % patch:
            raise ValueError(f"{build.height} x {build.width} pixels: sides are multiples of {patch}")
        self.rows, self.columns = build.height // patch, build.width // patch
        self.latent_shape = (self.rows * self.columns, int(self.model.config.in_channels))
        rows, columns = torch.meshgrid(torch.arange(self.rows), torch.arange(self.columns), indexing="ij")
        image_ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1)
        self.image_ids = image_ids.reshape(-1, 3).to(self.device, torch.float32)

    def encoder(self) -> Encoder:
        """Return what makes CLIP's pooled and T5's token embeddings of a prompt."""
        config, most = self.model.config, T5_LENGTH[self.guided]
        if self.build.weights == "random":
            return random_encoder((config.pooled_projection_dim,), (most, config.joint_attention_dim))
        from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

        clip = load_encoder(CLIPTextModel, self.folder, "text_encoder", self.build)
        t5 = load_encoder(T5EncoderModel, self.folder, "text_encoder_2", self.build)
        clip_tokens = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        t5_tokens = AutoTokenizer.from_pretrained(self.folder / "tokenizer_2")

        @torch.no_grad()
        def encode(prompt: str, image: Path | None) -> Row:  # noqa: ARG001
            pooled = clip(token_ids(clip_tokens, prompt, clip_tokens.model_max_length).to(self.device)).pooler_output
            ids = token_ids(t5_tokens, prompt, min(most, t5_tokens.model_max_length))
            tokens = t5(ids.to(self.device)).last_hidden_state
            return pooled[0].cpu(), tokens[0].cpu()

        return encode

    def velocity(
        self, x: Float[Tensor, "row token channel"], sigma: Float[Tensor, " row"], condition: Condition
    ) -> Float[Tensor, "row token channel"]:
        """Return noise minus image as the transformer predicts it."""
        pooled, tokens = condition.tensors
        with computing(self.build):
            velocity = self.model(
                hidden_states=x,
                timestep=sigma,
                guidance=torch.full_like(sigma, self.build.guidance) if self.guided else None,
                pooled_projections=pooled.float(),
                encoder_hidden_states=tokens.float(),
                txt_ids=self.image_ids.new_zeros(tokens.shape[1], 3),
                img_ids=self.image_ids,
                return_dict=False,
            )[0]
        return velocity.float()

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "row token channel"]) -> Float[Tensor, "row 3 height width"]:
        """Return the VAE's images of packed latents."""
        channels = self.latent_shape[1] // 4
        grid = x0.view(-1, self.rows, self.columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        z = grid.reshape(-1, channels, 2 * self.rows, 2 * self.columns)
        z = z / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        return (self.vae.decode(z.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path) -> None:
        """Write a pipeline, or the adapters of one (`bench.models.parts.save`)."""
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        save(self.model, self.folder, folder, "transformer", FluxPipeline.save_lora_weights)
