"""`bench make-tiny`: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.models.catalog import FAMILIES
from bench.models.source import checked_index, resolve_model
from bench.models.tiny import KINDS, make_tiny
from bench.registry import InputError
from bench.run import main


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_has_a_tiny_pipeline_that_the_seed_decides(kind: str, tmp_path: Path):
    (tmp_path / "there already").mkdir()
    for folder, seed in (("there already", 3), ("again", 3), ("other", 4)):
        make_tiny(kind, tmp_path / folder, seed)
    found = contents(tmp_path / "again")

    assert found == contents(tmp_path / "there already")
    assert found != contents(tmp_path / "other")
    assert sum(map(len, found.values())) < 2_000_000
    assert resolve_model(str(tmp_path / "again")).family == FAMILIES[KINDS[kind][0]]
    index = checked_index("", tmp_path / "again")
    assert {name for name, value in index.items() if isinstance(value, list) and value[0]} == {
        path.name for path in (tmp_path / "again").iterdir() if path.is_dir()
    }


def test_every_family_that_has_a_name_has_a_tiny_pipeline():
    assert {pipeline for pipeline, _ in KINDS.values()} == FAMILIES.keys()


def test_what_torch_draws_afterwards_is_as_it_was(tmp_path: Path):
    import torch

    before = torch.get_rng_state()
    make_tiny("flux", tmp_path / "flux", 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_command_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "deep" / "sd3"
    assert main(["make-tiny", "sd3", str(folder), "--seed", "5"]) == 0
    said = capsys.readouterr()
    assert said.out == (f"{folder} is a StableDiffusion3Pipeline of random weights; --model {folder} runs on it\n")
    assert said.err == ""
    make_tiny("sd3", tmp_path / "by hand", 5)
    assert contents(folder) == contents(tmp_path / "by hand")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["sd4", "new"], "invalid choice: 'sd4'"),
        (["sd3"], "DIR"),
        (["sd3", "full"], "full exists and is no empty folder"),
        (["sd3", "full/file"], "full/file exists and is no empty folder"),
        (["sd3", "full/file/below"], "full/file/below cannot be written: Not a directory"),
        (["sd3", "new", "--seed", "-1"], "--seed -1: a whole number"),
        (["sd3", "new", "--seed", "one"], "--seed"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(words, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full", "file").write_text("mine")
    before = contents(tmp_path)

    assert main(["make-tiny", *words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("bench: ")
    assert said.err.count("\n") == 1
    assert why in said.err
    assert contents(tmp_path) == before
    assert not Path("new").exists()


def test_an_unknown_kind_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="'sd4': there are flux, sd3, wan, wan-i2v"):
        make_tiny("sd4", tmp_path / "new", 0)


def test_the_index_names_classes_that_exist(random_wan_i2v: Path):
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    index = json.loads((random_wan_i2v / "model_index.json").read_text())
    for value in (value for value in index.values() if isinstance(value, list) and value[0]):
        assert hasattr(libraries[value[0]], value[1])
