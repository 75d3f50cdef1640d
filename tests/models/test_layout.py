"""What a pipeline's folder is refused for before a library reads it: parts without their files, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from skeleton import INDEX, write_skeleton

from bench.models.layout import checked_index, flaws, lacking, lacking_parts, parts
from bench.models.source import ModelSource, dynamic_shift, family_of, part_config, resolve_model
from bench.registry import InputError

VAE = "vae/diffusion_pytorch_model.safetensors"
SHARDS = "transformer/diffusion_pytorch_model.safetensors.index.json"
PROCESSED = INDEX | {"image_processor": ["transformers", "CLIPImageProcessor"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_skeleton(tmp_path / "pipeline")


def found(folder: Path) -> list[str]:
    return list(flaws(folder, checked_index("mine", folder)))


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        resolve_model(str(folder))
    assert "\n" not in str(error.value)
    assert "fetch the whole repository again" in str(error.value)
    return str(error.value)


def test_a_tokenizer_with_its_configuration_alone_has_no_vocabulary(folder):
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "tokenizer_config.json")
    assert "tokenizer has no vocabulary (tokenizer.json)" in refused(folder)


@pytest.mark.parametrize(
    ("kind", "names", "whole"),
    [
        ("CLIPTokenizer", {"vocab.json", "merges.txt"}, True),
        ("CLIPTokenizer", {"vocab.json", "tokenizer_config.json"}, False),
        ("CLIPTokenizer", {"merges.txt"}, False),
        ("T5TokenizerFast", {"tokenizer.json"}, True),
        ("T5TokenizerFast", {"spiece.model"}, True),
        ("T5TokenizerFast", {"special_tokens_map.json"}, False),
        ("XLMRobertaTokenizer", {"sentencepiece.bpe.model"}, True),
        ("ByT5Tokenizer", {"tokenizer_config.json"}, True),
        ("CLIPImageProcessor", {"preprocessor_config.json"}, True),
        ("CLIPImageProcessor", {"config.json"}, False),
        ("CLIPFeatureExtractor", {"README.md"}, False),
        ("UniPCMultistepScheduler", {"scheduler_config.json"}, True),
        ("UniPCMultistepScheduler", {"config.json"}, False),
        ("T5EncoderModel", {"config.json", "model.safetensors"}, True),
        ("T5EncoderModel", {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}, True),
        ("T5EncoderModel", {"model-00001-of-00002.safetensors", "model.safetensors"}, True),
        ("T5EncoderModel", {"model-00001-of-00002.safetensors"}, False),
    ],
)
def test_a_part_is_whole_with_the_files_that_its_class_reads(kind, names, whole):
    assert (lacking(kind, names) == "") == whole


def test_a_scheduler_and_a_processor_without_configurations_are_flaws(tmp_path):
    folder = write_skeleton(tmp_path / "processed", PROCESSED)
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "scheduler" / "README.md")
    assert found(folder) == [
        "scheduler has no configuration (scheduler_config.json)",
        "image_processor has no configuration (preprocessor_config.json)",
    ]


def test_parts_of_other_libraries_have_files_of_their_own(tmp_path):
    index = INDEX | {"tokenizer": ["mine", "WordTokenizer"], "scheduler": ["mine", "SlowScheduler"]}
    folder = write_skeleton(tmp_path / "own", index)
    for part in ("tokenizer", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / part / "mine.json")
    assert found(folder) == []
    assert lacking_parts(index, ["tokenizer/mine.json", "scheduler/mine.json"]) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("transformer/config.json", "{"),
        ("vae/config.json", "[1]"),
        ("vae/config.json", "\xff"),
        ("scheduler/scheduler_config.json", "{,"),
        ("tokenizer/tokenizer.json", '{"model": {"vocab": {"a": 1'),
        ("tokenizer/tokenizer.json", ""),
        ("tokenizer/tokenizer_config.json", "null"),
        (SHARDS, '{"weight_map": {"w0": 5}}'),
        (SHARDS, '{"weight_map": ["w0"]}'),
    ],
)
def test_damaged_json_is_named(folder, file, text):
    (folder / file).write_text(text, encoding="latin-1")
    said = refused(folder)
    assert f"{file} is " in said
    assert "damaged" in said


def test_json_that_is_whole_but_for_white_space_is_taken(folder):
    (folder / "tokenizer" / "tokenizer.json").write_text('\n {"model": {}}\n\n')
    assert found(folder) == []


def test_an_empty_vocabulary_and_a_pointer_in_its_place_are_named(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "spiece.model").write_text("")
    assert found(folder) == ["tokenizer/spiece.model is empty"]
    (folder / "tokenizer" / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert found(folder) == ["tokenizer/spiece.model is a pointer of Git LFS (`git lfs pull` brings it)"]


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [1]},
        {"data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": [4]},
        {"shape": [1], "data_offsets": ["0", "4"]},
        {"shape": 1, "data_offsets": [0, 4]},
        7,
    ],
)
def test_a_head_of_weights_that_tells_no_places_is_damaged(folder, tensor):
    text = json.dumps({"w": tensor}).encode()
    (folder / VAE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert f"{VAE} is cut short or damaged" in refused(folder)


@pytest.mark.parametrize(
    "value", [["diffusers"], ["diffusers", 5], [], [5, "AutoencoderKL"], ["diffusers", "AutoencoderKL", {}]]
)
def test_a_part_that_is_no_library_and_class_is_named(folder, value):
    (folder / "model_index.json").write_text(json.dumps(INDEX | {"vae": value}))
    assert "model_index.json" in refused(folder)
    assert "is damaged (vae)" in refused(folder)


def test_a_pipelines_class_is_a_word(folder):
    (folder / "model_index.json").write_text(json.dumps(INDEX | {"_class_name": ["mine", "FluxPipeline"]}))
    assert "is damaged (_class_name)" in refused(folder)


def test_values_of_an_index_that_are_no_lists_and_parts_left_out_are_let_be(folder):
    more = {"boundary_ratio": None, "force_zeros_for_empty_prompt": True, "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(INDEX | more))
    assert "feature_extractor" not in parts(checked_index("mine", folder))
    assert found(folder) == []


def test_shards_without_their_index_are_a_flaw(folder):
    (folder / SHARDS).unlink()
    assert f"transformer has shards without their index ({SHARDS.partition('/')[2]})" in refused(folder)


def test_a_configuration_that_cannot_be_read_is_wrong_input(folder):
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text("{,")
    source = ModelSource(family=family_of("mine", folder), folder=folder)
    with pytest.raises(InputError, match=r"scheduler_config\.json is damaged: fetch the whole repository again"):
        dynamic_shift(source, 32, 32)
    (folder / "vae" / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"vae/config\.json is damaged"):
        part_config(folder, "vae")
    assert part_config(folder, "nothing") == {}
