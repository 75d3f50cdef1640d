"""The hub of the tests answers huggingface_hub's own client as the real one does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
from hub_server import HubServer
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer.hosting() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "repository"
    (made / "part").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "part" / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return made


def test_a_snapshot_is_what_is_served(hub, folder, tmp_path):
    hub.add("someone/model", folder)
    with hub.pointed(tmp_path / "cache"):
        got = Path(snapshot_download("someone/model"))
        again = Path(snapshot_download("someone/model", local_files_only=True))
    assert got == again
    assert got.name == hub_server.commit_of(folder)
    assert (got / "part" / "model.safetensors").read_bytes() == (folder / "part" / "model.safetensors").read_bytes()
    assert sorted(hub.downloads) == ["config.json", "part/model.safetensors"]


def test_a_dataset_is_one_by_its_kind(hub, folder, tmp_path):
    hub.add("someone/set", folder, kind="datasets", license="mit")
    with hub.pointed(tmp_path / "cache"):
        got = hf_hub_download("someone/set", "config.json", repo_type="dataset")
        info = HfApi().dataset_info("someone/set", files_metadata=True)
        with pytest.raises(RepositoryNotFoundError):
            HfApi().model_info("someone/set")
    assert Path(got).read_text() == "{}"
    assert info.card_data is not None
    assert info.card_data["license"] == "mit"
    assert next((file.rfilename, file.size) for file in info.siblings or ()) == ("config.json", 2)


def test_a_branch_has_its_own_commit(hub, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("[]")
    hub.add("someone/model", folder, branches={"next": other})
    with hub.pointed(tmp_path / "cache"):
        assert Path(hf_hub_download("someone/model", "config.json", revision="next")).read_text() == "[]"
        commit = hub_server.commit_of(other)
        assert Path(hf_hub_download("someone/model", "config.json", revision=commit)).read_text() == "[]"
        assert [ref.name for ref in HfApi().list_repo_refs("someone/model").branches] == ["main", "next"]


def test_what_is_missing_is_said_as_the_hub_does(hub, folder, tmp_path):
    hub.add("someone/model", folder)
    with hub.pointed(tmp_path / "cache"):
        with pytest.raises(RevisionNotFoundError):
            snapshot_download("someone/model", revision="v9")
        with pytest.raises(EntryNotFoundError):
            hf_hub_download("someone/model", "no.json")
        with pytest.raises(RepositoryNotFoundError):
            snapshot_download("someone/else")


@pytest.mark.parametrize("token", [None, hub_server.STRANGER])
def test_a_gated_repository_is_listed_but_not_handed_out(hub, folder, tmp_path, token):
    hub.add("someone/model", folder, gated=True)
    with hub.pointed(tmp_path / "cache", token=token):
        assert HfApi().model_info("someone/model").gated == "auto"
        with pytest.raises(GatedRepoError):
            hf_hub_download("someone/model", "config.json")
    with hub.pointed(tmp_path / "cache", token=hub_server.TOKEN):
        assert Path(hf_hub_download("someone/model", "config.json")).read_text() == "{}"


def test_a_download_that_is_cut_goes_on(hub, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add("someone/model", folder)
    hub.cuts["part/model.safetensors"] = 2
    with hub.pointed(tmp_path / "cache"):
        got = hf_hub_download("someone/model", "part/model.safetensors")
    assert Path(got).read_bytes() == (folder / "part" / "model.safetensors").read_bytes()
    assert hub.downloads == ["part/model.safetensors"] * 3


def test_a_wrong_size_is_noticed(hub, folder, tmp_path):
    hub.add("someone/model", folder)
    hub.sizes["part/model.safetensors"] = 5
    with hub.pointed(tmp_path / "cache"), pytest.raises(OSError, match="should be of size 5"):
        hf_hub_download("someone/model", "part/model.safetensors")


def test_offline_only_what_is_here_is_found(hub, folder, tmp_path):
    hub.add("someone/model", folder)
    with hub.pointed(tmp_path / "cache", offline=True), pytest.raises(LocalEntryNotFoundError):
        snapshot_download("someone/model")
    assert hub.requests == []


def test_another_process_is_pointed_by_its_environment(hub, folder, tmp_path):
    hub.add("someone/model", folder)
    code = "import huggingface_hub as h; print(h.snapshot_download('someone/model'))"
    environment = os.environ | hub.environment(tmp_path / "cache")
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip().endswith(hub_server.commit_of(folder))
    assert said.stdout.startswith(str(tmp_path / "cache"))
