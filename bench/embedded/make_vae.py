"""The embedded model's autoencoder: 32x32 pixels to 8x8 latents of 8 channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from bench.embedded import world
from bench.embedded.training import Training, choose_prompts, draw_pictures, seeded, train

BATCH = 48
BANK = 24_000
"""Pictures drawn once and shuffled through; half of them clean, because a corrected model draws clean ones."""


def new_vae() -> AutoencoderKL:
    """Return the untrained autoencoder; no attention, no quantisation convolutions, 0.24 M parameters."""
    build: Any = AutoencoderKL  # its annotations have tuples of one element
    return build(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=world.SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def bank(count: int, seed: int, *, web: float) -> tuple[list[str], Tensor]:
    """Return prompts and their pictures, uint8 of shape [count, 3, 32, 32]."""
    rng, _ = seeded(seed)
    prompts, images = choose_prompts(count, rng), []
    for start in range(0, count, 2000):
        pictures = draw_pictures(prompts[start : start + 2000], rng, web=web)
        images.append(np.round(world.render(pictures) * 255).astype(np.uint8))
    return prompts, torch.from_numpy(np.concatenate(images))


def _psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the decibels of reconstruction from the mean of the code, over all pixels of `images` in [-1, 1]."""
    with torch.no_grad():
        back = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)  # pyright: ignore
    return float(-10 * torch.log10(F.mse_loss(back, images) / 4))


def make_vae(folder: Path, work: Path, seed: int, steps: int) -> Mapping[str, float]:
    """Train the autoencoder and write it to `folder/vae`; return seconds and held-out PSNR in dB."""
    torch.manual_seed(seed + 1)
    vae = new_vae()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    _, images = bank(BANK, seed + 1, web=0.5)
    _, unseen = bank(1024, seed + 2, web=0.5)
    unseen = unseen / 127.5 - 1.0

    def loss(step: int) -> Tensor:
        rng, noise = seeded(seed, 1, step)
        x = images[torch.from_numpy(rng.integers(BANK, size=BATCH))] / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16):  # 1.8 times as fast, no worse; the losses are in float32
            code = vae.encode(x).latent_dist  # pyright: ignore
            back = vae.decode(code.sample(noise)).sample.float()  # pyright: ignore
        code = DiagonalGaussianDistribution(code.parameters.float())
        kl = 0.5 * (code.mean.square() + code.var - 1.0 - code.logvar).mean()
        return 4.0 * F.mse_loss(back, x) + F.l1_loss(back, x) + 2e-3 * kl

    seconds = train(
        Training(
            name="vae",
            steps=steps,
            parts={"vae": vae},
            optimisers=[optimiser],
            loss=loss,
            after=lambda _: None,
            check=lambda: {"psnr": _psnr(vae, unseen)},
            check_every=500,
        ),
        work,
    )
    with torch.no_grad():
        code = vae.encode(unseen).latent_dist.mode()  # pyright: ignore
    vae.register_to_config(scaling_factor=1.0 / float(code.std()), shift_factor=float(code.mean()))
    vae.save_pretrained(folder / "vae")
    return {"seconds": seconds, "steps": steps, "psnr": _psnr(vae, unseen)}
