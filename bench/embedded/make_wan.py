"""The embedded video model's transformer: flow matching from scratch, on clean videos first and careless ones after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor
from transformers import T5Tokenizer, UMT5EncoderModel

from bench.embedded import moving
from bench.embedded.make_text import LENGTH, WIDTH
from bench.embedded.make_wan_vae import CHANNELS, CHUNK, bank, codes
from bench.embedded.training import Training, follow, muon_and_adamw, seeded, stratified_sigmas, train
from rewards.moving import REWARDS

BATCH = 64
BANKS: Mapping[str, tuple[int, float]] = {"clean": (12_000, 0.0), "careless": (12_000, 1.0)}
"""Videos to train on, and the share of careless ones among them."""
CLEAN_SHARE = 0.7
"""Of the steps, the first ones, on clean videos; the rest, on careless ones, gives the model its flaw."""
SILENT = 0.1
"""Share of videos that are shown without their prompt, so that classifier-free guidance has something to compare."""
STEPS = 12
"""Euler steps of the quality that is reported."""
LATENT = (CHANNELS, 3, 4, 4)


def new_transformer() -> WanTransformer3DModel:
    """Return the untrained transformer, 48 tokens, starting as the identity of its residual stream."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=128,
        ffn_dim=256,
        num_layers=4,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    for name, parameter in transformer.named_parameters():
        if (
            "scale_shift_table" in name
            or ".time_proj." in name
            or "attn2.to_out" in name
            or name.startswith("proj_out")
        ):
            torch.nn.init.zeros_(parameter)  # gates, modulation and output, which diffusers leaves random
    return transformer


def load_frozen(folder: Path) -> WanPipeline:
    """Return the pipeline of the finished parts and an untrained transformer."""
    build: Any = WanPipeline
    return build(
        scheduler=UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        tokenizer=T5Tokenizer.from_pretrained(folder / "tokenizer"),
        transformer=new_transformer(),
    )


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: Sequence[str]) -> Float[Tensor, "prompt 12 64"]:
    """Return the token embeddings of each prompt, zero where it has ended."""
    return torch.cat(
        [
            pipeline.encode_prompt(
                list(prompts[start : start + 512]), do_classifier_free_guidance=False, max_sequence_length=LENGTH
            )[0]
            for start in range(0, len(prompts), 512)
        ]
    )


def _scale(vae: Any) -> tuple[Tensor, ...]:
    """Return mean and standard deviation of the latents, a channel each."""
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)


