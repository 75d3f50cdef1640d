"""What many tests need: a random FLUX pipeline of the real classes that costs milliseconds."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Keep what tests encode out of the user's cache; processes that they start inherit it."""
    folder = tempfile.TemporaryDirectory(prefix="arbor-cache-")
    os.environ["ARBOR_CACHE"] = folder.name
    config.add_cleanup(folder.cleanup)


@pytest.fixture(scope="session")
def random_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `FluxPipeline.from_pretrained` loads: random weights, the embedded model's tokenizers."""
    folder = tmp_path_factory.mktemp("random-flux")
    write_random_flux(folder)
    return folder


def write_random_flux(folder: Path) -> None:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    from bench.embedded.make_text import make_text

    make_text(folder, seed=0)
    torch.manual_seed(0)  # noqa: TID251  # weights, not a run
    FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2),
    ).save_pretrained(folder / "transformer")
    AutoencoderKL(
        block_out_channels=(8, 8, 8),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    ).save_pretrained(folder / "vae")
    index = {
        "_class_name": "FluxPipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
