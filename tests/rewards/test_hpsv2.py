"""HPS-v2.1: preprocessing, tokens, the layout of its weights, and what is easily got wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
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

from bench.contract import HubFile
from rewards import hpsv2
from rewards.hpsv2 import HPSv2

TOKENS = {
    "a dog\u2019s \u201cdinner\u201d": [49406, 320, 1929, 568, 257, 2571, 257, 49407],
    "Tom &amp; Jerry": [49406, 2435, 261, 9164, 49407],
    "  A   CAT\n": [49406, 320, 2368, 49407],
    "caf\u00e9 \U0001f600 \u732b": [49406, 15304, 7334, 163, 234, 360, 49407],
    "": [49406, 49407],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written("hpsv2.1", tmp_path_factory)


@pytest.fixture(scope="module")
def tiny(folder):
    return HPSv2(weights=str(folder))


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    return np.where(x < 1, near, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0.0))


def resampling(old: int, new: int, antialias: bool) -> np.ndarray:
    """Return the matrix of a bicubic resize of one axis; the two ways differ in the kernel's a, too."""
    scale = old / new
    wide = max(scale, 1.0) if antialias else 1.0
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * scale
        reach = range(int(np.floor(centre - 2 * wide)) - 1, int(np.ceil(centre + 2 * wide)) + 2)
        weight = cubic((np.array(reach) + 0.5 - centre) / wide, -0.5 if antialias else -0.75)
        for at, value in zip(reach, weight, strict=True):
            if antialias and 0 <= at < old:
                matrix[row, at] += value
            elif not antialias:
                matrix[row, min(max(at, 0), old - 1)] += value
    return matrix / matrix.sum(1, keepdims=True)


def reference(pixels: np.ndarray, side: int, antialias: bool = True) -> np.ndarray:
    """Return what the model sees of an 8-bit image [3, height, width], in float64."""
    image = pixels / 255.0
    height, width = image.shape[1:]
    scale = side / max(height, width)
    if scale != 1.0:
        down = resampling(height, round(height * scale), antialias)
        across = resampling(width, round(width * scale), antialias)
        image = down @ image @ across.T
    padded = np.zeros((3, side, side))
    top, left = (side - image.shape[1]) // 2, (side - image.shape[2]) // 2
    padded[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return (padded - MEAN[:, None, None]) / STD[:, None, None]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_is_that_of_the_reference_at_odd_sizes(size, antialias):
    pixels = noise(*size)
    seen = hpsv2.preprocessed(pixels, 224, antialias=antialias)
    assert seen.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(seen[0].numpy(), reference(pixels[0].numpy(), 224, antialias), atol=5e-4)


def test_the_smaller_half_of_an_odd_padding_is_left_or_above():
    wide, high = torch.full((1, 3, 221, 224), 255, dtype=torch.uint8), torch.full((1, 3, 224, 221), 255).byte()
    black = float(-MEAN[0] / STD[0])
    for pixels, axis in ((wide, 0), (high, 1)):
        line = hpsv2.preprocessed(pixels, 224)[0, 0].amax(1 - axis)
        assert torch.nonzero(line <= black + 1e-4).flatten().tolist() == [0, 222, 223]


def test_an_image_of_the_models_own_size_is_not_resized():
    pixels = noise(224, 224)
    seen = hpsv2.preprocessed(pixels, 224)[0].double().numpy() * STD[:, None, None] + MEAN[:, None, None]
    np.testing.assert_allclose(seen * 255, pixels[0].numpy(), atol=1e-4)


def test_an_image_of_which_nothing_would_be_left_is_refused():
    with pytest.raises(ValueError, match=r"an image of 600 x 1 is too narrow"):
        hpsv2.preprocessed(torch.zeros(1, 3, 1, 600, dtype=torch.uint8), 224)
    assert hpsv2.preprocessed(torch.zeros(1, 3, 1, 300, dtype=torch.uint8), 224).shape == (1, 3, 224, 224)


def test_antialias_moves_what_is_seen_of_noise_and_the_score(folder, tiny):
    pixels = noise(512, 512)
    smooth, rough = (hpsv2.preprocessed(pixels, 224, antialias=on) for on in (True, False))
    assert (smooth - rough).abs().mean() > 0.3
    old = HPSv2(weights=str(folder), antialias=False)
    image = pixels.float() / 255
    assert abs(scores(tiny, image, ["a cat"]) - scores(old, image, ["a cat"]))[0] > 1e-3
    assert "without antialias" in old.info.preprocessing


def test_scores_are_cosines_without_a_scale(tiny):
    model, tokenizer = tiny.towers
    pictures = images(6, 60, 50)
    pixels = (pictures * 255).round().to(torch.uint8)
    seen = model.encode_image(hpsv2.preprocessed(pixels, 32)).double().numpy()
    said = model.encode_text(tokenizer(PROMPTS)).double().numpy()
    cosine = (seen * said).sum(1) / np.linalg.norm(seen, axis=1) / np.linalg.norm(said, axis=1)
    np.testing.assert_allclose(scores(tiny, pictures), cosine, atol=1e-6)


def test_no_score_depends_on_batch_order_or_neighbours(folder):
    check_independence(HPSv2, weights=str(folder))


def test_a_broken_image_fails_alone(tiny):
    check_a_broken_image_fails_alone(tiny)


def test_wrong_images_are_refused(tiny):
    check_wrong_input(tiny)


@pytest.mark.parametrize("prompt", TOKENS)
def test_prompts_have_the_published_tokens(tiny, prompt):
    ids = tiny.towers[1]([prompt])[0].tolist()
    assert ids == TOKENS[prompt] + [0] * (77 - len(TOKENS[prompt]))


def test_a_long_prompt_is_cut_to_77_tokens_and_still_ends(tiny):
    ids = tiny.towers[1](["red " * 300])[0].tolist()
    assert len(ids) == 77
    assert ids[-1] == 49407


def layer(name: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.attn.in_proj_weight": (3 * width, width),
        f"{name}.attn.in_proj_bias": (3 * width,),
        f"{name}.attn.out_proj.weight": (width, width),
        f"{name}.attn.out_proj.bias": (width,),
        f"{name}.mlp.c_fc.weight": (inner, width),
        f"{name}.mlp.c_fc.bias": (inner,),
        f"{name}.mlp.c_proj.weight": (width, inner),
        f"{name}.mlp.c_proj.bias": (width,),
        **{f"{name}.ln_{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")},
    }


