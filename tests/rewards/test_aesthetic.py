"""LAION's aesthetic predictors: two heads of one tower, that are not taken for each other."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scored import (
    check_a_broken_image_fails_alone,
    check_wrong_input,
    images,
    noise,
    scores,
    written,
)
from torch.nn import Dropout, Linear, Sequential
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from bench.contract import WebFile
from bench.embedded.training import seeded
from bench.scorers import transformers_clip
from bench.scorers.pixels import eight_bit, pictures
from rewards import aesthetic
from rewards.aesthetic import IMPROVED, LINEAR, REWARDS, Aesthetic, LinearAesthetic

BOTH = [Aesthetic, LinearAesthetic]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written("aesthetic", tmp_path_factory)


@pytest.fixture
def copy(folder, tmp_path):
    return Path(copytree(folder, tmp_path / "copy"))


def features(folder: Path, batch: torch.Tensor) -> np.ndarray:
    """Return the normalised features of images by the classes of transformers that upstream uses."""
    model: Any = CLIPModel.from_pretrained(folder).eval()
    told = CLIPImageProcessorPil.from_pretrained(folder)(images=pictures(eight_bit(batch)[0]), return_tensors="pt")
    with torch.no_grad():
        found = model.get_image_features(**told).pooler_output.double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_the_improved_head_is_five_layers_on_normalised_features(folder):
    state = torch.load(folder / IMPROVED.file, weights_only=True)
    widths = [len(state["layers.0.weight"][0]), *(len(state[f"layers.{at}.bias"]) for at in (0, 2, 4, 6, 7))]
    parts = [Linear(a, b) for a, b in pairwise(widths)]
    net = Sequential(parts[0], Dropout(0.2), parts[1], Dropout(0.2), parts[2], Dropout(0.1), parts[3], parts[4])
    net.load_state_dict({key.removeprefix("layers."): value for key, value in state.items()}, strict=True)
    batch = images(6, 60, 50)
    expected = net.eval().double()(torch.from_numpy(features(folder, batch)))[:, 0].detach().numpy()
    np.testing.assert_allclose(scores(Aesthetic(weights=str(folder)), batch), expected, atol=1e-6)


def test_the_linear_head_is_one_layer_over_ten(folder):
    state = torch.load(folder / LINEAR.file, weights_only=True)
    batch = images(6, 60, 50)
    expected = (features(folder, batch) @ state["weight"][0].double().numpy() + float(state["bias"])) / 10
    np.testing.assert_allclose(scores(LinearAesthetic(weights=str(folder)), batch), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(512, 512), (720, 480), (480, 832), (100, 60), (224, 224)])
def test_preprocessing_is_that_of_openais_clip_at_odd_sizes(tmp_path, size):
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"size": 224, "crop_size": 224, "resample": 3, "do_center_crop": true}')
    openai = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(MEAN, STD)])
    pixels = noise(*size)
    seen = transformers_clip.preprocessed(transformers_clip.image_processor(file), pixels)
    torch.testing.assert_close(seen[0], openai(pictures(pixels)[0]), atol=1e-5, rtol=0)


def test_a_crop_that_is_off_centre_by_half_a_pixel_starts_before_it(tmp_path):
    """OpenAI's own starts after it where the half is odd: a difference between the two that is known, and here."""
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"size": 224, "crop_size": 224, "resample": 3, "do_center_crop": true}')
    pixels = noise(224, 227)
    seen = transformers_clip.preprocessed(transformers_clip.image_processor(file), pixels)[0, 0] * STD[0] + MEAN[0]
    torch.testing.assert_close(seen * 255, pixels[0, 0, :, 1:225].float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_no_score_depends_on_batch_order_neighbours_or_prompts(folder, kind):
    batch = images(6, 50, 40)
    together = scores(kind(weights=str(folder)), batch)
    assert len(set(together)) == 6
    for other in (
        scores(kind(weights=str(folder), batch=4), batch),
        scores(kind(weights=str(folder)), batch.flip(0))[::-1],
        scores(kind(weights=str(folder)), batch, ["a cat"] * 6),
        [scores(kind(weights=str(folder)), batch[i : i + 1], ["a cat"])[0] for i in range(6)],
    ):
        np.testing.assert_allclose(other, together, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_a_broken_image_fails_alone(folder, kind):
    check_a_broken_image_fails_alone(kind(weights=str(folder)))


def test_wrong_images_are_refused(folder):
    check_wrong_input(Aesthetic(weights=str(folder)))


@pytest.mark.parametrize(("kind", "own", "other"), [(Aesthetic, IMPROVED, LINEAR), (LinearAesthetic, LINEAR, IMPROVED)])
def test_the_other_head_is_refused_by_its_name(copy, kind, own, other):
    (copy / own.file).write_bytes((copy / other.file).read_bytes())
    with pytest.raises(RuntimeError) as told:
        kind(weights=str(copy)).load()
    assert f"is not the head {own.file}: ValueError: it holds the head {other.file}" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("what", ["html", "list", "keys", "width", "cut"])
def test_a_damaged_head_is_refused_in_one_line(copy, kind, what):
    head = copy / next(file.file for file in kind.files if isinstance(file, WebFile))
    state = torch.load(head, weights_only=True)
    if what in ("list", "keys"):
        torch.save([1, 2] if what == "list" else {"net.0.weight": torch.zeros(1, 4)}, head)
    if what == "width":
        torch.save({key: value[..., :3] if "weight" in key else value for key, value in state.items()}, head)
    if what in ("html", "cut"):
        head.write_bytes(b"<!doctype html>" if what == "html" else head.read_bytes()[:900])
    with pytest.raises(RuntimeError, match=r"is not the head .*\.pth: .+") as told:
        kind(weights=str(copy)).load()
    assert "\n" not in str(told.value)


def full(which: WebFile) -> dict[str, torch.Tensor]:
    """Return numbers in the layout of a published head."""
    rng = seeded(0)[0]
    shapes = {"weight": (1, 768), "bias": (1,)}
    if which is IMPROVED:
        widths = (768, 1024, 128, 64, 16, 1)
        shapes = {}
        for at, old, new in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
            shapes |= {f"layers.{at}.weight": (new, old), f"layers.{at}.bias": (new,)}
    return {key: torch.from_numpy(rng.random(shape, dtype=np.float32)) for key, shape in shapes.items()}


@pytest.mark.parametrize(("which", "count", "parameters"), [(IMPROVED, 10, 927_969), (LINEAR, 2, 769)])
def test_the_published_heads_load_strictly_at_full_size(tmp_path, which, count, parameters):
    state = full(which)
    assert len(state) == count
    assert sum(value.numel() for value in state.values()) == parameters
    torch.save(state, tmp_path / which.file)
    head = aesthetic.head_of(tmp_path / which.file, which.file, 768)
    assert sum(weight.numel() + bias.numel() for weight, bias in head) == parameters
    assert which.size >= 4 * parameters  # the published file is that and a kilobyte or three
    assert which.size < 4 * parameters + 4000
    with pytest.raises(RuntimeError, match="do not lead from 512 features"):
        aesthetic.head_of(tmp_path / which.file, which.file, 512)


def test_the_published_tower_loads_strictly_at_full_size():
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = CLIPConfig(vision_config={**vision, "patch_size": 14}, projection_dim=768)
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1024,),
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, 1024),
        "visual_projection.weight": (768, 1024),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"vision_model.{name}.weight": (1024,), f"vision_model.{name}.bias": (1024,)}
    for at in range(24):
        own = f"vision_model.encoder.layers.{at}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= {f"{own}.self_attn.{part}.weight": (1024, 1024), f"{own}.self_attn.{part}.bias": (1024,)}
        for part in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{own}.{part}.weight": (1024,), f"{own}.{part}.bias": (1024,)}
        shapes |= {f"{own}.mlp.fc1.weight": (4096, 1024), f"{own}.mlp.fc1.bias": (4096,)}
        shapes |= {f"{own}.mlp.fc2.weight": (1024, 4096), f"{own}.mlp.fc2.bias": (1024,)}
    assert len(shapes) == 392
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 1) == 304.0
    model = transformers_clip.empty(config, images_only=True)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    model.load_state_dict(state, strict=True, assign=True)
    assert model.vision_model.config.hidden_act == "quick_gelu"


