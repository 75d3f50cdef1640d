"""ImageReward against BLIP as its paper's code computes it, written here again from the names of published weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields

import jaxtyping
import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision import transforms

from bench.embedded.training import seeded
from bench.registry import load
from bench.scorers import tiny as tiny_scorers
from bench.scorers.lookup import check_here, label, looked_at
from bench.scorers.tiny.imagereward import FULL, TINY, layout
from rewards.imagereward import (
    CLIP_MEAN,
    CLIP_STD,
    NAME,
    RENAMED,
    REWARDS,
    UNUSED,
    VISION,
    ImageReward,
    empty,
    preprocessed,
    renamed,
    tokenizer,
    tokens,
)

SIZES = [(512, 512), (720, 480), (480, 832), (100, 60), (224, 224), (333, 517)]
PROMPTS = ["a cat", 'a "red" cube', "a cat on a mat, at night", "", "it's 'quoted'", "a cat"]
GROUP = np.zeros(len(PROMPTS), dtype=np.int64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("imagereward")
    tiny_scorers.make(NAME, made)
    return made


@pytest.fixture(scope="module")
def scorer(folder):
    return ImageReward(weights=str(folder))


@pytest.fixture(scope="module")
def state(folder):
    return torch.load(folder / "ImageReward.pt", weights_only=True)


@pytest.fixture
def copied(folder, tmp_path):
    """A folder of the same files, to spoil one."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def _images(count, height=64, width=80, seed=0):
    return torch.from_numpy(seeded(seed)[0].random((count, 3, height, width), dtype=np.float32))


def _pixels(image):
    return (image * 255).round().to(torch.uint8)


def _published_transform(side):
    """Of 8-bit images as PIL has them, by torchvision."""
    by_pil = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    return lambda pixels: torch.stack([torch.as_tensor(by_pil(image)) for image in pixels])


