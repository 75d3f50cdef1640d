"""The FLUX adapter against diffusers' own pipeline: same encoding, velocity, samples and images."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.families import copied
from tiny import square
from torch import Tensor

from bench.models.flux import Flux
from bench.models.source import dynamic_shift, resolve_model
from bench.noise import Noise
from bench.plan import branching
from bench.policy import encoded
from bench.rollout import rollout
from bench.schedule import shifted_sigmas

PROMPTS = ["a red circle", "two blue squares", "a small green ring"]
STEPS, SIDE, GUIDANCE = 4, 32, 3.5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(random_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random pipeline, with latents that are shifted and scaled as FLUX's are."""
    copy = tmp_path_factory.mktemp("flux") / "scaled"
    shutil.copytree(random_flux, copy)
    config = json.loads((copy / "vae" / "config.json").read_text())
    (copy / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.36, "shift_factor": 0.12}))
    return copy


@pytest.fixture(scope="module")
def policy(folder: Path) -> Flux:
    return Flux(folder, square(SIDE, guidance=GUIDANCE))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def plan():
    return branching(
        shifted_sigmas(STEPS, 3.0), slots=len(PROMPTS), fanout=[1] * STEPS, noise_level=[0.0] * STEPS, kernel="ode"
    )


@pytest.fixture(scope="module")
def stock(pipe: Any, policy: Flux, plan) -> dict[str, Any]:
    """A run of diffusers' pipeline from our root noise: its images, and every call of its transformer."""
    calls: list[tuple[dict[str, Any], Tensor]] = []

    def record(module, arguments, keywords, output):
        calls.append((keywords, output[0]))

    hook = pipe.transformer.register_forward_hook(record, with_kwargs=True)
    roots = Noise(seed=0, iteration=0).roots(plan.tree, plan.coupling, policy.latent_shape)
    images = pipe(
        PROMPTS,
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        max_sequence_length=12,
        latents=torch.from_numpy(roots),
        output_type="pt",
    ).images
    hook.remove()
    return {"images": images, "calls": calls}


def test_encoded_prompts_are_the_pipelines(pipe, policy):
    pooled, tokens = encoded(policy, PROMPTS).tensors
    wanted_tokens, wanted_pooled, _ = pipe.encode_prompt(PROMPTS, None, max_sequence_length=12)

    torch.testing.assert_close(tokens, wanted_tokens, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pooled, wanted_pooled, atol=1e-6, rtol=1e-6)


def test_a_prompt_is_encoded_alike_in_any_company(policy):
    alone, together = encoded(policy, [PROMPTS[1]]), encoded(policy, [*PROMPTS, PROMPTS[1]])
    for a, b in zip(alone.tensors, together.tensors, strict=True):
        assert torch.equal(a[0], b[1])
        assert torch.equal(a[0], b[3])


@torch.no_grad()
def test_velocity_is_the_pipelines_at_every_step(policy, stock):
    condition = encoded(policy, PROMPTS)
    assert len(stock["calls"]) == STEPS
    for keywords, wanted in stock["calls"]:
        velocity = policy.velocity(keywords["hidden_states"], keywords["timestep"], condition)
        torch.testing.assert_close(velocity, wanted, atol=1e-6, rtol=1e-6)


def test_the_pipeline_runs_on_our_sigma_grid(plan, stock):
    assert [float(call["timestep"][0]) for call, _ in stock["calls"]] == pytest.approx(plan.sigmas[:-1].tolist())


def test_an_ode_plan_samples_the_pipelines_images(policy, plan, stock):
    sampled = rollout(policy, plan, encoded(policy, PROMPTS), Noise(seed=0, iteration=0), chunk=2)

    torch.testing.assert_close(policy.decode(sampled.x0), stock["images"], atol=1e-5, rtol=1e-5)
    assert stock["images"].std() > 0.01


