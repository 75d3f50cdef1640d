"""A model's name -> its files and adapter, checked without importing a model library."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from bench.models.catalog import FAMILIES, ModelEntry
from bench.registry import InputError, load, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A complete local pipeline folder."""

    family: str
    """The adapter, as module:class."""
    folder: Path


def resolve_model(name: str) -> ModelSource:
    """Return where the model of a registered name, or in a folder, is.

    Raises:
        InputError: for an unknown name, a folder that is no pipeline of a known family, or a hub model that is not
            on this machine, with the command that fetches it.
    """
    models = load("models").values
    if name in models:
        entry: ModelEntry = models[name]
        folder = Path(entry.source)
        return ModelSource(family=entry.family, folder=folder if folder.is_dir() else _cached(name, entry.source))
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"unknown model {name!r}{nearest(name, models)}; or give a folder in diffusers' layout")
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"model {name!r} has no model_index.json: it is not a pipeline in diffusers' layout")
    kind = json.loads(index.read_text()).get("_class_name", "")
    if kind not in FAMILIES:
        raise InputError(f"model {name!r} is a {kind}; adapters exist for {', '.join(FAMILIES)}")
    return ModelSource(family=FAMILIES[kind], folder=folder)


def entry_of(name: str) -> ModelEntry | None:
    """Return the catalog's entry of a registered name; None for a folder."""
    return load("models").values.get(name)


def folder_digest(folder: Path) -> str:
    """Return a short hash of a folder's file names, sizes, and the first and last mebibyte of each file."""
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        sha.update(f"{path.relative_to(folder).as_posix()}:{size};".encode())
        with path.open("rb") as file:
            sha.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            sha.update(file.read())
    return sha.hexdigest()[:10]


def _cached(name: str, repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"model {name!r} is not on this machine: `hf download {repository}` brings it "
            "(accept its licence on the hub first), or give --model the folder it is in"
        ) from error