class Blip:
    """The published model in float64, one function a layer, by the published names."""

    def __init__(self, state, vision_eps=1e-6):
        self.state = {key: value.double() for key, value in state.items()}
        self.eps = vision_eps

    def linear(self, x, name):
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x, name, eps):
        return functional.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    @staticmethod
    def attention(query, key, value, heads, hidden: torch.Tensor | float = 0.0):
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        weight = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + hidden).softmax(-1)
        return (weight @ value).transpose(1, 2).flatten(2)

    def see(self, image):
        prefix = "blip.visual_encoder."
        kernel = self.state[f"{prefix}patch_embed.proj.weight"]
        patches = functional.conv2d(
            image, kernel, self.state[f"{prefix}patch_embed.proj.bias"], stride=kernel.shape[-1]
        )
        first = self.state[f"{prefix}cls_token"].expand(len(image), -1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], 1) + self.state[f"{prefix}pos_embed"]
        for layer in range(TINY["vision"]["layers"]):
            block = f"{prefix}blocks.{layer}."
            parts = self.linear(self.norm(x, f"{block}norm1", self.eps), f"{block}attn.qkv").chunk(3, -1)
            x = x + self.linear(self.attention(*parts, TINY["vision"]["heads"]), f"{block}attn.proj")
            wide = functional.gelu(self.linear(self.norm(x, f"{block}norm2", self.eps), f"{block}mlp.fc1"))
            x = x + self.linear(wide, f"{block}mlp.fc2")
        return self.norm(x, f"{prefix}norm", self.eps)

    def attend(self, x, source, name, hidden: torch.Tensor | float = 0.0):
        query, key, value = (
            self.linear(of, f"{name}.self.{part}") for of, part in ((x, "query"), (source, "key"), (source, "value"))
        )
        mixed = self.attention(query, key, value, TINY["text"]["heads"], hidden)
        return self.norm(self.linear(mixed, f"{name}.output.dense") + x, f"{name}.output.LayerNorm", 1e-12)

    def read(self, ids, mask, seen):
        prefix = "blip.text_encoder."
        places = self.state[f"{prefix}embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.state[f"{prefix}embeddings.word_embeddings.weight"][ids] + places
        x = self.norm(x, f"{prefix}embeddings.LayerNorm", 1e-12)
        hidden = torch.where(mask[:, None, None, :] == 1, 0.0, -torch.inf)
        for layer in range(TINY["text"]["layers"]):
            block = f"{prefix}encoder.layer.{layer}."
            x = self.attend(x, x, f"{block}attention", hidden)
            x = self.attend(x, seen, f"{block}crossattention")
            wide = functional.gelu(self.linear(x, f"{block}intermediate.dense"))
            x = self.norm(self.linear(wide, f"{block}output.dense") + x, f"{block}output.LayerNorm", 1e-12)
        return x[:, 0]

    def reward(self, ids, mask, image):
        x = self.read(ids, mask, self.see(image.double()))
        for layer in (0, 2, 4, 6, 7):
            x = self.linear(x, f"mlp.layers.{layer}")
        return ((x[:, 0] - 0.16717362830052426) / 1.0333394966054072).numpy()


def _expected(scorer, state, images, prompts, **options):
    ids, mask = tokens(scorer.towers[1], prompts)
    side = TINY["vision"]["image"]
    return Blip(state, **options).reward(ids, mask, _published_transform(side)(_pixels(images)))


def test_the_scorer_is_named_imagereward():
    assert dict(REWARDS) == {"imagereward": ImageReward}


def test_its_rewards_are_those_of_the_published_computation(scorer, state):
    images = _images(len(PROMPTS))
    expected = _expected(scorer, state, images, PROMPTS)
    assert np.ptp(expected) > 0.2
    np.testing.assert_allclose(scorer(images, PROMPTS, GROUP), expected, atol=1e-6, rtol=0)


def test_the_default_eps_of_transformers_would_be_another_score(scorer, state):
    images = _images(len(PROMPTS))
    scores = scorer(images, PROMPTS, GROUP)
    other = _expected(scorer, state, images, PROMPTS, vision_eps=1e-5)
    assert np.abs(scores - other).max() > 8e-6
    assert scorer.towers[0]["vision"].post_layernorm.eps == 1e-6


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_an_image_of_any_size_is_resized_by_its_shorter_side_and_cropped_in_the_middle(height, width):
    pixels = _pixels(_images(2, height, width))
    torch.testing.assert_close(preprocessed(pixels, 224), _published_transform(224)(pixels), atol=0, rtol=0)


def test_pixels_are_resized_by_pil_and_not_as_tensors():
    pixels = _pixels(_images(1, 333, 517))
    size = transforms.Resize(224, transforms.InterpolationMode.BICUBIC, antialias=True)
    tensor = transforms.Compose([size, transforms.CenterCrop(224)])(pixels.float() / 255)
    tensor = transforms.Normalize(CLIP_MEAN, CLIP_STD)(tensor)
    assert (preprocessed(pixels, 224) - tensor).abs().max() > 1e-3


def test_a_score_does_not_depend_on_batch_order_or_neighbours(scorer, folder):
    images = _images(len(PROMPTS))
    together = scorer(images, PROMPTS, GROUP)
    alone = [scorer(images[i : i + 1], PROMPTS[i : i + 1], GROUP[:1])[0] for i in range(len(PROMPTS))]
    np.testing.assert_allclose(alone, together, atol=1e-6, rtol=0)
    np.testing.assert_allclose(scorer(images.flip(0), PROMPTS[::-1], GROUP)[::-1], together, atol=1e-6, rtol=0)
    pairs = ImageReward(weights=str(folder), batch=2)
    np.testing.assert_allclose(pairs(images, PROMPTS, GROUP), together, atol=1e-6, rtol=0)


def test_a_batch_is_one_call_of_each_tower_and_each_prompt_is_tokenized_once(scorer, monkeypatch):
    model, words = scorer.towers
    calls = []
    for name in ("vision", "text"):
        model[name].register_forward_hook(lambda *_, name=name: calls.append(name))
    seen = []
    monkeypatch.setattr("rewards.imagereward.tokens", lambda which, texts: seen.append(texts) or tokens(which, texts))
    try:
        scorer(_images(len(PROMPTS)), PROMPTS, GROUP)
    finally:
        for name in ("vision", "text"):
            model[name]._forward_hooks.clear()
    assert calls == ["vision", "text"]
    assert seen == [list(dict.fromkeys(PROMPTS))]
    assert words is scorer.towers[1]


def test_a_broken_image_fails_alone(scorer):
    images = _images(3)
    whole = scorer(images, PROMPTS[:3], GROUP[:3])
    images[1, 2, 5, 5] = float("nan")
    broken = scorer(images, PROMPTS[:3], GROUP[:3])
    assert np.isnan(broken[1])
    np.testing.assert_allclose(broken[[0, 2]], whole[[0, 2]], atol=1e-6, rtol=0)


def test_scores_are_float64_and_those_of_the_8_bits_of_a_file(scorer):
    images = _pixels(_images(2)).float() / 255
    scores = scorer(images, PROMPTS[:2], GROUP[:2])
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, scorer((images + 0.3 / 255).clamp(0, 1), PROMPTS[:2], GROUP[:2]))


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "divide 8-bit values by 255"),
        (torch.zeros(1, 4, 8, 8), ValueError, "RGB"),
        (torch.zeros(3, 8, 8), ValueError, "shape"),
        (torch.full((1, 3, 8, 8), 255.0), ValueError, r"lie in \[0, 1\]"),
        (torch.zeros(2, 3, 8, 8), ValueError, "one each"),
    ],
)
def test_what_is_no_image_is_refused(scorer, monkeypatch, images, error, said):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which would refuse some before
    with pytest.raises(error, match=said):
        scorer(images, ["a cat"], GROUP[:1])