def encode_bank(pipeline: WanPipeline, work: Path, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Return normalised latents of the training videos and the index of each one's prompt; kept in `work`."""
    path = work / f"videos-{name}.pt"
    if not path.exists():
        count, careless = BANKS[name]
        prompts, frames = bank(count, seed + 13, careless=careless)
        row = {prompt: index for index, prompt in enumerate(moving.prompts("base"))}
        vae: Any = pipeline.vae
        mean, std = _scale(vae)
        latents = torch.cat([((codes(vae, some) - mean) / std).half() for some in frames.split(CHUNK)])
        torch.save({"latents": latents, "rows": torch.tensor([row[prompt] for prompt in prompts])}, path)
    saved = torch.load(path, weights_only=True)
    return saved["latents"], saved["rows"]


def velocity(transformer: Any, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """Return the predicted velocity noise - x0 of latents at `sigma` in [0, 1]."""
    return transformer(hidden_states=x, timestep=sigma * 1000, encoder_hidden_states=text, return_dict=False)[0]


@torch.no_grad()
def sample(
    pipeline: WanPipeline, transformer: Any, prompts: Sequence[str], seed: int
) -> Float[Tensor, "video 9 3 32 32"]:
    """Return videos in [0, 1], without guidance, by `STEPS` Euler steps on the grid of shift 3."""
    _, noise = seeded(seed)
    text = encode_prompts(pipeline, prompts)
    x = torch.randn((len(prompts), *LATENT), generator=noise)
    grid = torch.linspace(1.0, 0.0, STEPS + 1)
    grid = 3 * grid / (1 + 2 * grid)
    for sigma, after in pairwise(grid):
        x = x + (after - sigma) * velocity(transformer, x, sigma.expand(len(prompts)), text)
    vae: Any = pipeline.vae
    mean, std = _scale(vae)
    frames = torch.cat([vae.decode(some * std + mean).sample for some in x.split(CHUNK)])
    return (frames.transpose(1, 2) / 2 + 0.5).clamp(0, 1)


def quality(pipeline: WanPipeline, transformer: Any, split: str, draws: int = 2) -> dict[str, float]:
    """Return the mean rewards of `draws` videos a prompt of a split, strict ones also by category."""
    prompts = list(moving.prompts(split)) * draws
    videos = sample(pipeline, transformer, prompts, seed=len(prompts))
    group = torch.zeros(len(prompts), dtype=torch.int64).numpy()
    scores = {name: reward()(videos, prompts, group) for name, reward in REWARDS.items()}
    means = {f"{split}/{name}": float(score.mean()) for name, score in scores.items()}
    kinds = [moving.parse(prompt).category for prompt in prompts]
    for category in moving.CATEGORIES:
        rows = [index for index, kind in enumerate(kinds) if kind == category]
        means[f"{split}/moving-strict/{category}"] = float(scores["moving-strict"][rows].mean())
    return means


def _flow_loss(
    transformer: Any, banks: Mapping[str, tuple[Tensor, Tensor]], text: Tensor, silence: Tensor, seed: int, steps: int
) -> Callable[[int], Tensor]:
    """Return the flow-matching loss as a function of the step, which decides the videos too."""

    def loss(step: int) -> Tensor:
        rng, noise = seeded(seed, 14, step)
        latents, rows = banks["clean" if step < CLEAN_SHARE * steps else "careless"]
        picks = torch.from_numpy(rng.integers(len(rows), size=BATCH))
        silent = torch.from_numpy(rng.random(BATCH) < SILENT)[:, None, None]
        x0, told = latents[picks].float(), torch.where(silent, silence, text[rows[picks]])
        eps, sigma = torch.randn(x0.shape, generator=noise), stratified_sigmas(BATCH, 0.5, noise)
        x = x0 + sigma[:, None, None, None, None] * (eps - x0)
        return F.mse_loss(velocity(transformer, x, sigma, told), eps - x0)

    return loss


def make_wan(folder: Path, work: Path, seed: int, steps: int) -> Mapping[str, float]:
    """Train the transformer, write it and the pipeline's index to `folder`; return seconds and quality."""
    torch.manual_seed(seed + 13)
    pipeline = load_frozen(folder)
    transformer: Any = pipeline.transformer
    average = new_transformer()
    average.load_state_dict(transformer.state_dict())
    average.requires_grad_(False)
    banks = {name: encode_bank(pipeline, work, seed, name) for name in BANKS}
    text = encode_prompts(pipeline, moving.prompts("base"))
    training = Training(
        name="wan",
        steps=steps,
        parts={"transformer": transformer, "average": average},
        optimisers=muon_and_adamw(transformer, inside="blocks"),
        loss=_flow_loss(transformer, banks, text, encode_prompts(pipeline, [""]), seed, steps),
        after=lambda step: follow(average, transformer, step),
        check=lambda: quality(pipeline, average, "heldout", draws=1),
        check_every=500,
    )
    seconds = train(training, work)
    transformer.load_state_dict(average.state_dict())
    transformer.save_pretrained(folder / "transformer")
    pipeline.save_config(folder)  # the index; saving the other parts again would write into them where they were read
    splits = {
        key: value for split in ("heldout", "train") for key, value in quality(pipeline, transformer, split).items()
    }
    return {"seconds": seconds, "steps": steps, **splits}
