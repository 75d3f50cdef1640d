"""The embedded video model's autoencoder: 9 frames of 32x32 pixels to 3 frames of 4x4 latents of 32 channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float, UInt8
from torch import Tensor

from bench.embedded import moving
from bench.embedded.training import Training, muon_of_kernels, seeded, train

BATCH = 8
BANK = 4_000
"""Videos drawn once and shuffled through; half of them clean, because a corrected model draws clean ones."""
CHANNELS = 32
WEIGHTS: Mapping[str, float] = {"still": 1.0, "way": 2.0, "pace": 2.0, "two": 2.0}
"""How often a category is drawn in training; `still` less often, its motion is the easiest."""
CHUNK = 64
"""Videos that are rendered at once; more at a time are slower, for want of cache."""


def new_vae() -> AutoencoderKLWan:
    """Return the untrained autoencoder, 0.71 M parameters.

    It sees 2x2 pixels as one of 12 channels, as Wan 2.2's does: a decode costs half of what one with full resolution
    and half the width would.
    """
    vae = AutoencoderKLWan(
        base_dim=16,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )
    with torch.no_grad():  # codes start almost without noise; under a variance of 1 nothing is learned for long
        quantise: Any = vae.quant_conv
        quantise.weight[CHANNELS:] *= 0.1
        quantise.bias[CHANNELS:] = -6.0
    return vae


def choose_prompts(count: int, rng: np.random.Generator) -> list[str]:
    """Return base prompts drawn with the weights of their categories."""
    groups: dict[str, list[str]] = {category: [] for category in WEIGHTS}
    for prompt in moving.prompts("base"):
        groups[moving.parse(prompt).category].append(prompt)
    columns, share = list(groups.values()), np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())
    picks = rng.choice(len(share), size=count, p=share)
    return [columns[pick][int(rng.integers(len(columns[pick])))] for pick in picks]


def bank(count: int, seed: int, *, careless: float) -> tuple[list[str], UInt8[Tensor, "video 9 3 32 32"]]:
    """Return prompts and their videos, a share `careless` of them as a careless crawl has them."""
    rng, _ = seeded(seed)
    prompts = choose_prompts(count, rng)
    videos = [moving.draw(moving.parse(prompt), rng) for prompt in prompts]
    videos = [moving.corrupt(video, rng) if rng.random() < careless else video for video in videos]
    frames = [moving.render(videos[start : start + CHUNK]) for start in range(0, count, CHUNK)]
    return prompts, torch.from_numpy(np.concatenate([np.round(some * 255).astype(np.uint8) for some in frames]))


def as_input(frames: UInt8[Tensor, "video 9 3 32 32"]) -> Float[Tensor, "video 3 9 32 32"]:
    """Return frames as the autoencoder takes them: channels first, in [-1, 1]."""
    return (frames / 127.5 - 1.0).transpose(1, 2).contiguous()


@torch.no_grad()
def codes(vae: AutoencoderKLWan, frames: UInt8[Tensor, "video 9 3 32 32"]) -> Float[Tensor, "video 32 3 4 4"]:
    """Return the means of the frames' codes, not yet normalised."""
    model: Any = vae
    return torch.cat([model.encode(as_input(some)).latent_dist.mode() for some in frames.split(CHUNK)])


@torch.no_grad()
def _psnr(vae: AutoencoderKLWan, frames: UInt8[Tensor, "video 9 3 32 32"]) -> float:
    """Return the decibels of reconstruction from the mean of the code, over all pixels."""
    model: Any = vae
    back = torch.cat([model.decode(z).sample for z in codes(vae, frames).split(CHUNK)])
    return float(-10 * torch.log10(F.mse_loss(back, as_input(frames)) / 4))


def make_wan_vae(folder: Path, work: Path, seed: int, steps: int) -> Mapping[str, float]:
    """Train the autoencoder and write it to `folder/vae`; return seconds and held-out PSNR in dB."""
    torch.manual_seed(seed + 11)
    vae = new_vae()
    model: Any = vae
    _, frames = bank(BANK, seed + 11, careless=0.5)
    _, unseen = bank(256, seed + 12, careless=0.5)

    def loss(step: int) -> Tensor:
        rng, noise = seeded(seed, 11, step)
        x = as_input(frames[torch.from_numpy(rng.integers(BANK, size=BATCH))])
        with torch.autocast("cpu", torch.bfloat16):  # a quarter faster, no worse; the losses are in float32
            code = model.encode(x).latent_dist
            back = model.decode(code.sample(noise)).sample.float()
        code = DiagonalGaussianDistribution(code.parameters.float())
        kl = 0.5 * (code.mean.square() + code.var - 1.0 - code.logvar).mean()
        return 4.0 * F.mse_loss(back, x) + F.l1_loss(back, x) + 1e-3 * kl

    seconds = train(_training("wan-vae", steps, vae, vae, loss, unseen), work)
    z = codes(vae, unseen)
    # One scale for all channels: those that the autoencoder does not use must stay small, not be blown up to noise.
    vae.register_to_config(
        latents_mean=[round(float(mean), 6) for mean in z.mean((0, 2, 3, 4))], latents_std=[float(z.std())] * CHANNELS
    )
    vae.save_pretrained(folder / "vae")
    return {"seconds": seconds, "steps": steps, "psnr": _psnr(vae, unseen)}


def refine_wan_decoder(folder: Path, work: Path, seed: int, steps: int) -> Mapping[str, float]:
    """Train the decoder alone on and write it to `folder/vae`; latents keep their meaning, videos get sharper."""
    torch.manual_seed(seed + 15)
    vae: Any = AutoencoderKLWan.from_pretrained(folder / "vae")
    vae.register_to_config(_name_or_path="tiny-wan")  # rather than where it was made
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    _, frames = bank(BANK, seed + 15, careless=0.5)
    _, unseen = bank(256, seed + 12, careless=0.5)

    def loss(step: int) -> Tensor:
        rng, noise = seeded(seed, 15, step)
        x = as_input(frames[torch.from_numpy(rng.integers(BANK, size=BATCH))])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                code = vae.encode(x).latent_dist.sample(noise)
            back = vae.decode(code).sample.float()
        return 4.0 * F.mse_loss(back, x) + F.l1_loss(back, x)

    trained = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])
    seconds = train(_training("wan-decoder", steps, vae, trained, loss, unseen), work)
    vae.save_pretrained(folder / "vae")
    return {"seconds": seconds, "steps": steps, "psnr": _psnr(vae, unseen)}


def _training(
    name: str,
    steps: int,
    vae: AutoencoderKLWan,
    trained: torch.nn.Module,
    loss: Callable[[int], Tensor],
    unseen: UInt8[Tensor, "video 9 3 32 32"],
) -> Training:
    return Training(
        name=name,
        steps=steps,
        parts={"vae": vae},
        optimisers=muon_of_kernels(trained),
        loss=loss,
        after=lambda _: None,
        check=lambda: {"psnr": _psnr(vae, unseen)},
        check_every=250,
    )