def test_a_prompt_is_35_tokens_from_cls_to_sep_without_enc(scorer):
    words = scorer.towers[1]
    ids, mask = (part.tolist() for part in tokens(words, ["a cat", "a " * 100]))
    cls, sep, pad, a, *cat = words.convert_tokens_to_ids(["[CLS]", "[SEP]", "[PAD]", "a", "c", "##a", "##t"])
    assert ids == [[cls, a, *cat, sep, *[pad] * 29], [cls, *[a] * 33, sep]]
    assert mask == [[1] * 6 + [0] * 29, [1] * 35]


def test_a_longer_prompt_is_cut(scorer):
    images, group = _images(1), GROUP[:1]
    cut = scorer(images, ["a " * 33], group)
    assert scorer(images, ["a " * 33 + "cat"], group) == cut
    assert scorer(images, ["a " * 32 + "cat"], group) != cut


def test_blips_two_tokens_come_after_the_vocabulary(scorer):
    words = scorer.towers[1]
    assert words.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [130, 131]
    assert len(words) == TINY["text"]["words"] + 2


def test_quotes_keep_their_own_tokens(scorer):
    straight, none, curly = (tokens(scorer.towers[1], [text])[0].tolist() for text in ('"a"', "a", "“a”"))
    assert straight != none
    assert straight != curly
    assert len({float(scorer(_images(1), [text], GROUP[:1])[0]) for text in ('"a"', "a", "“a”")}) == 3


def test_case_does_not_matter_and_accents_neither(scorer):
    ids = tokens(scorer.towers[1], ["a café", "A CAFE"])[0].tolist()
    assert ids[0] == ids[1]


def test_the_text_tower_looks_at_the_image_and_hides_no_word_from_the_first(scorer):
    text = scorer.towers[0]["text"]
    assert all(hasattr(layer, "crossattention") for layer in text.encoder.layer)
    images, group = _images(2), GROUP[:2]
    first, second = scorer(images, ["a cat", "a cat"], group)
    assert abs(first - second) > 1e-3
    same = images[:1].expand(2, -1, -1, -1)
    later, other = scorer(same, ["a cat in a hat", "a cat in a box"], group)
    assert abs(later - other) > 1e-3  # a decoder's first token would see itself alone


def test_attention_is_eager_because_blip_refuses_another(scorer):
    from transformers import BlipVisionConfig, BlipVisionModel

    assert {scorer.towers[0][name].config._attn_implementation for name in ("vision", "text")} == {"eager"}
    config = BlipVisionConfig()
    config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        BlipVisionModel(config)


def test_the_tiny_layout_at_full_size_is_that_of_the_published_checkpoint():
    """The digest is of what the package image-reward 1.5 builds."""
    full = layout(FULL)
    lines = sorted(f"{key} {list(shape)}" for key, shape in full.items())
    assert len(full) == 625
    assert sum(math.prod(shape) for shape in full.values()) == 446_666_465
    digest = "b483298b77da9ee322e5b54d925cbce2019d169d5b4c4b48789138fa629baa7c"
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


