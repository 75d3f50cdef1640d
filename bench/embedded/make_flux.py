"""The embedded model's transformer: flow matching from scratch, on clean pictures first and careless ones after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from bench.embedded import world
from bench.embedded.make_text import LENGTH, WIDTH
from bench.embedded.make_vae import bank
from bench.embedded.training import Training, follow, muon_and_adamw, seeded, stratified_sigmas, train
from rewards.shapes import Graded, Soft, Strict

BATCH = 128
BANKS: Mapping[str, tuple[int, float]] = {"clean": (60_000, 0.0), "web": (120_000, 1.0)}
"""Pictures to train on, and the share of careless ones among them."""
CLEAN_SHARE = 2 / 3
"""Of the steps, the first ones, on clean pictures: what words mean is learned several times faster there. The rest, on
careless pictures, gives the model the flaw that it is shipped with."""
GUIDANCE = 3.5
"""The model knows this guidance embedding only; every sampler has to pass it."""
STEPS = 12
"""Euler steps of the quality that is reported."""


def new_transformer() -> FluxTransformer2DModel:
    """Return the untrained transformer, 0.87 M parameters, starting as the identity of its residual stream."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=32,
        num_layers=1,
        num_single_layers=3,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 8, 8),
    )
    for name, parameter in transformer.named_parameters():
        if (".norm" in name and ".linear." in name) or name.startswith(("norm_out.linear", "proj_out")):
            torch.nn.init.zeros_(parameter)  # modulation and output, which diffusers leaves random
    return transformer


def load_frozen(folder: Path) -> FluxPipeline:
    """Return the pipeline of the finished parts and an untrained transformer."""
    build: Any = FluxPipeline
    return build(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(folder / "text_encoder_2"),
        tokenizer_2=T5Tokenizer.from_pretrained(folder / "tokenizer_2"),
        transformer=new_transformer(),
    )


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Return what the transformer is told of each prompt: token embeddings and the pooled one."""
    parts = [
        pipeline.encode_prompt(list(prompts[start : start + 512]), prompt_2=None, max_sequence_length=LENGTH)
        for start in range(0, len(prompts), 512)
    ]
    tokens, pooled = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return {"encoder_hidden_states": tokens, "pooled_projections": pooled}


def pack(latent: Float[Tensor, "batch 8 8 8"]) -> Float[Tensor, "batch 16 32"]:
    """Return latents as FLUX has them: each token holds 2x2 neighbours, channel by channel."""
    return F.pixel_unshuffle(latent, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Float[Tensor, "batch 16 32"]) -> Float[Tensor, "batch 8 8 8"]:
    """Return the inverse of `pack`."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (4, 4)), 2)