def published() -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of HPS_v2.1_compressed.pt."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
        "token_embedding.weight": (49408, 1024),
        "visual.class_embedding": (1280,),
        "visual.conv1.weight": (1280, 3, 14, 14),
        "visual.positional_embedding": (257, 1280),
        "visual.proj": (1280, 1024),
    }
    for name, width in (("ln_final", 1024), ("visual.ln_pre", 1280), ("visual.ln_post", 1280)):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for at in range(24):
        shapes |= layer(f"transformer.resblocks.{at}", 1024, 4096)
    for at in range(32):
        shapes |= layer(f"visual.transformer.resblocks.{at}", 1280, 5120)
    return shapes


def test_the_published_layout_has_686_keys_and_986_million_parameters():
    shapes = published()
    assert len(shapes) == 686
    assert round(sum(int(np.prod(shape)) for shape in shapes.values()) / 1e6, 1) == 986.1


def test_the_published_layout_loads_strictly_at_full_size(tmp_path):
    model = hpsv2.empty(hpsv2.architecture(tmp_path))
    state = {key: torch.empty(shape, device="meta") for key, shape in published().items()}
    model.load_state_dict(state, strict=True, assign=True)
    assert model.visual.image_size == (224, 224)
    assert isinstance(model.transformer.resblocks[0].mlp.gelu, torch.nn.GELU)  # and not OpenAI's quick one


def test_half_precision_on_disk_is_single_precision_in_memory(folder, tiny):
    read = torch.load(folder / hpsv2.WEIGHTS.file, weights_only=True)["state_dict"]
    held = tiny.towers[0].state_dict()
    assert {value.dtype for value in read.values()} == {torch.float16}
    assert {value.dtype for value in held.values()} == {torch.float32}
    assert all(torch.equal(held[key], value.float()) for key, value in read.items())