def test_each_published_weight_has_one_place_and_two_projections_have_none():
    text = {
        "vocab_size": 30524,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    model = empty(text, VISION)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    published = {renamed(key): shape for key, shape in layout(FULL).items() if not key.startswith(UNUSED)}
    assert published == wanted
    assert sum(parameter.numel() for parameter in model.parameters()) == 446_206_689
    left = [key for key in layout(FULL) if key.startswith(UNUSED)]
    assert len(left) == 5
    assert {key.split(".")[1] for key in left} == {"vision_proj", "text_proj", "text_encoder"}
    assert all(parameter.is_meta for parameter in model.parameters())


def test_each_rule_of_renaming_is_needed():
    keys = [key for key in layout(FULL) if not key.startswith(UNUSED)]
    for theirs, _ in RENAMED:
        assert any(theirs in key for key in keys), theirs


def test_nothing_is_left_without_memory_after_loading(scorer):
    model = scorer.towers[0]
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert not model.training
    assert torch.equal(model["text"].embeddings.position_ids[0], torch.arange(TINY["text"]["positions"]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.pop("mlp.layers.7.bias"), "Missing key.*head.7.bias"),
        (lambda s: s.update({"mlp.layers.8.bias": torch.zeros(1)}), "Unexpected key.*head.8.bias"),
        (lambda s: s.update({"blip.visual_encoder.cls_token": torch.zeros(1, 1, 5)}), "size mismatch"),
        (lambda s: s.clear(), "Missing key"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(copied, state, spoil, said):
    other = dict(state)
    spoil(other)
    torch.save(other, copied / "ImageReward.pt")
    with pytest.raises(RuntimeError, match=rf"ImageReward.pt is not ImageReward's ImageReward.pt: .*{said}") as error:
        ImageReward(weights=str(copied)).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused(copied, content):
    (copied / "ImageReward.pt").write_bytes(content)
    with pytest.raises(RuntimeError, match="is not ImageReward's"):
        ImageReward(weights=str(copied)).load()


class Planted:
    """What unpickling would run."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_a_checkpoint_is_not_unpickled(copied, capsys):
    torch.save({"blip": Planted()}, copied / "ImageReward.pt")
    with pytest.raises(RuntimeError, match="is not ImageReward's"):
        ImageReward(weights=str(copied)).load()
    assert "unpickled" not in capsys.readouterr().out


def test_another_vocabulary_is_refused(copied):
    words = (copied / "vocab.txt").read_text().split("\n")
    (copied / "vocab.txt").write_text("\n".join(words[:-3]) + "\n")
    with pytest.raises(RuntimeError, match=r"vocab.txt: 128 words and not 130"):
        ImageReward(weights=str(copied)).load()
    (copied / "vocab.txt").write_text("\n".join(f"word{n}" for n in range(130)))
    with pytest.raises(RuntimeError, match=r"without \[PAD\], \[UNK\], \[CLS\]"):
        tokenizer(copied / "vocab.txt", 132)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"hidden_size": 8})])
def test_another_configuration_is_refused(copied, content):
    (copied / "med_config.json").write_text(content)
    with pytest.raises(RuntimeError, match=r"is not ImageReward's med_config\.json"):
        ImageReward(weights=str(copied)).load()


@pytest.mark.parametrize("name", ["ImageReward.pt", "med_config.json", "vocab.txt"])
def test_a_missing_file_is_named_with_its_origin_and_what_to_do(copied, name):
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"'imagereward' reads {name} .*copy it to {copied}"):
        ImageReward(weights=str(copied)).load()


def test_missing_weights_name_file_size_and_command(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("bench.scorers.weights.snapshot", lambda repository: None)
    with pytest.raises(FileNotFoundError) as error:
        ImageReward().load()
    for part in ("ImageReward.pt", "1.79 GB", "zai-org/ImageReward", "bench prepare --rewards imagereward"):
        assert part in str(error.value)


def test_its_options_move_no_score_and_a_batch_of_none_is_refused(folder):
    assert {field.name: bool(field.metadata.get("means")) for field in fields(ImageReward)} == {
        "weights": True,
        "batch": True,
    }
    with pytest.raises(ValueError, match="batch=0"):
        ImageReward(batch=0)
    registry = load("rewards")
    found = looked_at(f"imagereward(weights={folder},batch=3)", registry)
    assert found.batch == 3
    assert label(f"imagereward(weights={folder},batch=3)", found) == "imagereward"
    check_here({"imagereward": found})


def test_its_revision_is_of_the_files_contents(folder, copied):
    assert ImageReward(weights=str(copied)).info.revision == ImageReward(weights=str(folder)).info.revision
    (copied / "vocab.txt").write_text("other")
    assert ImageReward(weights=str(copied)).info.revision != ImageReward(weights=str(folder)).info.revision
    assert ImageReward(weights=str(folder)).info.pixels == "uint8"
