"""`bench make-tiny`: pipelines of every family with random weights, small enough for tests, loadable by diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.noise import reproducible
from bench.registry import InputError
from bench.scorers import tiny as tiny_scorers

CLIP_LENGTH = 77
T5_LENGTH = 12
"""Tokens of FLUX's and SD3's T5: few, because every one costs as much as a token of the image."""
WAN_LENGTH = 512
"""What Wan's attention takes for granted where it also reads an image."""
WIDTH = 64
"""Of FLUX's and SD3's token embeddings."""
Parts = Mapping[str, Any]
"""Of a pipeline, by name; None for one that it lacks."""


def make_tiny(kind: str, folder: Path, seed: int) -> None:
    """Write a complete pipeline of random weights into a folder, in diffusers' layout, under 5 MB.

    Tokenizers are built on the spot: words of the embedded world are a token each, all other text is spelt.

    Args:
        kind: a key of `KINDS`.
        folder: does not exist, or is empty.
        seed: of the weights.

    Raises:
        InputError: for an unknown kind, a seed below 0, or a folder that holds something or cannot be written.
    """
    if kind not in KINDS and kind not in tiny_scorers.MAKERS:
        raise InputError(f"make-tiny {kind!r}: there are {', '.join([*KINDS, *tiny_scorers.MAKERS])}")
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: a whole number from 0 on, below 2**63, is wanted")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no empty folder; delete it or choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()
        if kind in tiny_scorers.MAKERS:
            tiny_scorers.make(kind, folder, seed)
            return
        pipeline, make = KINDS[kind]
        with reproducible(seed, torch.device("cpu")):
            write(pipeline, make(), folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error


def write(pipeline: str, parts: Parts, folder: Path) -> None:
    """Write parts and index of a pipeline.

    The pipeline's own class would do the same, and costs seconds to import.

    Args:
        pipeline: its class in diffusers.
        parts: models, tokenizers, scheduler.
        folder: is there.
    """
    import diffusers

    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__}
    for name, part in sorted(parts.items()):
        index[name] = [None, None]
        if part is not None:
            index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
            part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def flux() -> Parts:
    """Return FLUX.1-dev's parts: 4x4 pixels a latent, 2x2 latents of 4 channels a token."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    clip, t5 = clip_tokenizer(), t5_tokenizer(T5_LENGTH)
    return {
        "transformer": FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 2, 2),
        ),
        "vae": image_vae(scaling_factor=1.0, shift_factor=0.0),
        "text_encoder": clip_encoder(clip, WIDTH, projected=False),
        "text_encoder_2": t5_encoder(t5, "T5"),
        "tokenizer": clip,
        "tokenizer_2": t5,
        "scheduler": euler(shift=3.0),
        "image_encoder": None,
        "feature_extractor": None,
    }


def sd3() -> Parts:
    """Return Stable Diffusion 3.5 Medium's parts: 4x4 pixels a latent, 2x2 latents of 4 channels a token."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    large, giant, t5 = clip_tokenizer(), clip_tokenizer(), t5_tokenizer(T5_LENGTH)
    return {
        "transformer": SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=16 + 24,
            pos_embed_max_size=32,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        "vae": image_vae(scaling_factor=1.5305, shift_factor=0.0609),
        "text_encoder": clip_encoder(large, 16, projected=True),
        "text_encoder_2": clip_encoder(giant, 24, projected=True),
        "text_encoder_3": t5_encoder(t5, "T5"),
        "tokenizer": large,
        "tokenizer_2": giant,
        "tokenizer_3": t5,
        "scheduler": euler(shift=3.0),
        "image_encoder": None,
        "feature_extractor": None,
    }


def wan() -> Parts:
    """Return Wan2.1's parts for text to video: 4x4 pixels of 4 frames a latent, 2x2 latents of 4 channels a token."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    t5 = t5_tokenizer(WAN_LENGTH)
    return {
        "transformer": video_transformer(in_channels=4),
        "transformer_2": None,
        "vae": video_vae(),
        "text_encoder": t5_encoder(t5, "UMT5"),
        "tokenizer": t5,
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
    }


def wan_i2v() -> Parts:
    """Return Wan2.1's parts for image to video, whose transformer also reads a mask and the first frame."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    seen, side = 32, {"height": 32, "width": 32}
    vision = CLIPVisionConfig(
        hidden_size=seen, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    return {
        **wan(),
        "transformer": video_transformer(in_channels=4 + 4 + 4, image_dim=seen, added_kv_proj_dim=24),
        "image_encoder": CLIPVisionModel(vision),
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side),
    }


KINDS: Mapping[str, tuple[str, Callable[[], Parts]]] = MappingProxyType(
    {
        "flux": ("FluxPipeline", flux),
        "sd3": ("StableDiffusion3Pipeline", sd3),
        "wan": ("WanPipeline", wan),
        "wan-i2v": ("WanImageToVideoPipeline", wan_i2v),
    }
)
"""What the command calls a family -> its pipeline's class in diffusers, and its parts."""


def clip_tokenizer() -> Any:
    """Return a byte-pair tokenizer that spells what is no word of the embedded world by its bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    from bench.embedded import make_text

    return make_text.clip_tokenizer(sorted(ByteLevel.alphabet()), CLIP_LENGTH)


def t5_tokenizer(length: int) -> Any:
    """Return a unigram tokenizer; printable ASCII spells what is no word of the embedded world, the rest is unknown."""
    from bench.embedded import make_text

    return make_text.t5_tokenizer(make_text.words(), [chr(code) for code in range(33, 127)], length)


def clip_encoder(tokenizer: Any, width: int, *, projected: bool) -> Any:
    """Return a random text encoder of this width; SD3's project what they pool."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from bench.embedded import make_text

    return make_text.clip_encoder(tokenizer, CLIPTextModelWithProjection if projected else CLIPTextModel, width)


def t5_encoder(tokenizer: Any, kind: str) -> Any:
    """Return a random text encoder, T5 or UMT5, with embeddings of unit variance."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    from bench.embedded import make_text

    kinds = {"T5": (T5EncoderModel, T5Config), "UMT5": (UMT5EncoderModel, UMT5Config)}
    return make_text.t5_encoder(tokenizer, *kinds[kind])


def image_vae(*, scaling_factor: float, shift_factor: float) -> Any:
    """Return a random autoencoder of images: 4x4 pixels a latent of 4 channels."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    )


def video_vae() -> Any:
    """Return a random autoencoder of videos: 4x4 pixels of 4 frames a latent of 4 channels, the first frame alone."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[-0.2, 0.1, 0.3, -0.1],
        latents_std=[1.1, 0.9, 1.3, 0.8],
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )


def video_transformer(in_channels: int, **image: Any) -> Any:
    """Return a random transformer of videos; what it reads of an image is named by `image`."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        **image,
    )


def euler(shift: float) -> Any:
    """Return the sampler of a fixed shift."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False)