def test_half_precision_towers_keep_the_product_in_single_precision(folder, tiny):
    half = HPSv2(weights=str(folder), precision="fp16")
    pictures = images(6, 60, 50)
    found = scores(half, pictures)
    assert 0 < np.abs(found - scores(tiny, pictures)).max() < 5e-3
    assert not np.array_equal(found, found.astype(np.float16).astype(np.float64))


def test_only_its_own_file_is_read(folder):
    assert [file.file for file in HPSv2.files] == ["HPS_v2.1_compressed.pt"]
    assert [file.repository for file in HPSv2.files] == ["xswu/HPSv2"]
    assert sorted(path.name for path in folder.iterdir()) == ["HPS_v2.1_compressed.pt", "open_clip_config.json"]


def test_missing_weights_are_told_with_file_size_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as told:
        HPSv2().load()
    for part in ("HPS_v2.1_compressed.pt", "1.97 GB", "`bench prepare --rewards hpsv2.1`"):
        assert part in str(told.value)
    with pytest.raises(FileNotFoundError, match="leave `weights` out"):
        HPSv2(weights=str(tmp_path)).load()


@pytest.mark.parametrize("damage", ["key", "shape", "no state_dict", "text", "cut"])
def test_another_checkpoint_is_refused_in_one_line(tmp_path, folder, damage):
    read = torch.load(folder / hpsv2.WEIGHTS.file, weights_only=True)
    path = tmp_path / hpsv2.WEIGHTS.file
    if damage == "key":
        read["state_dict"]["visual.other"] = read["state_dict"].pop("visual.proj")
    if damage == "shape":
        read["state_dict"]["visual.proj"] = torch.zeros(4, 4)
    torch.save(read["state_dict"] if damage == "no state_dict" else read, path)
    if damage in ("text", "cut"):
        path.write_bytes(b"<!doctype html>" if damage == "text" else path.read_bytes()[:5000])
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(RuntimeError, match=r"is not HPS-v2\.1's HPS_v2\.1_compressed\.pt: .+") as told:
        HPSv2(weights=str(tmp_path)).load()
    assert "\n" not in str(told.value)
    assert str(path) in str(told.value)


def test_a_checkpoint_of_another_size_is_refused(tmp_path, folder):
    (tmp_path / hpsv2.WEIGHTS.file).write_bytes((folder / hpsv2.WEIGHTS.file).read_bytes())
    with pytest.raises(RuntimeError, match=r"Missing key|size mismatch"):
        HPSv2(weights=str(tmp_path)).load()


def test_the_sizes_beside_the_weights_are_part_of_the_revision(tmp_path, folder):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert HPSv2(weights=str(tmp_path)).info.revision == HPSv2(weights=str(folder)).info.revision
    sizes = tmp_path / hpsv2.SIZES
    sizes.write_text(sizes.read_text().replace('"model_cfg": {', '"model_cfg": {"quick_gelu": true,'))
    assert HPSv2(weights=str(tmp_path)).info.revision != HPSv2(weights=str(folder)).info.revision


def test_what_its_numbers_mean_is_said(folder):
    info = HPSv2(weights=str(folder)).info
    assert (info.unit, info.low, info.high, info.higher_is_better) == ("cosine", -1.0, 1.0, True)
    assert info.pixels == "uint8"
    other = folder / "open_clip_config.json"
    assert json.loads(other.read_text())["model_cfg"]["embed_dim"] == 32
    assert isinstance(HPSv2.files[0], HubFile)
    with pytest.raises(ValueError, match="batch=0"):
        HPSv2(batch=0)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"model_cfg": {}}', '{"model_cfg": null}'])
def test_a_description_of_no_clip_is_refused_by_its_name(tmp_path, folder, text):
    (tmp_path / hpsv2.WEIGHTS.file).write_bytes((folder / hpsv2.WEIGHTS.file).read_bytes())
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(RuntimeError, match=r"open_clip_config\.json is not what open_clip says of a CLIP: .+; give"):
        HPSv2(weights=str(tmp_path)).load()
