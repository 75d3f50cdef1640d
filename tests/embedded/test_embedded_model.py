import json
from pathlib import Path

import numpy as np
import pytest
import torch

import bench.embedded
from bench.embedded import world
from bench.embedded.training import seeded
from rewards.shapes import Graded, Strict

HERE = Path(bench.embedded.__file__).parent
FLUX, CLIP = HERE / "tiny-flux", HERE / "tiny-clip"
MADE = json.loads((HERE / "made.json").read_text())
PIPELINE = {"guidance_scale": 3.5, "num_inference_steps": 12, "max_sequence_length": 12, "height": 32, "width": 32}


def _bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_folders_are_small_enough_to_ship():
    assert 1e6 < _bytes(FLUX) <= 6e6
    assert 1e6 < _bytes(CLIP) <= 3e6


def test_the_record_says_how_the_model_was_made():
    assert {"tokenizers", "vae", "flux", "scorer", "versions"} <= set(MADE)
    assert all(MADE[stage]["seconds"] > 0 and MADE[stage]["seed"] == 0 for stage in ("vae", "flux", "scorer"))
    assert MADE["vae"]["psnr"] > 30
    assert MADE["scorer"]["all"] > 0.9


def test_the_pipeline_folder_names_stock_classes():
    index = json.loads((FLUX / "model_index.json").read_text())
    assert index["_class_name"] == "FluxPipeline"
    assert index["transformer"] == ["diffusers", "FluxTransformer2DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]


def test_no_folder_remembers_where_it_was_made():
    configs = [path for folder in (FLUX, CLIP) for path in folder.rglob("*.json")]
    assert len(configs) >= 10
    assert not [path for path in configs if '_or_path": "/' in path.read_text()]


@pytest.mark.parametrize(("kind", "folder"), [("CLIPTokenizer", "tokenizer"), ("T5Tokenizer", "tokenizer_2")])
def test_tokenizers_spell_every_caption_back_within_twelve_tokens(kind, folder):
    import transformers

    tokenizer = getattr(transformers, kind).from_pretrained(FLUX / folder)
    assert tokenizer.model_max_length == 12
    captions = [world.caption(scene) for scene in world.scenes()]
    ids = tokenizer(captions).input_ids
    assert max(map(len, ids)) <= 12
    assert len({tuple(row) for row in ids}) == len(captions)
    for caption, row in zip(captions[::37], ids[::37], strict=True):
        assert tokenizer.decode(row, skip_special_tokens=True).strip() == caption


def test_the_scorer_reads_captions_as_the_pipeline_does():
    from transformers import CLIPTokenizer

    prompts = list(world.prompts("tune"))
    ids = [CLIPTokenizer.from_pretrained(folder)(prompts).input_ids for folder in (FLUX / "tokenizer", CLIP)]
    assert ids[0] == ids[1]


@pytest.fixture(scope="module")
def pipeline():
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(FLUX)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_the_stock_pipeline_draws_what_the_record_says(pipeline):
    prompts = list(world.prompts("heldout"))
    _, noise = seeded(0)
    images = pipeline(prompts, generator=noise, output_type="pt", **PIPELINE).images
    assert images.shape == (120, 3, 32, 32)
    group = np.zeros(120, dtype=np.int64)
    graded, strict = (reward()(images, prompts, group).mean() for reward in (Graded, Strict))
    assert graded == pytest.approx(MADE["flux"]["heldout/graded"], abs=0.06)
    assert strict == pytest.approx(MADE["flux"]["heldout/strict"], abs=0.12)
    assert strict < 0.6, "the base model must leave something to learn"


@pytest.mark.slow
def test_the_autoencoder_gives_pictures_back_and_centres_its_codes(pipeline):
    rng = seeded(0)[0]
    pictures = [world.draw(world.parse(prompt), rng) for prompt in world.prompts("heldout")]
    images = torch.from_numpy(world.render(pictures)) * 2 - 1
    with torch.no_grad():
        code = pipeline.vae.encode(images).latent_dist.mode()
        back = pipeline.vae.decode(code).sample.clamp(-1, 1)
    assert -10 * torch.log10((back - images).square().mean() / 4) > 30
    scaled = (code - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    assert abs(float(scaled.mean())) < 0.2
    assert 0.8 < float(scaled.std()) < 1.2


@pytest.mark.slow
def test_the_schedule_is_the_shifted_grid(pipeline):
    pipeline.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 10, 10))
    s = np.linspace(1.0, 0.0, 11)
    np.testing.assert_allclose(pipeline.scheduler.sigmas.numpy(), 3 * s / (1 + 2 * s), atol=1e-6)
