"""The Wan2.1 adapter against diffusers' own pipelines: same encoding, velocity, samples and videos."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.lora import add_lora
from bench.models.source import check_size, resolve_model
from bench.models.wan import Wan
from bench.noise import Noise
from bench.plan import branching
from bench.policy import Build, Condition, enable_gradient_checkpointing, encoded, velocities
from bench.registry import InputError
from bench.rollout import rollout
from bench.schedule import shifted_sigmas

PROMPTS = ["a red circle", "two blue squares", "a small green ring"]
STEPS, HEIGHT, WIDTH, FRAMES = 3, 16, 32, 9
KINDS = ("wan", "wan-i2v")
CPU = torch.device("cpu")


def build(guidance: float = 5.0, frames: int = FRAMES, **how: Any) -> Build:
    return Build(height=HEIGHT, width=WIDTH, frames=frames, guidance=guidance, device=CPU, **how)


def half(guidance: float = 5.0, weights: Any = "pretrained") -> Build:
    return build(guidance, weights=weights, dtype=torch.bfloat16, frozen=torch.bfloat16)


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def folders(random_wan: Path, random_wan_i2v: Path) -> dict[str, Path]:
    return {"wan": random_wan, "wan-i2v": random_wan_i2v}


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first frame of another size and shape than the video's."""
    path = tmp_path_factory.mktemp("frames") / "frame.png"
    Image.fromarray((np.arange(40 * 30 * 3) % 251).astype(np.uint8).reshape(40, 30, 3)).save(path)
    return path


@pytest.fixture(scope="module")
def pipes(folders: dict[str, Path]) -> dict[str, Any]:
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline
    from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline

    made: dict[str, Any] = {
        "wan": WanPipeline.from_pretrained(folders["wan"]),
        "wan-i2v": WanImageToVideoPipeline.from_pretrained(folders["wan-i2v"]),
    }
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def told(folders: dict[str, Path], frame: Path) -> Callable[[str], Condition]:
    """The encoded prompts of a kind; those of videos from a frame have the same."""

    def encoding(kind: str) -> Condition:
        return encoded(Wan(folders[kind], build()), PROMPTS, {p: str(frame) for p in PROMPTS if kind == "wan-i2v"})

    known = {kind: encoding(kind) for kind in KINDS}
    return known.__getitem__


class Stock(NamedTuple):
    steps: list[tuple[Tensor, Tensor, Tensor]]
    """Guided prediction, time and latents of every step."""
    videos: Tensor


@pytest.fixture(scope="module")
def plan():
    return branching(
        shifted_sigmas(STEPS, 3.0), slots=len(PROMPTS), fanout=[1] * STEPS, noise_level=[0.0] * STEPS, kernel="ode"
    )


@pytest.fixture(scope="module")
def stock(pipes: dict[str, Any], plan, frame: Path) -> Callable[[str, float], Stock]:
    """Runs of diffusers' pipelines from our root noise.

    Their checkpoints come with a multistep sampler that rounds its times; Euler's takes its place, on our sigmas.
    """
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    def run(kind: str, guidance: float) -> Stock:
        pipe, steps = pipes[kind], list[tuple[Tensor, Tensor, Tensor]]()
        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps = partial(scheduler.set_timesteps, sigmas=plan.sigmas[:-1].tolist())
        step = scheduler.step

        def watched(predicted: Tensor, time: Tensor, latents: Tensor, **keywords: Any) -> Any:
            steps.append((predicted, time, latents))
            return step(predicted, time, latents, **keywords)

        scheduler.step = watched
        pipe.scheduler = scheduler
        image = {"image": Image.open(frame)} if kind == "wan-i2v" else {}
        roots = Noise(seed=0, iteration=0).roots(plan.tree, plan.coupling, (4, 3, 4, 8))
        videos = pipe(
            prompt=PROMPTS,
            height=HEIGHT,
            width=WIDTH,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            latents=torch.from_numpy(roots),
            output_type="pt",
            **image,
        ).frames
        return Stock(steps, videos)

    runs: dict[tuple[str, float], Stock] = {}

    def once(kind: str, guidance: float) -> Stock:
        if (kind, guidance) not in runs:
            runs[kind, guidance] = run(kind, guidance)
        return runs[kind, guidance]

    return once