def test_the_tower_of_texts_is_left_out_and_the_rest_is_read_strictly(copy):
    tower = Aesthetic(weights=str(copy)).parts[0]
    assert not any("text" in key for key in tower.state_dict())
    state = load_file(copy / "model.safetensors")
    save_file(
        {key: value for key, value in state.items() if key != "visual_projection.weight"}, copy / "model.safetensors"
    )
    with pytest.raises(RuntimeError, match=r"is not CLIP ViT-L/14.*visual_projection\.weight"):
        Aesthetic(weights=str(copy)).load()


@pytest.mark.parametrize("name", REWARDS)
def test_missing_weights_are_told_with_file_size_and_command(tmp_path, monkeypatch, folder, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("ARBOR_CACHE", str(tmp_path))
    scorer = REWARDS[name]()
    with pytest.raises(FileNotFoundError, match=rf"`bench prepare --rewards {name}` fetches it"):
        scorer.load()
    here = tmp_path / "models--openai--clip-vit-large-patch14" / "snapshots" / "main"
    copytree(folder, here)
    with pytest.raises(
        FileNotFoundError, match=r"\.pth \((3\.71 MB|4\.07 kB)\) of https://raw\.githubusercontent\.com/"
    ):
        scorer.load()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / scorer.head_file.file).write_bytes(b"<!doctype html>")
    with pytest.raises(FileNotFoundError, match=rf"has 15 bytes and not {scorer.head_file.size:,}: delete it"):
        scorer.load()


def test_the_two_have_ranges_of_their_own():
    first, second = (REWARDS[name]().info for name in ("aesthetic", "aesthetic-linear"))
    assert (first.low, first.high, second.low, second.high) == (0.0, 10.0, 0.0, 1.0)
    assert first.model != second.model
    assert first.higher_is_better
    with pytest.raises(ValueError, match="batch=0"):
        Aesthetic(batch=0)
