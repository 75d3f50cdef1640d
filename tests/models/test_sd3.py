"""What is true of SD3's adapter alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models.families import CASES, PROMPTS, point

from bench.models.parts import negative_first
from bench.models.sd3 import Sd3
from bench.models.source import check_size, resolve_model
from bench.policy import Condition, encoded
from bench.registry import InputError

CASE = CASES["sd3"]


@pytest.fixture(scope="module")
def policy(random_sd3: Path) -> Sd3:
    return CASE.policy(random_sd3)


@pytest.fixture(scope="module")
def without_t5(random_sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose index says that it has no third text encoder."""
    folder = tmp_path_factory.mktemp("without-t5") / "sd3"
    shutil.copytree(random_sd3, folder, ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3"))
    index = json.loads((folder / "model_index.json").read_text())
    nothing = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index | nothing))
    return folder


@pytest.mark.parametrize("prompt", [PROMPTS[1], ""])
def test_a_pipeline_without_t5_has_zeros_in_its_place(without_t5: Path, prompt: str):
    pipe = CASE.load(without_t5, text_encoder_3=None, tokenizer_3=None)  # diffusers wants it said
    policy = CASE.policy(resolve_model(str(without_t5)).folder)
    with torch.no_grad():
        wanted, _, _, _ = pipe.encode_prompt([prompt], None, None)  # at its own default, 256 tokens
    _, tokens = encoded(policy, [prompt]).tensors

    torch.testing.assert_close(tokens, wanted, atol=1e-6, rtol=1e-6)
    assert tokens[:, 77:].shape[1] == 256
    assert not tokens[:, 77:].any()
    assert tokens[:, :77].any()


def test_latents_are_as_the_vae_has_them(policy: Sd3):
    assert policy.latent_shape == (4, 8, 12)
    assert policy.decode(torch.zeros(2, 4, 8, 12)).shape == (2, 3, 32, 48)


@torch.no_grad()
def test_one_forward_computes_both_halves_the_empty_prompts_first(policy: Sd3):
    x, sigma, condition = point(policy)
    seen = []
    hook = policy.model.register_forward_pre_hook(lambda _, args, given: seen.append(given), with_kwargs=True)
    policy.velocity(x, sigma, condition)
    hook.remove()

    (given,) = seen
    assert condition.negative is not None
    assert torch.equal(given["hidden_states"], torch.cat([x, x]))
    assert torch.equal(given["encoder_hidden_states"][:3], condition.negative[1].expand(3, -1, -1))
    assert torch.equal(given["encoder_hidden_states"][3:], condition.tensors[1])
    assert torch.equal(given["pooled_projections"][3:], condition.tensors[0])
    assert torch.equal(given["timestep"], 1000 * torch.cat([sigma, sigma]))


def test_guidance_of_one_or_less_is_one_call_of_the_prompt(random_sd3: Path):
    one, half = CASE.policy(random_sd3, guidance=1.0), CASE.policy(random_sd3, guidance=0.5)
    assert (one.calls_per_velocity, half.calls_per_velocity) == (1, 1)
    arguments = point(one)
    assert arguments[2].negative is None
    with torch.no_grad():
        assert torch.equal(one.velocity(*arguments), half.velocity(*arguments))


def test_guidance_without_an_empty_prompt_is_refused(policy: Sd3):
    with pytest.raises(ValueError, match="the empty prompt"):
        negative_first(Condition(tensors=(torch.ones(2, 3),)))


def test_a_size_beyond_the_table_of_positions_is_refused(random_sd3: Path):
    check_size(resolve_model(str(random_sd3)), 256, 256, 1)
    with pytest.raises(InputError, match=r"^resolution=\[256, 264\]: .* at most 256 pixels a side$"):
        check_size(resolve_model(str(random_sd3)), 256, 264, 1)
    with pytest.raises(ValueError, match="256 x 264 pixels: sides are at most 256"):
        CASE.policy(random_sd3, height=256, width=264)
    largest = CASE.policy(random_sd3, height=256, width=256, guidance=1.0)
    with torch.no_grad():
        assert largest.velocity(*point(largest)).isfinite().all()
