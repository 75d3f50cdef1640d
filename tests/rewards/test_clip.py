"""The CLIP score: any model of open_clip, by its own transform, from files alone."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import open_clip as library
import pytest
import torch
from accelerate import init_empty_weights
from open_clip import transform as transforms
from PIL import Image
from safetensors.torch import load_file, save_file
from scored import (
    MEAN,
    PROMPTS,
    SIZES,
    STD,
    check_a_broken_image_fails_alone,
    check_independence,
    check_wrong_input,
    images,
    noise,
    scores,
    written,
)

from bench.scorers.pixels import eight_bit, pictures
from rewards import clip
from rewards.clip import DFN5B, ClipScore

open_clip: Any = library
made_by: Any = transforms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written("clip", tmp_path_factory)


@pytest.fixture(scope="module")
def tiny(folder):
    return ClipScore(weights=str(folder))


@pytest.fixture
def copy(folder, tmp_path):
    return Path(copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("size", SIZES)
def test_the_models_own_transform_squashes_by_pil(tiny, size):
    (picture,) = pictures(noise(*size))
    seen = tiny.parts[1](picture)
    squashed = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)) / 255.0
    np.testing.assert_allclose(seen.numpy(), ((squashed - MEAN) / STD).transpose(2, 0, 1), atol=1e-5)


def test_scores_are_those_of_open_clips_own_loader(folder, tiny):
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    batch = images(6, 60, 50)
    with torch.no_grad():
        seen = model.encode_image(
            torch.stack([transform(one) for one in pictures(eight_bit(batch)[0])]), normalize=True
        )
        said = model.encode_text(tokenizer(PROMPTS), normalize=True)
    np.testing.assert_allclose(scores(tiny, batch), (seen * said).sum(1).double(), atol=1e-6)


def test_another_transform_would_be_another_score(copy, tiny):
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "shortest"
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    batch = images(6, 90, 40)
    assert np.abs(scores(ClipScore(weights=str(copy)), batch) - scores(tiny, batch)).max() > 1e-3


def test_no_score_depends_on_batch_order_or_neighbours(folder):
    check_independence(ClipScore, weights=str(folder))


def test_a_broken_image_fails_alone(tiny):
    check_a_broken_image_fails_alone(tiny)


def test_wrong_images_are_refused(tiny):
    check_wrong_input(tiny)


def test_older_names_of_weights_do_as_well(copy, tiny):
    torch.save(load_file(copy / clip.SAFE), copy / "open_clip_pytorch_model.bin")
    (copy / clip.SAFE).unlink()
    batch = images(6, 40, 40)
    np.testing.assert_allclose(scores(ClipScore(weights=str(copy)), batch), scores(tiny, batch), atol=1e-7)


def test_a_tag_has_its_own_transform_where_the_weights_are_a_file(monkeypatch, copy):
    """Nothing but the file says what the transform of a tag is: that is in open_clip's table."""
    (copy / "open_clip_config.json").rename(copy / "tiny.json")
    sizes = json.loads((copy / "tiny.json").read_text())["model_cfg"]
    (copy / "tiny.json").write_text(json.dumps(sizes))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {"tiny": sizes})
    known = {"hf_hub": "someone/tiny/", "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", {"tiny": {"own": known}})
    scorer = ClipScore(model="tiny:own", weights=str(copy))
    model, transform, _ = scorer.parts
    assert model.visual.preprocess_cfg["mean"] == (0.5,) * 3
    (picture,) = pictures(noise(90, 40))
    squashed = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)) / 255.0
    np.testing.assert_allclose(transform(picture).numpy(), (squashed * 2 - 1).transpose(2, 0, 1), atol=1e-5)
    batch = images(6, 40, 40)
    assert np.isfinite(scores(scorer, batch)).all()


def test_the_default_is_the_papers_model_with_its_licence_said():
    files = ClipScore().files
    assert {file.repository for file in files} == {DFN5B} == {"apple/DFN5B-CLIP-ViT-H-14-378"}
    assert [file.paths[0] for file in files] == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert "Apple" in files[1].licence
    assert files[1].restrictions
    assert "378" in ClipScore().info.preprocessing


