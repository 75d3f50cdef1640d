import json
from pathlib import Path

import numpy as np
import pytest
import torch

import bench.embedded
from bench.embedded import moving
from bench.embedded.training import seeded
from rewards.moving import Caption, Motion

HERE = Path(bench.embedded.__file__).parent
WAN = HERE / "tiny-wan"
MADE = json.loads((HERE / "made.json").read_text())
PIPELINE = {
    "guidance_scale": 1.0,
    "num_inference_steps": 12,
    "max_sequence_length": 12,
    "height": 32,
    "width": 32,
    "num_frames": 9,
}


def test_the_folder_is_small_enough_to_ship():
    assert 3e6 < sum(path.stat().st_size for path in WAN.rglob("*") if path.is_file()) <= 6.5e6


def test_the_record_says_how_the_video_model_was_made():
    stages = ("wan-vae", "wan-decoder", "wan")
    assert all(MADE[stage]["seconds"] > 0 and MADE[stage]["seed"] == 0 for stage in stages)
    assert MADE["wan-decoder"]["psnr"] >= MADE["wan-vae"]["psnr"]


def test_the_pipeline_folder_names_stock_classes():
    index = json.loads((WAN / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]


def test_no_part_remembers_where_it_was_made():
    configs = list(WAN.rglob("*.json"))
    assert len(configs) >= 6
    assert not [path for path in configs if '_or_path": "/' in path.read_text()]


def test_the_tokenizer_spells_every_caption_back_within_twelve_tokens():
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer.from_pretrained(WAN / "tokenizer")
    assert tokenizer.model_max_length == 12
    captions = [moving.caption(scene) for scene in moving.scenes()]
    ids = tokenizer(captions).input_ids
    assert max(map(len, ids)) <= 12
    assert len({tuple(row) for row in ids}) == len(captions)
    for caption, row in zip(captions[::337], ids[::337], strict=True):
        assert tokenizer.decode(row, skip_special_tokens=True).strip() == caption


@pytest.fixture(scope="module")
def pipeline():
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    pipeline = WanPipeline.from_pretrained(WAN)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_the_stock_pipeline_draws_what_the_record_says(pipeline):
    prompts = list(moving.prompts("heldout"))
    _, noise = seeded(0)
    videos = pipeline(prompts, generator=noise, output_type="pt", **PIPELINE).frames
    assert videos.shape == (80, 9, 3, 32, 32)
    group = np.zeros(80, dtype=np.int64)
    assert Motion()(videos, prompts, group).mean() == pytest.approx(MADE["wan"]["heldout/motion"], abs=0.08)
    assert Caption()(videos, prompts, group).mean() == pytest.approx(MADE["wan"]["heldout/moving-caption"], abs=0.08)


@pytest.mark.slow
def test_guidance_has_something_to_compare(pipeline):
    prompts = list(moving.prompts("tune"))
    told, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=12)
    silent, _ = pipeline.encode_prompt([""] * 16, do_classifier_free_guidance=False, max_sequence_length=12)
    x = torch.zeros(16, 32, 3, 4, 4).normal_(generator=seeded(1)[1])
    time = torch.full((16,), 900.0)
    with torch.no_grad():
        both = [pipeline.transformer(x, time, text, return_dict=False)[0] for text in (told, silent)]
    assert (both[0] - both[1]).std() > 0.02


@pytest.mark.slow
def test_latents_are_centred_and_of_unit_scale(pipeline):
    from bench.embedded.make_wan_vae import bank, codes

    _, frames = bank(32, 99, careless=0.5)
    vae = pipeline.vae
    mean, std = (torch.tensor(x).view(-1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    z = (codes(vae, frames) - mean) / std
    assert z.shape == (32, 32, 3, 4, 4)
    assert abs(float(z.mean())) < 0.1
    assert 0.8 < float(z.std()) < 1.2
