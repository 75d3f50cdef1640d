"""A model's name -> its files and adapter, checked without importing a model library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.models.catalog import FAMILIES, PATCH, ModelEntry
from bench.registry import InputError, load, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A complete local pipeline folder."""

    family: str
    """The adapter, as module:class."""
    folder: Path


def resolve_model(name: str, plugins: Sequence[Path] = ()) -> ModelSource:
    """Return where the model of a registered name, or in a folder, is.

    Raises:
        InputError: for an unknown name, a folder that is no pipeline of a known family, or a hub model that is not
            on this machine, with the command that fetches it.
    """
    models = load("models", plugins).values
    if name in models:
        entry: ModelEntry = models[name]
        folder = Path(entry.source)
        folder = folder if folder.is_dir() else _cached(name, entry.source)
        check_parts(name, folder)
        return ModelSource(family=entry.family, folder=folder)
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"unknown model {name!r}{nearest(name, models)}; or give a folder in diffusers' layout")
    kind = checked_index(name, folder).get("_class_name", "")
    if kind not in FAMILIES:
        raise InputError(f"model {name!r} is a {kind}; adapters exist for {', '.join(FAMILIES)}")
    check_parts(name, folder)
    return ModelSource(family=FAMILIES[kind], folder=folder)


def checked_index(name: str, folder: Path) -> dict[str, Any]:
    """Return what a pipeline's model_index.json says."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"model {name!r} has no model_index.json: it is not a pipeline in diffusers' layout")
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"the model_index.json of model {name!r} is damaged: fetch the whole repository again")
    return found


def check_parts(name: str, folder: Path) -> None:
    """Raise InputError unless every part that the pipeline's index names is there."""
    parts = [key for key, value in checked_index(name, folder).items() if isinstance(value, list) and value[0]]
    missing = [part for part in parts if not (folder / part).is_dir() or not any((folder / part).iterdir())]
    if missing:
        raise InputError(f"model {name!r} lacks {', '.join(missing)}: fetch the whole repository again")


def check_side(source: ModelSource, resolution: int) -> None:
    """Raise InputError unless images of this side are whole tokens."""
    vae = json.loads((source.folder / "vae" / "config.json").read_text(encoding="utf-8"))
    multiple = PATCH.get(source.family, 1) * 2 ** (len(vae.get("block_out_channels", [0])) - 1)
    if resolution % multiple:
        raise InputError(f"resolution={resolution}: this model makes images whose side is a multiple of {multiple}")


def entry_of(name: str, plugins: Sequence[Path] = ()) -> ModelEntry | None:
    """Return the entry of a registered name; None for a folder."""
    return load("models", plugins).values.get(name)


def model_digest(name: str, plugins: Sequence[Path] = ()) -> str:
    """Return a hash of a model's files; empty for a registered model whose files are not on this machine."""
    entry = entry_of(name, plugins)
    if entry is not None and not Path(entry.source).is_dir():
        return ""
    return folder_digest(resolve_model(name, plugins).folder)


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
    if Path(repository).is_absolute():
        raise InputError(
            f"model {name!r} is not in {repository}: `python -m bench.embedded.make --out {Path(repository).parent}` "
            "makes it"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"model {name!r} is not on this machine: `hf download {repository}` brings it "
            "(accept its licence on the hub first), or give --model the folder it is in"
        ) from error
