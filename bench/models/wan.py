"""Wan2.1 in diffusers' format: videos of a text, or of a text and a first frame, under classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.models.parts import (
    ATTENTION,
    computing,
    guided,
    load_encoder,
    load_part,
    negative_first,
    random_encoder,
    save,
)
from bench.models.source import vae_factors
from bench.models.wan_frames import frame_encoder
from bench.policy import Build, Condition, Encoder, Row
from bench.registry import InputError

TEXT_LENGTH = 512
"""Tokens of a prompt, with what fills it up; the attention of models with a first frame counts on this number."""
IMAGE_TOKENS = 257
"""Of a first frame where the weights are random: those of CLIP's ViT-H/14 and its class token."""
TIMES = 1000.0
"""The model's time where sigma is 1."""


class Wan:
    """A Wan2.1 policy; `model` is the transformer, everything else is frozen.

    A latent is channel x frame x height x width: the VAE makes one of the first frame and one of every four after it.
    """

    def __init__(self, folder: Path, build: Build) -> None:
        """Load transformer and VAE.

        Args:
            folder: a complete Wan2.1 pipeline in diffusers' layout; of random weights, its configurations.
            build: guidance above 1 is the scale of classifier-free guidance, in one call of twice the rows.

        Raises:
            InputError: if the size does not fit the VAE.
        """
        # From their own modules: diffusers' pipelines cost seconds to import, and no pipeline runs here.
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        self.folder, self.build, self.device = folder, build, build.device
        self.calls_per_velocity = 2 if build.guidance > 1 else 1
        self.model = load_part(WanTransformer3DModel, folder, "transformer", build, build.dtype)
        self.vae = load_part(AutoencoderKLWan, folder, "vae", build, build.frozen).requires_grad_(False)
        self.from_frame = self.model.config.image_dim is not None
        self.lora_targets = lora_targets(from_frame=self.from_frame)
        self.latent_shape = latent_shape(self.vae.config, self.model.config.patch_size, build)
        scale = torch.tensor([self.vae.config.latents_mean, self.vae.config.latents_std], device=self.device)
        self.mean, self.std = scale.view(2, 1, -1, 1, 1, 1)

    def encoder(self) -> Encoder:
        """Return what makes UMT5's token embeddings of a prompt and, where videos start from a frame, what the model is
        told of it: CLIP's features, and its latent below the mask of known frames.
        """
        if self.build.weights == "random":
            return self._random_encoder()
        text = text_encoder(self.folder, self.build)
        frame = frame_encoder(self.folder, self.build, self.latent) if self.from_frame else None

        def encode(prompt: str, image: Path | None) -> Row:
            if frame is None or (image is None and not prompt):  # the empty prompt is what guidance leads away from
                return (text(prompt),)
            if image is None:
                raise InputError(f"prompt {prompt!r} has no image: this model makes videos of a first frame; give one")
            return (text(prompt), *frame(image))

        return encode

    def velocity(
        self, x: Float[Tensor, "row channel frame height width"], sigma: Float[Tensor, " row"], condition: Condition
    ) -> Float[Tensor, "row channel frame height width"]:
        """Return noise minus video as the transformer predicts it, guided."""
        if self.calls_per_velocity == 1:
            return self._predicted(x, sigma, condition.tensors)
        halves = self._predicted(torch.cat([x, x]), torch.cat([sigma, sigma]), negative_first(condition))
        return guided(halves, self.build.guidance)

    def _predicted(self, x: Tensor, sigma: Tensor, told: tuple[Tensor, ...]) -> Tensor:
        text, *frame = told
        image, known = frame or (None, None)
        with computing(self.build):
            velocity = self.model(
                hidden_states=x if known is None else torch.cat([x, known.float()], dim=1),
                timestep=sigma * TIMES,
                encoder_hidden_states=text.float(),
                encoder_hidden_states_image=None if image is None else image.float(),
                return_dict=False,
            )[0]
        return velocity.float()

    @torch.no_grad()
    def decode(
        self, x0: Float[Tensor, "row channel frame height width"]
    ) -> Float[Tensor, "row shown 3 pixels_down pixels_across"]:
        """Return the VAE's videos of latents, all at once: at full size a call is of one, by `micro_batch`."""
        videos = self.vae.decode((x0 * self.std + self.mean).to(self.vae.dtype)).sample.float()
        return (videos / 2 + 0.5).clamp(0, 1).transpose(1, 2).contiguous()

    @torch.no_grad()
    def latent(self, video: Float[Tensor, "1 3 shown height width"]) -> Float[Tensor, "channel frame down across"]:
        """Return the latent of a video in [-1, 1]: the mode of what the VAE's encoder says, normalised."""
        z = self.vae.encode(video.to(self.device, self.vae.dtype)).latent_dist.mode().float()
        return ((z - self.mean) / self.std)[0]

    def save(self, folder: Path) -> None:
        """Write a pipeline, or the adapters of one (`bench.models.parts.save`)."""
        from diffusers.pipelines.wan.pipeline_wan import WanPipeline

        save(self.model, self.folder, folder, "transformer", WanPipeline.save_lora_weights)

    def _random_encoder(self) -> Encoder:
        config = self.model.config
        text, frame = (TEXT_LENGTH, config.text_dim), ()
        if self.from_frame:
            known = config.in_channels - self.latent_shape[0]
            frame = ((IMAGE_TOKENS, config.image_dim), (known, *self.latent_shape[1:]))
        return random_encoder(text, *frame)


def lora_targets(*, from_frame: bool) -> tuple[str, ...]:
    """Return the layers for adapters: attention to the video and to the text and, where there is one, to the frame."""
    layers = tuple(f"{block}.{layer}" for block in ("attn1", "attn2") for layer in ATTENTION)
    return (*layers, "attn2.add_k_proj", "attn2.add_v_proj") if from_frame else layers


def latent_shape(vae: Any, patch: Sequence[int], build: Build) -> tuple[int, int, int, int]:
    """Return channels, frames, height and width of the latents of a build.

    Raises:
        InputError: if they are not whole, or cut a token.
    """
    space, time = vae_factors(vae)
    down, across = patch[1] * space, patch[2] * space
    if build.height % down or build.width % across:
        raise InputError(f"{build.height} x {build.width} pixels: sides are multiples of {down} and {across}")
    if (build.frames - 1) % time:
        raise InputError(f"{build.frames} frames: this model makes videos of {time}k+1")
    return vae["z_dim"], (build.frames - 1) // time + 1, build.height // space, build.width // space


def text_encoder(folder: Path, build: Build) -> Any:
    """Return what makes a prompt's token embeddings [token, channel], zeros after its end."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean
    from transformers import AutoTokenizer, UMT5EncoderModel

    model = load_encoder(UMT5EncoderModel, folder, "text_encoder", build)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")

    length = min(TEXT_LENGTH, tokenizer.model_max_length)

    @torch.no_grad()
    def encode(prompt: str) -> Tensor:
        told = tokenizer(
            prompt_clean(prompt), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(build.device)
        tokens = model(told.input_ids, told.attention_mask).last_hidden_state
        return (tokens * told.attention_mask.unsqueeze(-1).to(tokens.dtype))[0].cpu()

    return encode
