"""PickScore: its scales, preprocessing by PIL, its own tokens, and old checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
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
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from bench.scorers import transformers_clip
from bench.scorers.pixels import eight_bit, pictures
from rewards import pickscore
from rewards.pickscore import PickScore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written("pickscore", tmp_path_factory)


@pytest.fixture(scope="module")
def tiny(folder):
    return PickScore(weights=str(folder))


@pytest.fixture
def copy(folder, tmp_path):
    return Path(copytree(folder, tmp_path / "copy"))


def seen_by_pil(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return what the model sees of an 8-bit image [height, width, 3]: PIL's resize, and arithmetic."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = (
        side if width == short else int(side * width / short),
        side if height == short else int(side * height / short),
    )
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    cropped = resized[top : top + side, left : left + side] / 255.0
    return ((cropped - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_is_pils_at_odd_sizes(tmp_path, size):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": 224, "crop_size": 224, "resample": 3, "do_center_crop": True}))
    pixels = noise(*size)
    seen = transformers_clip.preprocessed(transformers_clip.image_processor(file), pixels)
    assert seen.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(seen[0], seen_by_pil(pixels[0].permute(1, 2, 0).numpy(), 224), atol=1e-5)


def test_the_processor_of_torchvision_would_see_something_else(folder, tiny):
    pixels = noise(100, 60)
    other = CLIPImageProcessor.from_pretrained(folder)(images=pictures(pixels), return_tensors="pt")["pixel_values"]
    assert type(tiny.parts[1]).__name__ == "CLIPImageProcessorPil"
    assert (other - transformers_clip.preprocessed(tiny.parts[1], pixels)).abs().max() > 0.01


def test_scores_are_those_of_transformers_own_loader(folder, tiny):
    model = CLIPModel.from_pretrained(folder).eval()
    processor: Any = CLIPProcessor.from_pretrained(folder, backend="pil")
    batch = images(6, 60, 50)
    told = processor(
        text=PROMPTS,
        images=pictures(eight_bit(batch)[0]),
        padding=True,
        truncation=True,
        max_length=77,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**told).logits_per_image.diagonal()
    expected = logits.double().numpy() / math.exp(4.6052)
    np.testing.assert_allclose(scores(tiny, batch), expected, atol=1e-6)


def test_the_scales_are_multiples_of_the_cosine(folder, tiny):
    batch = images(6, 40, 40)
    cosine, logit, div26 = (
        scores(PickScore(weights=str(folder), scale=scale), batch) for scale in ("cosine", "logit", "div26")
    )
    np.testing.assert_array_equal(cosine, scores(tiny, batch))
    np.testing.assert_allclose(logit / cosine, math.exp(4.6052), rtol=1e-5)
    np.testing.assert_allclose(logit / div26, 26, rtol=1e-6)


def test_unit_and_range_follow_the_scale():
    told = {scale: PickScore(scale=scale).info for scale in ("cosine", "logit", "div26")}
    assert {scale: info.unit for scale, info in told.items()} == {
        "cosine": "cosine",
        "logit": "logit",
        "div26": "logit / 26",
    }
    assert [info.high for info in told.values()] == [1.0, 100.0, 100 / 26]
    assert all(info.low == -info.high and info.higher_is_better and info.pixels == "uint8" for info in told.values())


@pytest.mark.parametrize(
    ("option", "said"), [({"scale": "percent"}, "cosine, logit, div26"), ({"batch": 0}, "batch=0")]
)
def test_a_wrong_option_is_refused_with_the_remedy(option, said):
    with pytest.raises((ValueError, TypeError), match=f"{said}|Literal"):
        PickScore(**option)


def test_no_score_depends_on_batch_order_or_neighbours(folder):
    check_independence(PickScore, weights=str(folder))


def test_a_broken_image_fails_alone(tiny):
    check_a_broken_image_fails_alone(tiny)


def test_wrong_images_are_refused(tiny):
    check_wrong_input(tiny)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("a dog\u2019s \u201cdinner\u201d", [49406, 320, 1929, 728, 503, 338, 728, 506, 2571, 728, 507, 49407]),
        ("Tom &amp; Jerry", [49406, 2435, 261, 6259, 282, 9164, 49407]),
    ],
)
def test_curly_quotes_and_html_keep_their_own_tokens(tiny, prompt, ids):
    import open_clip

    read = transformers_clip.tokens(tiny.parts[2], [prompt], 77)
    assert read["input_ids"][0, : len(ids)].tolist() == ids
    assert int(read["attention_mask"].sum()) == len(ids)
    assert open_clip.tokenize([prompt])[0, : len(ids)].tolist() != ids


def test_a_long_prompt_is_cut_to_77_tokens_and_still_ends(tiny):
    read = transformers_clip.tokens(tiny.parts[2], ["red " * 300], 77)["input_ids"]
    assert read.shape == (1, 77)
    assert int(read[0, -1]) == 49407


def test_the_features_are_read_from_outputs_and_from_tensors():
    value = torch.ones(2, 3)
    assert pickscore.features(value) is value
    assert pickscore.features(SimpleNamespace(pooler_output=value)) is value


def test_the_end_of_text_of_old_configurations_is_found(tiny, copy):
    config = json.loads((copy / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == 2
    config["text_config"]["eos_token_id"] = 49407
    (copy / "config.json").write_text(json.dumps(config))
    batch = images(6, 40, 40)
    np.testing.assert_allclose(scores(PickScore(weights=str(copy)), batch), scores(tiny, batch), atol=1e-7)


def test_the_fields_of_a_configuration_of_2022_are_taken(tiny, copy):
    config = json.loads((copy / "config.json").read_text())
    old = {"_name_or_path": "x", "torch_dtype": "float32", "transformers_version": None, "_commit_hash": None}
    more = {"return_dict": True, "output_attentions": False, "pruned_heads": {}, "dropout": 0.0, "pad_token_id": 1}
    config |= old | {
        "text_config_dict": config["text_config"],
        "vision_config_dict": config["vision_config"],
        "text_config": config["text_config"] | more,
    }
    (copy / "config.json").write_text(json.dumps(config))
    batch = images(6, 40, 40)
    np.testing.assert_allclose(scores(PickScore(weights=str(copy)), batch), scores(tiny, batch), atol=1e-7)


def test_positions_among_the_weights_are_passed_over(folder, tiny):
    held = load_file(folder / "model.safetensors")
    assert {key for key in held if "position_ids" in key} == set(transformers_clip.BUFFERS)
    assert set(held) - set(tiny.parts[0].state_dict()) == set(transformers_clip.BUFFERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_torch_saved_do_as_well_and_are_single_precision_in_memory(copy, tiny, dtype):
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()},
        copy / "pytorch_model.bin",
    )
    other = PickScore(weights=str(copy))
    batch = images(6, 40, 40)
    np.testing.assert_allclose(scores(other, batch), scores(tiny, batch), atol=1e-7 if dtype == torch.float32 else 2e-3)
    assert {value.dtype for value in other.parts[0].parameters()} == {torch.float32}
    assert other.info.revision != tiny.info.revision


def layers(name: str, count: int, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for at in range(count):
        own = f"{name}.encoder.layers.{at}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= {f"{own}.self_attn.{part}.weight": (width, width), f"{own}.self_attn.{part}.bias": (width,)}
        for part in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{own}.{part}.weight": (width,), f"{own}.{part}.bias": (width,)}
        shapes |= {f"{own}.mlp.fc1.weight": (inner, width), f"{own}.mlp.fc1.bias": (inner,)}
        shapes |= {f"{own}.mlp.fc2.weight": (width, inner), f"{own}.mlp.fc2.bias": (width,)}
    return shapes


def published() -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of PickScore's model.safetensors, without positions."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_projection.weight": (1024, 1024),
        "visual_projection.weight": (1024, 1280),
        "text_model.embeddings.position_embedding.weight": (77, 1024),
        "text_model.embeddings.token_embedding.weight": (49408, 1024),
        "vision_model.embeddings.class_embedding": (1280,),
        "vision_model.embeddings.patch_embedding.weight": (1280, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, 1280),
    }
    for name, width in (
        ("text_model.final_layer_norm", 1024),
        ("vision_model.pre_layrnorm", 1280),
        ("vision_model.post_layernorm", 1280),
    ):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes | layers("text_model", 24, 1024, 4096) | layers("vision_model", 32, 1280, 5120)


def test_the_published_layout_loads_strictly_at_full_size():
    shared = {"num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 1024}
    config = CLIPConfig(
        projection_dim=1024,
        text_config={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, **shared},
        vision_config={
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "patch_size": 14,
            **shared,
        },
    )
    shapes = published()
    assert len(shapes) == 910
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 1) == 986.1
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    model = transformers_clip.empty(config)
    model.load_state_dict(state, strict=True, assign=True)
    assert {buffer.device.type for buffer in model.buffers()} == {"cpu"}


def test_missing_weights_are_told_with_file_size_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"config\.json.*`bench prepare --rewards pickscore` fetches it"):
        PickScore().load()
    here = tmp_path / "models--yuvalkirstain--PickScore_v1" / "snapshots" / "main"
    here.mkdir(parents=True)
    (here / "config.json").write_text("{}")
    (here / "preprocessor_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors \(about 3\.94 GB\) of yuvalkirstain/PickScore_v1"):
        PickScore().load()


def _damage(copy: Path, what: str) -> None:
    weights = copy / "model.safetensors"
    state = load_file(weights)
    if what == "key":
        save_file({key: value for key, value in state.items() if key != "logit_scale"}, weights)
    if what == "shape":
        save_file(state | {"visual_projection.weight": torch.zeros(4, 4)}, weights)
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    if what == "model":
        (copy / "config.json").write_text('{"model_type": "blip"}')
    if what == "json":
        (copy / "config.json").write_text("{")
    if what == "processor":
        (copy / "preprocessor_config.json").write_text("[]")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("key", r"model\.safetensors is not PickScore's weights.*logit_scale"),
        ("shape", r"model\.safetensors is not PickScore's weights.*size mismatch"),
        ("cut", r"model\.safetensors is not PickScore's weights"),
        ("model", r"config\.json is not a configuration of a CLIP.*blip"),
        ("json", r"config\.json is not a configuration of a CLIP"),
        ("processor", r"preprocessor_config\.json is not a preprocessor_config"),
    ],
)
def test_another_checkpoint_is_refused_in_one_line(copy, what, said):
    _damage(copy, what)
    with pytest.raises(RuntimeError, match=said) as told:
        PickScore(weights=str(copy)).load()
    assert "\n" not in str(told.value)


def test_a_vocabulary_of_another_model_is_refused(copy):
    words = json.loads((copy / "vocab.json").read_text())
    (copy / "vocab.json").write_text(json.dumps(words | {"more</w>!": 49408}))
    with pytest.raises(RuntimeError, match=r"vocab\.json has 49,409 tokens, and .* knows 49,408"):
        PickScore(weights=str(copy)).load()