@torch.no_grad()
@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_velocity_is_the_pipelines_guided_prediction_at_every_step(folders, stock, told, plan, kind, guidance):
    policy, steps = Wan(folders[kind], build(guidance)), stock(kind, guidance).steps

    assert policy.calls_per_velocity == (2 if guidance > 1 else 1)
    assert [float(time) for _, time, _ in steps] == pytest.approx((1000 * plan.sigmas[:-1]).tolist())
    for wanted, time, latents in steps:
        velocity = policy.velocity(latents, time.expand(len(PROMPTS)) / 1000, told(kind))
        assert (velocity - wanted).norm() < 1e-6 * guidance * wanted.norm()  # guidance scales rounding too


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_an_ode_plan_samples_the_pipelines_videos(folders, stock, told, plan, kind, guidance):
    policy, videos = Wan(folders[kind], build(guidance)), stock(kind, guidance).videos
    sampled = rollout(policy, plan, told(kind), Noise(seed=0, iteration=0), chunk=2)

    decoded = policy.decode(sampled.x0)
    assert decoded.shape == (len(PROMPTS), FRAMES, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(decoded, videos, atol=1e-5, rtol=1e-5)
    assert videos.std() > 0.01


def test_a_video_is_decoded_alike_in_any_company(folders):
    policy = Wan(folders["wan"], build())
    x0 = torch.linspace(-2, 2, 3 * 4 * 3 * 4 * 8).view(3, 4, 3, 4, 8)

    torch.testing.assert_close(policy.decode(x0)[1:2], policy.decode(x0[1:2]), rtol=0, atol=1e-5)


LONG = "a red circle and " * 600
TEXTS = {
    "plain": "a red circle",
    "empty": "",
    "10,000 characters": LONG[:10_000],
    "no ASCII": "ein rötlicher Kreis, 紅い円 🔴",
    "to be cleaned": "  “a red”\n circle &amp;amp; a&nbsp;ring â€” two ",
}


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_encoded_prompts_are_the_pipelines(folders, pipes, kind, text):
    (ours, *_), length = Wan(folders["wan"], build()).encoder()(text, None), 512
    wanted, _ = pipes[kind].encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=length)

    same(ours, wanted[0])
    assert bool(ours[-1].any()) == (text == TEXTS["10,000 characters"])  # zeros fill up what is shorter


def test_a_first_frame_is_encoded_as_the_pipeline_does(folders, pipes, frame):
    pipe, image = pipes["wan-i2v"], Image.open(frame)
    _, seen, known = Wan(folders["wan-i2v"], build()).encoder()("a red circle", frame)
    first = pipe.video_processor.preprocess(image, height=HEIGHT, width=WIDTH)
    with torch.no_grad():
        wanted_seen = pipe.encode_image(image, CPU)
        _, wanted_known = pipe.prepare_latents(first, 1, 4, HEIGHT, WIDTH, FRAMES, torch.float32, CPU, None)

    same(seen, wanted_seen[0])
    same(known, wanted_known[0])
    assert known[:4, 0].eq(1).all()
    assert known[:4, 1:].eq(0).all()


def test_a_first_frame_is_encoded_alike_every_time(folders, frame):
    encode = Wan(folders["wan-i2v"], build()).encoder()
    for one, again in zip(encode("a ring", frame), encode("a ring", frame), strict=True):
        assert torch.equal(one, again)


@torch.no_grad()
def test_every_row_has_its_own_first_frame(folders, frame, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 20), (250, 10, 10)).save(other)
    policy = Wan(folders["wan-i2v"], build())
    both = encoded(policy, PROMPTS[:2], {PROMPTS[0]: str(frame), PROMPTS[1]: str(other)})
    x, sigma = torch.ones(2, *policy.latent_shape), torch.full((2,), 0.7)

    apart = [policy.velocity(x[:1], sigma[:1], both.rows(torch.tensor([row]))) for row in (0, 1)]
    torch.testing.assert_close(policy.velocity(x, sigma, both), torch.cat(apart), atol=1e-5, rtol=1e-5)
    swapped = Condition(tensors=(both.tensors[0], *(t.flip(0) for t in both.tensors[1:])), negative=both.negative)
    assert (policy.velocity(x, sigma, swapped) - torch.cat(apart)).abs().amax((1, 2, 3, 4)).min() > 1e-3