def test_dfn5b_has_986_million_parameters_and_squashes_to_378_pixels():
    known = clip.table("ViT-H-14-378-quickgelu", "dfn5b")
    with init_empty_weights():
        model = open_clip.create_model("ViT-H-14-378-quickgelu", device="meta", force_preprocess_cfg=known)
    assert len(model.state_dict()) == 686
    assert (
        sum(value.numel() for value in model.parameters()) == 986_109_441 + (27**2 - 16**2) * 1280
    )  # positions of HPS's ViT-H
    seen = made_by.image_transform_v2(made_by.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    pixels = noise(100, 60)[0].permute(1, 2, 0).numpy()
    squashed = np.asarray(Image.fromarray(pixels).resize((378, 378), Image.Resampling.BICUBIC)) / 255.0
    found = seen(Image.fromarray(pixels))
    np.testing.assert_allclose(found.numpy(), ((squashed - MEAN) / STD).transpose(2, 0, 1), atol=1e-5)
    assert type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.parametrize(
    ("model", "repository"),
    [
        ("hf-hub:someone/model", "someone/model"),
        ("someone/model", "someone/model"),
        ("ViT-H-14-378-quickgelu:dfn5b", DFN5B),
        ("ViT-L-14-quickgelu:openai", "timm/vit_large_patch14_clip_224.openai"),
        ("ViT-B-32:laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_a_model_is_a_repository_of_the_hub(model, repository):
    scorer = ClipScore(model=model)
    assert {file.repository for file in scorer.files} == {repository}
    assert repository in scorer.info.reference


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("ViT-L-14", "OWNER/NAME of the hub or ARCHITECTURE:TAG"),
        ("a/b/c", "OWNER/NAME of the hub or ARCHITECTURE:TAG"),
        ("hf-hub:model", "OWNER/NAME of the hub or ARCHITECTURE:TAG"),
        ("ViT-L-14:laion3b", "has the tags openai, "),
        ("ViT-Z-14:openai", "it has no weights of ViT-Z-14"),
        ("ViT-L-14:openai", "name ViT-L-14-quickgelu:openai"),
        ("ViT-B-16-SigLIP:webli", "model=timm/ViT-B-16-SigLIP"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_with_the_remedy(model, said):
    with pytest.raises(ValueError, match=said) as told:
        _ = ClipScore(model=model).info
    assert "\n" not in str(told.value)


def test_a_tag_of_a_place_outside_the_hub_asks_for_a_folder(monkeypatch):
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", {"ViT-B-32": {"web": {"url": "https://x", "hf_hub": ""}}})
    with pytest.raises(ValueError, match="give weights=FOLDER"):
        _ = ClipScore(model="ViT-B-32:web").files


def test_a_name_of_open_clip_without_open_clip_names_the_extra(monkeypatch):
    monkeypatch.setattr(clip, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'arbor-bench\[rewards\]'"):
        _ = ClipScore(model="ViT-B-32:openai").files


def test_tokenizers_files_are_wanted_only_where_there_are_some():
    files = ClipScore(model="someone/model").files
    assert [file.file for file in files if not file.optional] == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    assert "tokenizer.json" in [file.file for file in files if file.optional]


def test_missing_weights_are_told_with_file_size_and_command(tmp_path, monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"`bench prepare --rewards clip` fetches it"):
        ClipScore().load()
    here = tmp_path / "models--apple--DFN5B-CLIP-ViT-H-14-378" / "snapshots" / "main"
    here.mkdir(parents=True)
    (here / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"open_clip_model\.safetensors \(about 3\.95 GB\) of apple/DFN5B"):
        ClipScore().load()


@pytest.mark.parametrize("what", ["key", "cut", "json", "no model", "text tower"])
def test_another_checkpoint_is_refused_in_one_line(copy, what):
    weights, config = copy / clip.SAFE, copy / "open_clip_config.json"
    if what == "key":
        save_file({key: value for key, value in load_file(weights).items() if key != "visual.proj"}, weights)
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    if what == "json":
        config.write_text("{")
    if what == "no model":
        config.write_text("{}")
    if what == "text tower":
        described = json.loads(config.read_text())
        described["model_cfg"]["text_cfg"]["hf_model_name"] = "xlm-roberta-base"
        config.write_text(json.dumps(described))
    with pytest.raises(RuntimeError, match="is not a CLIP that open_clip reads") as told:
        ClipScore(weights=str(copy)).load()
    assert "\n" not in str(told.value)
    assert str(copy) in str(told.value)


def test_of_a_folder_nothing_is_claimed_about_the_published_model(folder):
    info = ClipScore(weights=str(folder)).info
    assert "378" not in info.preprocessing
    assert "DFN5B" not in info.model
    with pytest.raises(ValueError, match="batch=0"):
        ClipScore(batch=0)