def test_decoded_latents_are_the_pipelines_images(pipe, policy):
    packed = torch.from_numpy(np.linspace(-2, 2, 2 * 16 * 16, dtype=np.float32).reshape(2, 16, 16))
    latents = pipe._unpack_latents(packed, SIDE, SIDE, pipe.vae_scale_factor)
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    with torch.no_grad():
        wanted = pipe.image_processor.postprocess(pipe.vae.decode(latents, return_dict=False)[0], output_type="pt")

    torch.testing.assert_close(policy.decode(packed), wanted, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_guidance_is_an_embedding(folder, policy):
    other = Flux(folder, square(SIDE, guidance=1.0))
    x, sigma, condition = torch.ones(1, *policy.latent_shape), torch.ones(1), encoded(policy, PROMPTS[:1])

    assert policy.calls_per_velocity == 1
    assert not torch.allclose(policy.velocity(x, sigma, condition), other.velocity(x, sigma, condition))


@torch.no_grad()
def test_a_model_without_a_guidance_embedding_takes_none(random_flux, tmp_path):
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    folder = tmp_path / "schnell"
    shutil.copytree(random_flux, folder)
    config = json.loads((random_flux / "transformer" / "config.json").read_text())
    FluxTransformer2DModel.from_config({**config, "guidance_embeds": False}).save_pretrained(folder / "transformer")  # pyright: ignore[reportAttributeAccessIssue]

    schnell = Flux(folder, square(SIDE, guidance=GUIDANCE))
    velocity = schnell.velocity(torch.ones(1, *schnell.latent_shape), torch.ones(1), encoded(schnell, PROMPTS[:1]))
    assert velocity.shape == (1, *schnell.latent_shape)


def test_the_transformer_is_trained_and_the_rest_is_frozen(policy):
    assert all(parameter.requires_grad for parameter in policy.model.parameters())
    assert not any(parameter.requires_grad for parameter in policy.vae.parameters())


@torch.no_grad()
def test_what_is_saved_is_the_changed_model_and_the_rest_as_it_was(random_flux, tmp_path):
    policy = Flux(random_flux, square(SIDE, guidance=GUIDANCE))
    next(policy.model.parameters()).add_(1.0)
    policy.save(tmp_path / "saved")

    again = Flux(tmp_path / "saved", square(SIDE, guidance=GUIDANCE))
    for ours, theirs in zip(policy.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    rest = [path for path in random_flux.rglob("*") if path.is_file() and "transformer" not in path.parts]
    assert rest
    for path in rest:
        assert (tmp_path / "saved" / path.relative_to(random_flux)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("resolution", [4, 30, 33])
def test_a_resolution_that_cuts_a_token_is_refused(random_flux, resolution):
    with pytest.raises(ValueError, match=f"{resolution} x {resolution} pixels.*multiples of 8"):
        Flux(random_flux, square(resolution, guidance=GUIDANCE))


@pytest.mark.parametrize(("embedding", "tokens"), [(True, 512), (False, 256)])
def test_dev_is_told_512_tokens_and_schnell_256(random_flux, tmp_path, embedding, tokens):
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    folder = copied(random_flux, tmp_path / "flux", "transformer", guidance_embeds=embedding)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    FluxTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")  # pyright: ignore[reportAttributeAccessIssue]
    file = folder / "tokenizer_2" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 512}))

    told = encoded(Flux(folder, square(SIDE)), ["a red circle"]).tensors[1]
    assert told.shape == (1, tokens, 64)
    assert encoded(Flux(folder, square(SIDE, weights="random")), ["a red circle"]).tensors[1].shape == told.shape


def test_a_dynamic_shift_samples_the_pipelines_images_of_any_shape(random_flux, tmp_path):
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    changes = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    folder = copied(random_flux, tmp_path / "flux", "scheduler", **changes, base_image_seq_len=4, max_image_seq_len=64)
    shift = dynamic_shift(resolve_model(str(folder)), 32, 64)
    assert shift == pytest.approx(np.exp(0.5 + 0.65 * (32 - 4) / 60))
    sigmas = shifted_sigmas(STEPS, shift)
    plan = branching(sigmas, slots=3, fanout=[1] * STEPS, noise_level=[0.0] * STEPS, kernel="ode")
    policy = Flux(folder, dataclasses.replace(square(32, guidance=GUIDANCE), width=64))
    noise = Noise(seed=0, iteration=0)
    pipe: Any = FluxPipeline.from_pretrained(folder)
    images = pipe(
        PROMPTS,
        height=32,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        max_sequence_length=12,
        latents=torch.from_numpy(noise.roots(plan.tree, plan.coupling, policy.latent_shape)),
        output_type="pt",
    ).images
    sampled = rollout(policy, plan, encoded(policy, PROMPTS), noise, chunk=2)

    torch.testing.assert_close(policy.decode(sampled.x0), images, atol=1e-5, rtol=1e-5)