def test_a_prompt_without_a_first_frame_is_named(folders):
    encode = Wan(folders["wan-i2v"], build()).encoder()
    with pytest.raises(InputError, match="'a red circle' has no image"):
        encode("a red circle", None)


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_first_frame_that_cannot_be_read_is_named(folders, tmp_path, content):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    encode = Wan(folders["wan-i2v"], build()).encoder()
    with pytest.raises(InputError, match=r"broken\.png is no image"):
        encode("a red circle", path)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_through_both_halves_of_guidance(folders, told, kind):
    condition = told(kind).rows(torch.tensor([0]))
    assert condition.negative is not None
    without = Condition(tensors=(condition.negative[0][None], *condition.tensors[1:]))
    x, sigma = torch.linspace(-1, 1, 4 * 3 * 4 * 8).view(1, 4, 3, 4, 8), torch.tensor([0.6])

    def gradient(guidance: float, told: Condition) -> Tensor:
        policy = Wan(folders[kind], build(guidance))
        policy.velocity(x, sigma, told).square().sum().sqrt().backward()
        return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])

    def plain(told: Condition, upstream: Tensor) -> Tensor:
        policy = Wan(folders[kind], build(1.0))
        (policy.velocity(x, sigma, told) * upstream).sum().backward()
        return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])

    with torch.no_grad():
        velocity = Wan(folders[kind], build(5.0)).velocity(x, sigma, condition)
    upstream = velocity / velocity.square().sum().sqrt()
    wanted = plain(condition, 5.0 * upstream) + plain(without, -4.0 * upstream)
    found = gradient(5.0, condition)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert plain(without, upstream).norm() > 1e-3 * wanted.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_leave_gradients_as_they_are(folders, told, kind):
    def gradient(policy: Wan) -> Tensor:
        x = torch.linspace(-1, 1, 2 * 4 * 3 * 4 * 8).view(2, 4, 3, 4, 8)
        policy.velocity(x, torch.tensor([0.6, 0.9]), told(kind).rows(torch.tensor([0, 1]))).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])

    plain, again = Wan(folders[kind], build()), Wan(folders[kind], build())
    enable_gradient_checkpointing(again)
    assert again.model.gradient_checkpointing
    torch.testing.assert_close(gradient(again), gradient(plain), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 9, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_videos_of_any_length_go_through_in_chunks(folders, frame, kind, frames):
    policy = Wan(folders[kind], build(frames=frames))
    condition = encoded(policy, PROMPTS, {p: str(frame) for p in PROMPTS})
    x = torch.linspace(-1, 1, 3 * 4 * ((frames - 1) // 4 + 1) * 32).view(3, *policy.latent_shape)
    sigma, slot = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0, 2, 1])

    whole = velocities(policy, x, sigma, condition, slot, chunk=3)
    torch.testing.assert_close(velocities(policy, x, sigma, condition, slot, chunk=1), whole, atol=1e-5, rtol=1e-5)
    assert policy.decode(x).shape == (3, frames, 3, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": 8}, "frames=8: this model makes videos of 4k[+]1 frames; the nearest is 9"),
        ({"height": 12}, r"resolution=\[12, 32\]: .*multiples of 8"),
        ({"width": 36}, r"resolution=\[16, 36\]: .*multiples of 8"),
    ],
)
def test_a_size_that_cuts_a_token_is_refused_before_and_by_the_adapter(folders, change, said):
    sizes = {"height": HEIGHT, "width": WIDTH, "frames": FRAMES} | change
    with pytest.raises(InputError, match=said):
        check_size(resolve_model(str(folders["wan"])), sizes["height"], sizes["width"], sizes["frames"])
    with pytest.raises(InputError, match=r"multiples of 8|of 4k\+1"):
        Wan(folders["wan"], Build(**sizes, guidance=5.0, device=CPU))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("model_index.json", {"boundary_ratio": 0.875}, "is of Wan2.2, by its boundary_ratio"),
        ("model_index.json", {"expand_timesteps": True}, "is of Wan2.2, by its expand_timesteps"),
        ("transformer/config.json", {"pos_embed_seq_len": 514}, "a first and a last frame"),
    ],
)
def test_a_model_of_another_kind_is_refused(folders, tmp_path, part, change, said):
    folder = tmp_path / "other"
    shutil.copytree(folders["wan-i2v"], folder)
    config = json.loads((folder / part).read_text())
    (folder / part).write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=said):
        resolve_model(str(folder))


