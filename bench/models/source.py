"""A model's name -> its files and adapter, checked without importing a model library."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.models.catalog import Family, ModelEntry
from bench.registry import InputError, load, nearest

CONFIGURATIONS = Path(__file__).parent / "configs"
"""Of registered models, a folder each: their pipelines without weights and tokenizers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A complete local pipeline folder."""

    family: Family
    folder: Path


def resolve_model(name: str, plugins: Sequence[Path] = (), *, weights: str = "pretrained") -> ModelSource:
    """Return where the model of a registered name, or in a folder, is; of random weights, where it is described.

    Raises:
        InputError: for an unknown name, a folder that is no pipeline of a known family, or a hub model that is not
            on this machine, with the command that fetches it.
    """
    if weights == "random" and (source := described(name, plugins)).folder.is_dir():
        return source
    entry = entry_of(name, plugins)
    if entry is not None:
        folder = Path(entry.source)
        folder = folder if folder.is_dir() else _cached(name, entry.source)
        family = load("families", plugins).get(entry.family)
    else:
        folder = Path(name)
        if not folder.is_dir():
            models = load("models", plugins).values
            raise InputError(f"unknown model {name!r}{nearest(name, models)}; or give a folder in diffusers' layout")
        family = family_of(name, folder, plugins)
    check_parts(name, folder)
    check_generation(name, folder)
    return ModelSource(family=family, folder=folder)


def described(name: str, plugins: Sequence[Path] = ()) -> ModelSource:
    """Return a model's family and a folder with its configurations, of a registered name before anything is fetched.

    Such a folder comes with the program; of a name from elsewhere there may be none.
    """
    entry = entry_of(name, plugins)
    if entry is None:
        return resolve_model(name, plugins)
    folder = Path(entry.source) if Path(entry.source).is_dir() else CONFIGURATIONS / name
    return ModelSource(family=load("families", plugins).get(entry.family), folder=folder)


def family_of(name: str, folder: Path, plugins: Sequence[Path] = ()) -> Family:
    """Return the family of the pipeline in a folder.

    Raises:
        InputError: if there is no adapter for it.
    """
    kind, known = checked_index(name, folder).get("_class_name", ""), load("families", plugins).values
    if kind not in known:
        raise InputError(f"model {name!r} is a {kind}; adapters exist for {', '.join(known)}")
    return known[kind]


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


def check_generation(name: str, folder: Path) -> None:
    """Raise InputError for pipelines of a known class whose models are of a kind that no adapter drives."""
    index = checked_index(name, folder)
    later = [key for key in ("transformer_2", "boundary_ratio", "expand_timesteps") if _said(index.get(key))]
    if later:
        raise InputError(
            f"model {name!r} is of Wan2.2, by its {' and '.join(later)}; the adapter drives Wan2.1: give one"
        )
    if part_config(folder, "transformer").get("pos_embed_seq_len"):
        raise InputError(f"model {name!r} starts from a first and a last frame; give a Wan2.1 model of a first frame")


def _said(value: Any) -> bool:
    return value is not None and value is not False and value != [None, None]


def check_size(source: ModelSource, height: int, width: int, frames: int) -> None:
    """Raise InputError unless images, or videos, of this size are whole tokens."""
    vae = part_config(source.folder, "vae")
    space, time = vae_factors(vae)
    multiple = source.family.patch * space
    size = f"resolution={height if height == width else [height, width]}"
    if height % multiple or width % multiple:
        raise InputError(f"{size}: this model makes images whose sides are multiples of {multiple}")
    limit = part_config(source.folder, "transformer").get("pos_embed_max_size")  # SD3's positions are a table
    if limit and max(height, width) > multiple * limit:
        raise InputError(f"{size}: this model makes images of at most {multiple * limit} pixels a side")
    if source.family.media == "image" and frames > 1:
        raise InputError(f"frames={frames}: this model makes images, of one frame")
    if (frames - 1) % time:
        near = max(1, round((frames - 1) / time)) * time + 1
        raise InputError(f"frames={frames}: this model makes videos of {time}k+1 frames; the nearest is {near}")


def vae_factors(vae: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many pixels a side, and frames, one latent of a VAE of this configuration stands for."""
    if "temperal_downsample" in vae:  # AutoencoderKLWan's own spelling
        stages = vae["temperal_downsample"]
        return vae.get("scale_factor_spatial") or 2 ** len(stages), vae.get("scale_factor_temporal") or 2 ** sum(stages)
    return 2 ** (len(vae.get("block_out_channels", [0])) - 1), 1


def part_config(folder: Path, part: str) -> dict[str, Any]:
    """Return the configuration of a part; empty where it has none."""
    for name in ("config.json", "scheduler_config.json"):
        path = folder / part / name
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


def dynamic_shift(source: ModelSource, height: int, width: int) -> float:
    """Return the shift that the model's own pipeline computes from the number of an image's tokens: e^mu.

    mu is linear between (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift) of the scheduler's
    configuration, as in the FLUX and SD3 pipelines of diffusers.

    Raises:
        InputError: if its scheduler has no such shift.
    """
    scheduler = part_config(source.folder, "scheduler")
    if not scheduler.get("use_dynamic_shifting"):
        raise InputError(f"shift=dynamic: this model's scheduler has a fixed one, {scheduler.get('shift', 1.0)}")
    token = source.family.patch * vae_factors(part_config(source.folder, "vae"))[0]
    least, most = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = low + (high - low) * ((height // token) * (width // token) - least) / (most - least)
    return math.exp(mu)


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
