"""Where a model is found, what is said of one that is not whole, and the configurations that come with the program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
from hub_server import HubServer
from huggingface_hub import snapshot_download
from skeleton import INDEX, write_skeleton

from bench.models.layout import needed
from bench.models.source import folder_digest, model_digest, resolve_model
from bench.registry import InputError

SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_skeleton(tmp_path / "pipeline")


@pytest.fixture
def hub(tmp_path: Path, folder: Path) -> Iterator[HubServer]:
    """A hub with the pipeline as someone/model, its own cache empty, of which this process sees the cache alone."""
    with HubServer.hosting() as server, server.pointed(tmp_path / "cache"):
        server.add("someone/model", folder)
        yield server


def refused(name: str | Path, weights: str = "pretrained") -> str:
    with pytest.raises(InputError) as error:
        resolve_model(str(name), weights=weights)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_whole_folder_is_taken_sharded_or_not(folder, tmp_path):
    assert resolve_model(str(folder)).folder == folder
    assert resolve_model(str(folder)).revision == ""
    assert resolve_model(str(write_skeleton(tmp_path / "single", sharded=False))).folder == tmp_path / "single"


def test_a_shard_that_its_index_names_and_is_not_there_is_named(folder):
    (folder / "transformer" / SHARD).unlink()
    assert f"transformer/{SHARD} is missing" in refused(folder)
    assert "fetch the whole repository again" in refused(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_part_with_its_configuration_alone_has_no_weights(folder, part):
    for file in (folder / part).glob("*.safetensors*"):
        file.unlink()
    assert f"{part} has no weights (safetensors)" in refused(folder)


def test_a_part_without_its_configuration_is_not_whole(folder):
    (folder / "vae" / "config.json").unlink()
    assert "vae/config.json is missing" in refused(folder)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_file_that_is_shorter_than_its_head_says_is_named(folder, kept):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    said = refused(folder)
    assert "vae/diffusion_pytorch_model.safetensors is cut short" in said
    if kept == -1:
        assert f"({len(whole) - 1} of {len(whole)} bytes)" in said
    file.write_bytes(whole + b"x")
    assert "is damaged" in refused(folder)


def test_a_pointer_in_a_files_place_says_what_brings_the_file(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_text(pointer)
    assert "git lfs pull" in refused(folder)


def test_an_index_of_shards_that_is_no_json_is_damaged(folder):
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text("{")
    assert "diffusion_pytorch_model.safetensors.index.json is damaged" in refused(folder)


def test_many_flaws_are_told_in_a_line(folder):
    for part in ("transformer", "vae", "text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    assert "and 1 more" in refused(folder)


def test_random_weights_need_none(folder):
    for file in folder.rglob("*.safetensors*"):
        file.unlink()
    assert resolve_model(str(folder), weights="random").folder == folder
    assert model_digest(str(folder), weights="random")
    refused(folder, weights="pretrained")


def test_another_familys_pipeline_is_named_with_those_that_have_adapters(tmp_path):
    folder = write_skeleton(tmp_path / "xl", INDEX | {"_class_name": "StableDiffusionXLPipeline"})
    assert "is a StableDiffusionXLPipeline; adapters exist for FluxPipeline" in refused(folder)


def test_a_transformer_alone_is_told_from_its_pipeline(folder, tmp_path):
    said = refused(folder / "transformer")
    assert "a FluxTransformer2DModel alone" in said
    assert f"give {folder}" in said
    shutil.copytree(folder / "transformer", tmp_path / "bare")
    assert "the folder of the whole is wanted" in refused(tmp_path / "bare")


def test_a_single_file_checkpoint_is_no_pipeline(tmp_path):
    (tmp_path / "flux1-dev.safetensors").write_bytes(b"")
    assert "is a file: give a pipeline's folder" in refused(tmp_path / "flux1-dev.safetensors")


def test_a_name_that_is_nothing_has_the_nearest_one(hub):
    assert "did you mean 'flux-dev'" in refused("flux-dve")
    assert hub.requests == []


def test_what_a_broken_off_download_left_is_counted(folder):
    left = folder / ".cache" / "huggingface" / "download" / "vae"
    left.mkdir(parents=True)
    (left / "x.incomplete").write_bytes(b"..")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "(a download was broken off)" in refused(folder)


def test_what_downloads_leave_behind_changes_no_digest(folder):
    before = folder_digest(folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "when").write_text("now")
    (folder / ".gitattributes").write_text("*")
    assert folder_digest(folder) == before


def test_a_hub_id_that_is_not_here_names_the_command_that_fetches_it(hub):
    said = refused("someone/model")
    assert "'someone/model' is not on this machine: `bench prepare --model someone/model` fetches it" in said
    assert "flux-dev" in refused("flux-dev")
    assert "`bench prepare --model flux-dev`" in refused("flux-dev")
    assert hub.requests == []


def test_a_hub_id_that_is_here_is_found_without_asking_the_hub(hub, folder):
    snapshot_download("someone/model")
    hub.requests.clear()
    source = resolve_model("someone/model")
    assert source.revision == hub_server.commit_of(folder)
    assert resolve_model(f"someone/model@{source.revision}").folder == source.folder
    assert resolve_model("someone/model@main").folder == source.folder
    assert model_digest("someone/model") == folder_digest(folder)
    assert hub.requests == []


def test_a_revision_that_is_not_here_says_which_are(hub, folder):
    snapshot_download("someone/model")
    said = refused("someone/model@v2")
    assert "revision 'v2' of someone/model is not on this machine" in said
    assert "where main, " in said
    assert "`bench prepare --model someone/model@v2`" in said


def test_a_half_downloaded_snapshot_says_what_is_missing_and_what_fetches_it(hub, tmp_path):
    snapshot_download("someone/model", allow_patterns=["vae/*"])
    said = refused("someone/model")
    assert "model_index.json is missing" in said
    snapshot_download("someone/model", allow_patterns=["vae/*", "*.json"])
    blobs = tmp_path / "cache" / "hub" / "models--someone--model" / "blobs"
    for name in ("abc.incomplete", "def.incomplete"):
        (blobs / name).write_bytes(b"...")
    said = refused("someone/model")
    assert f"{SHARD} is missing" in said
    assert "(2 downloads were broken off)" in said
    assert said.endswith("`bench prepare --model someone/model` fetches the rest")


def test_a_truncated_blob_in_the_cache_is_noticed(hub):
    here = Path(snapshot_download("someone/model"))
    blob = (here / "vae" / "diffusion_pytorch_model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:100])
    assert "vae/diffusion_pytorch_model.safetensors is cut short" in refused("someone/model")


def test_a_registered_models_digest_is_of_its_files_once_they_are_here(hub, folder, tmp_path, monkeypatch):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from bench.models.catalog import ModelEntry\nMODELS = {'mine': ModelEntry(family='FluxPipeline', guidance=1.0,"
        "source='someone/model', summary='', resolution=32, preset='smoke', prompts='')}\n"
    )
    assert model_digest("mine", [plugin]) == ""
    here = Path(snapshot_download("someone/model"))
    assert model_digest("mine", [plugin]) == folder_digest(folder)
    assert model_digest("mine", [plugin], weights="random") == ""
    (here / "vae" / "config.json").unlink()
    assert model_digest("mine", [plugin]) == ""


def test_of_a_repository_only_what_the_pipeline_loads_is_needed():
    files = [
        *(".gitattributes", "README.md", "ae.safetensors", "flux1-dev.safetensors", "model_index.json"),
        *("scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors"),
        *("text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin", "text_encoder_9/config.json"),
        *("text_encoder/model.safetensors.index.fp16.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
        *(f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)),
        *("transformer/diffusion_pytorch_model.safetensors.index.json", "transformer/config.json"),
        *("transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "vae/config.json"),
        *("vae/diffusion_pytorch_model.safetensors", "image_encoder/config.json"),
    ]
    left = {
        *(".gitattributes", "README.md", "ae.safetensors", "flux1-dev.safetensors", "text_encoder_9/config.json"),
        *("text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin", "image_encoder/config.json"),
        "text_encoder/model.safetensors.index.fp16.json",
        "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    }
    assert set(files) - set(needed(json.loads(json.dumps(INDEX)), files)) == left