def test_what_newer_diffusers_writes_of_a_wan_2_1_is_no_wan_2_2(folders, tmp_path):
    folder = tmp_path / "newer"
    shutil.copytree(folders["wan"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    without = {"transformer_2": [None, None], "boundary_ratio": None, "expand_timesteps": False}
    (folder / "model_index.json").write_text(json.dumps(index | without))
    assert resolve_model(str(folder)).family.media == "video"


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_the_changed_model_and_the_rest_as_it_was(folders, told, tmp_path, kind):
    policy = Wan(folders[kind], build())
    for parameter in policy.model.parameters():
        parameter.mul_(1.1)
    policy.save(tmp_path / "saved")

    x, sigma = torch.ones(3, *policy.latent_shape), torch.full((3,), 0.5)
    velocity = policy.velocity(x, sigma, told(kind))
    assert torch.equal(Wan(tmp_path / "saved", build()).velocity(x, sigma, told(kind)), velocity)
    assert not torch.equal(Wan(folders[kind], build()).velocity(x, sigma, told(kind)), velocity)
    rest = [path for path in folders[kind].rglob("*") if path.is_file() and "transformer" not in path.parts]
    assert rest
    for path in rest:
        assert (tmp_path / "saved" / path.relative_to(folders[kind])).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_pipeline_is_loaded_by_diffusers(folders, pipes, tmp_path, kind):
    policy = Wan(folders[kind], build())
    policy.save(tmp_path / "saved")
    again = type(pipes[kind]).from_pretrained(tmp_path / "saved")
    for ours, theirs in zip(policy.model.parameters(), again.transformer.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_on_all_attention_and_alone_are_trained(folders, told, kind):
    policy, plain = Wan(folders[kind], build()), Wan(folders[kind], build())
    add_lora(policy, rank=2, alpha=4.0, seed=0)
    x, sigma = torch.ones(3, *policy.latent_shape), torch.full((3,), 0.5)
    velocity = policy.velocity(x, sigma, told(kind))
    same(velocity, plain.velocity(x, sigma, told(kind)))

    velocity.square().mean().backward()
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert {name for name, p in policy.model.named_parameters() if p.grad is not None} == trained
    layers = {name.split(".lora_")[0].partition(".attn")[2] for name in trained}
    both = {f"{block}.{layer}" for block in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert layers == both | ({"2.add_k_proj", "2.add_v_proj"} if kind == "wan-i2v" else set())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_saved_adapters_are_loaded_by_diffusers_and_compute_the_same(folders, pipes, told, tmp_path, kind):
    policy = Wan(folders[kind], build(1.0))
    add_lora(policy, rank=2, alpha=4.0, seed=0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.03)
    policy.save(tmp_path / "lora")

    pipe = type(pipes[kind]).from_pretrained(folders[kind])
    pipe.load_lora_weights(tmp_path / "lora")
    loaded = Wan(folders[kind], build(1.0))
    x, sigma = torch.ones(3, *policy.latent_shape), torch.full((3,), 0.5)
    velocity, before = (one.velocity(x, sigma, told(kind)) for one in (policy, loaded))
    loaded.model = pipe.transformer
    same(loaded.velocity(x, sigma, told(kind)), velocity)
    assert (velocity - before).abs().max() > 1e-3


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_architecture_keeps_in_fp32_stays_in_it(folders, pipes, kind, weights):
    wanted = type(pipes[kind].transformer).from_pretrained(folders[kind] / "transformer", torch_dtype=torch.bfloat16)
    model = Wan(folders[kind], half(weights=weights)).model

    types = {name: p.dtype for name, p in model.named_parameters()}
    assert types == {name: p.dtype for name, p in wanted.named_parameters()}
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_no_farther_from_fp32_than_the_stock_model_in_bf16(folders, pipes, told, kind):
    low, whole = Wan(folders[kind], half(1.0)), Wan(folders[kind], build(1.0))
    theirs = type(pipes[kind].transformer).from_pretrained(folders[kind] / "transformer", torch_dtype=torch.bfloat16)
    x, sigma = torch.linspace(-2, 2, 3 * 4 * 3 * 4 * 8).view(3, 4, 3, 4, 8), torch.tensor([0.9, 0.5, 0.1])
    exact, ours = whole.velocity(x, sigma, told(kind)), low.velocity(x, sigma, told(kind))
    text, *given = (t.bfloat16() for t in told(kind).tensors)
    stock = theirs(
        hidden_states=torch.cat([x.bfloat16(), *given[1:]], dim=1),
        timestep=1000 * sigma,
        encoder_hidden_states=text,
        encoder_hidden_states_image=given[0] if given else None,
    ).sample.float()

    assert ours.dtype == torch.float32
    assert 0 < (ours - exact).norm() < 1.5 * (stock - exact).norm()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_need_configurations_alone(folders, tmp_path, kind):
    for path in folders[kind].rglob("*.json"):
        if path.parent == folders[kind] or path.parent.name in ("transformer", "vae"):
            (tmp_path / "described" / path.parent.relative_to(folders[kind])).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "described" / path.relative_to(folders[kind]))
    policy = Wan(tmp_path / "described", build(weights="random"))

    condition = encoded(policy, PROMPTS)
    velocity = policy.velocity(torch.ones(3, *policy.latent_shape), torch.full((3,), 0.5), condition)
    assert velocity.shape == (3, *policy.latent_shape)
    assert velocity.isfinite().all()
    assert not torch.equal(condition.tensors[0][0], condition.tensors[0][1])


def test_the_transformer_is_trained_and_the_rest_is_frozen(folders):
    policy = Wan(folders["wan"], build())
    assert all(parameter.requires_grad for parameter in policy.model.parameters())
    assert not any(parameter.requires_grad for parameter in policy.vae.parameters())