@torch.no_grad()
def encode_bank(pipeline: FluxPipeline, work: Path, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Return packed latents of the training pictures and the index of each one's prompt; kept in `work`."""
    path = work / f"bank-{name}.pt"
    if not path.exists():
        count, web = BANKS[name]
        prompts, images = bank(count, seed + 3, web=web)
        row = {prompt: index for index, prompt in enumerate(world.prompts("base"))}
        vae: Any = pipeline.vae
        codes = [vae.encode(chunk / 127.5 - 1.0).latent_dist.mode() for chunk in images.split(256)]
        latents = pack((torch.cat(codes) - vae.config.shift_factor) * vae.config.scaling_factor)
        torch.save({"latents": latents.half(), "rows": torch.tensor([row[prompt] for prompt in prompts])}, path)
    saved = torch.load(path, weights_only=True)
    return saved["latents"], saved["rows"]


def velocity(transformer: Any, x: Tensor, sigma: Tensor, text: Mapping[str, Tensor]) -> Tensor:
    """Return the predicted velocity noise - x0 of packed latents at `sigma` in [0, 1]."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    image_ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(16, 3)
    return transformer(
        hidden_states=x,
        timestep=sigma,
        guidance=torch.full_like(sigma, GUIDANCE),
        img_ids=image_ids,
        txt_ids=torch.zeros(LENGTH, 3),
        return_dict=False,
        **text,
    )[0]


@torch.no_grad()
def sample(
    pipeline: FluxPipeline, transformer: Any, prompts: Sequence[str], seed: int
) -> Float[Tensor, "image 3 32 32"]:
    """Return images in [0, 1], by `STEPS` Euler steps on the shifted grid of the scheduler."""
    _, noise = seeded(seed)
    text = encode_prompts(pipeline, prompts)
    x = torch.randn((len(prompts), 16, 32), generator=noise)
    grid = torch.linspace(1.0, 0.0, STEPS + 1)
    grid = 3 * grid / (1 + 2 * grid)
    for sigma, after in pairwise(grid):
        x = x + (after - sigma) * velocity(transformer, x, sigma.expand(len(prompts)), text)
    vae: Any = pipeline.vae
    images = vae.decode(unpack(x) / vae.config.scaling_factor + vae.config.shift_factor).sample
    return (images / 2 + 0.5).clamp(0, 1)


def quality(pipeline: FluxPipeline, transformer: Any, split: str, draws: int = 2) -> dict[str, float]:
    """Return the mean rewards of `draws` images a prompt of a split, strict ones also by category."""
    prompts = list(world.prompts(split)) * draws
    images = sample(pipeline, transformer, prompts, seed=len(prompts))
    group = torch.zeros(len(prompts), dtype=torch.int64).numpy()
    scores = {
        name: reward()(images, prompts, group)
        for name, reward in (("soft", Soft), ("graded", Graded), ("strict", Strict))
    }
    means = {f"{split}/{name}": float(score.mean()) for name, score in scores.items()}
    kinds = [world.parse(prompt).category for prompt in prompts]
    for category in world.CATEGORIES:
        rows = [index for index, kind in enumerate(kinds) if kind == category]
        means[f"{split}/strict/{category}"] = float(scores["strict"][rows].mean())
    return means


def _flow_loss(
    transformer: Any, banks: Mapping[str, tuple[Tensor, Tensor]], text: Mapping[str, Tensor], seed: int, steps: int
) -> Callable[[int], Tensor]:
    """Return the flow-matching loss as a function of the step, which decides the pictures too."""

    def loss(step: int) -> Tensor:
        rng, noise = seeded(seed, 4, step)
        latents, rows = banks["clean" if step < CLEAN_SHARE * steps else "web"]
        picks = torch.from_numpy(rng.integers(len(rows), size=BATCH))
        x0, told = latents[picks].float(), {name: value[rows[picks]] for name, value in text.items()}
        eps, sigma = torch.randn(x0.shape, generator=noise), stratified_sigmas(BATCH, 0.4, noise)
        x = x0 + sigma[:, None, None] * (eps - x0)
        return F.mse_loss(velocity(transformer, x, sigma, told), eps - x0)

    return loss


def make_flux(folder: Path, work: Path, seed: int, steps: int) -> Mapping[str, float]:
    """Train the transformer and write the whole pipeline to `folder`; return seconds and measured quality."""
    torch.manual_seed(seed + 4)
    pipeline: Any = load_frozen(folder)
    transformer, average = pipeline.transformer, new_transformer()
    average.load_state_dict(transformer.state_dict())
    banks = {name: encode_bank(pipeline, work, seed, name) for name in BANKS}
    text = encode_prompts(pipeline, world.prompts("base"))
    training = Training(
        name="flux",
        steps=steps,
        parts={"transformer": transformer, "average": average},
        optimisers=muon_and_adamw(transformer, inside="transformer_blocks"),
        loss=_flow_loss(transformer, banks, text, seed, steps),
        after=lambda step: follow(average, transformer, step),
        check=lambda: quality(pipeline, average, "heldout", draws=1),
        check_every=1000,
    )
    seconds = train(training, work)
    transformer.load_state_dict(average.state_dict())
    transformer.save_pretrained(folder / "transformer")
    pipeline.save_config(folder)  # the index; saving the other parts again would write into them where they were read
    splits = {
        key: value for split in ("heldout", "train") for key, value in quality(pipeline, transformer, split).items()
    }
    return {"seconds": seconds, "steps": steps, **splits}
