"""A model's name -> its files on this machine and its adapter, checked without importing a model library."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.models import hub
from bench.models.catalog import Family, ModelEntry
from bench.models.layout import check_complete, checked_index, flaws, parts, read_object, unfinished
from bench.registry import InputError, load, nearest

CONFIGURATIONS = Path(__file__).parent / "configs"
"""Of registered models, a folder each: their pipelines without weights and tokenizers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A local pipeline folder."""

    family: Family
    folder: Path

    @property
    def revision(self) -> str:
        """Return the commit of the hub that the folder holds; empty where it is not from there."""
        return hub.commit_of(self.folder)


def resolve_model(name: str, plugins: Sequence[Path] = (), *, weights: str = "pretrained") -> ModelSource:
    """Return where a model is, complete; of random weights, where it is described.

    Args:
        name: registered, a hub id with an optional @revision, or a folder in diffusers' layout.
        plugins: files that may register names.
        weights: pretrained or random.

    Raises:
        InputError: for a name that is none of these, a pipeline of no known family, or files that are not on this
            machine or not whole, with the command that fetches them.
    """
    if weights == "random" and (source := described(name, plugins)).folder.is_dir():
        check_generation(name, source)
        check_described(name, source)
        return source
    entry = entry_of(name, plugins)
    if entry is None:
        source = _unregistered(name, plugins)
    else:
        folder = _registered(name, entry)
        source = ModelSource(family=load("families", plugins).get(entry.family), folder=folder)
    check_complete(name, source.folder, _remedy(name, source))
    check_generation(name, source)
    return source


def check_described(name: str, source: ModelSource) -> None:
    """Raise InputError unless what an adapter builds of random weights has its configurations, where there is such."""
    there = parts(checked_index(name, source.folder))
    lacking = [part for part in ("transformer", "vae") if part in there and not part_config(source.folder, part)]
    if lacking:
        raise InputError(f"model {name!r} lacks the configuration of {', '.join(lacking)}: fetch the repository again")


def described(name: str, plugins: Sequence[Path] = ()) -> ModelSource:
    """Return a model's family and a folder with its configurations, of a registered name before anything is fetched.

    Such a folder comes with the program; of a name from elsewhere there may be none.
    """
    entry = entry_of(name, plugins)
    if entry is None:
        return _unregistered(name, plugins)
    folder = Path(entry.source) if Path(entry.source).is_dir() else CONFIGURATIONS / name
    if not folder.is_dir():  # a name from elsewhere
        folder = _fetched(entry) or folder
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


def check_generation(name: str, source: ModelSource) -> None:
    """Raise InputError for pipelines of a known class whose models are of a kind that no adapter drives."""
    folder, family = source.folder, source.family
    index = checked_index(name, folder)
    later = [key for key in ("transformer_2", "boundary_ratio", "expand_timesteps") if _said(index.get(key))]
    if later:
        raise InputError(
            f"model {name!r} is of Wan2.2, by its {' and '.join(later)}; the adapter drives Wan2.1: give one"
        )
    config = part_config(folder, "transformer")
    kind = config.get("_class_name", family.transformer)
    if family.transformer and kind != family.transformer:
        raise InputError(f"model {name!r} has a {kind} where its pipeline has a {family.transformer}; give another")
    if "image_dim" in config and family.first_frame != (config["image_dim"] is not None):
        from_image = "" if config["image_dim"] is not None else "out"
        raise InputError(f"model {name!r} has a transformer with{from_image} a first frame under the other's pipeline")
    if config.get("pos_embed_seq_len"):
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
    """Return the configuration of a part; empty where it has none.

    Raises:
        InputError: if it has one that cannot be read.
    """
    for name in ("config.json", "scheduler_config.json"):
        path = folder / part / name
        if path.is_file():
            config = read_object(path)
            if config is None:
                raise InputError(f"{path} is damaged: fetch the whole repository again")
            return config
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
        fixed = scheduler.get("shift", scheduler.get("flow_shift", 1.0))
        raise InputError(f"shift=dynamic: this model's scheduler has a fixed one, {fixed}")
    token = source.family.patch * vae_factors(part_config(source.folder, "vae"))[0]
    least, most = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = low + (high - low) * ((height // token) * (width // token) - least) / (most - least)
    return math.exp(mu)


def entry_of(name: str, plugins: Sequence[Path] = ()) -> ModelEntry | None:
    """Return the entry of a registered name; None for a folder."""
    return load("models", plugins).values.get(name)


def known_as(name: str, plugins: Sequence[Path] = ()) -> ModelEntry | None:
    """Return the entry of a registered name, or of the hub's repository that it stands for, at whatever revision."""
    models = load("models", plugins).values
    bare = name.partition("@")[0]
    return models.get(bare) or next((entry for entry in models.values() if entry.source == bare), None)


def repository_of(name: str, plugins: Sequence[Path] = ()) -> hub.Repository | None:
    """Return the hub's repository of a registered name or a hub id, either with an optional @revision."""
    bare, at, revision = name.partition("@")
    entry = entry_of(bare, plugins)
    if entry is None:
        return hub.hub_id(name)
    return None if Path(entry.source).is_dir() else hub.hub_id(f"{entry.source}{at}{revision}")


def model_digest(name: str, plugins: Sequence[Path] = (), *, weights: str = "pretrained") -> str:
    """Return a hash of a model's files; empty for a registered one whose files are not on this machine, or not needed.

    Raises:
        InputError: as `resolve_model`, for what is not registered.
    """
    entry = entry_of(name, plugins)
    if entry is not None and not Path(entry.source).is_dir():
        folder = None if weights == "random" else _fetched(entry)
        return folder_digest(folder) if folder is not None else ""
    return folder_digest(resolve_model(name, plugins, weights=weights).folder)


def adapter_digest(family: Family) -> str:
    """Return a short hash of the file of a family's adapter: what encodes its prompts.

    Raises:
        InputError: if it is no module:class of a module that is there.
    """
    module, _, name = family.adapter.partition(":")
    try:
        spec = find_spec(module) if name else None
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"the family's adapter {family.adapter!r} is no module:class that can be imported; mend it")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:8]


def folder_digest(folder: Path) -> str:
    """Return a short hash of a folder's file names, sizes, and the first and last mebibyte of each file.

    Hidden files, which downloads and version control leave behind, do not count.
    """
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        within = path.relative_to(folder)
        if any(part.startswith(".") for part in within.parts):
            continue
        size = path.stat().st_size
        sha.update(f"{within.as_posix()}:{size};".encode())
        with path.open("rb") as file:
            sha.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            sha.update(file.read())
    return sha.hexdigest()[:10]


def _unregistered(name: str, plugins: Sequence[Path]) -> ModelSource:
    """Return the pipeline in a folder, or of a hub id, as far as it is on this machine."""
    folder, repository = Path(name), repository_of(name, plugins)
    if not folder.is_dir():
        if folder.is_file():
            raise InputError(f"model {name!r} is a file: give a pipeline's folder in diffusers' layout, or a hub id")
        if repository is None:
            hint = nearest(name, load("models", plugins).values)
            raise InputError(f"unknown model {name!r}{hint}; or give a folder in diffusers' layout, or a hub id")
        folder = _snapshot(name, repository)
    return ModelSource(family=family_of(name, folder, plugins), folder=folder)


def _registered(name: str, entry: ModelEntry) -> Path:
    """Return the folder of a registered model, as far as it is on this machine."""
    if Path(entry.source).is_dir():
        return Path(entry.source)
    repository = hub.hub_id(entry.source)
    if repository is None:
        make = f"`python -m bench.embedded.make --out {Path(entry.source).parent}` makes it"
        raise InputError(f"model {name!r} is not in {entry.source}: {make}")
    return _snapshot(name, repository)


def _fetched(entry: ModelEntry) -> Path | None:
    """Return the folder of a registered model of the hub if it is on this machine, complete."""
    repository = hub.hub_id(entry.source)
    folder = None if repository is None else hub.snapshot(repository)
    if folder is None or not (folder / "model_index.json").is_file():
        return None
    return None if any(flaws(folder, checked_index(entry.source, folder))) else folder


def _snapshot(name: str, repository: hub.Repository) -> Path:
    """Return the folder of a repository's revision in the hub's cache; its index at least is there."""
    folder, others, fetches = (
        hub.snapshot(repository),
        hub.revisions_here(repository),
        f"`bench prepare --model {name}`",
    )
    if folder is None and repository.revision and others:
        here = f"not on this machine, where {', '.join(others)} are"
        raise InputError(f"revision {repository.revision!r} of {repository.name} is {here}: {fetches} fetches it")
    if folder is None:
        other = "or give --model the folder it is in"
        raise InputError(f"model {name!r} is not on this machine: {fetches} fetches it, {other}")
    if not (folder / "model_index.json").is_file():
        begun = f"model_index.json is missing{unfinished(folder)}"
        raise InputError(f"model {name!r} is not complete: {begun}; {fetches} fetches the rest")
    return folder


def _remedy(name: str, source: ModelSource) -> str:
    fetches = f"`bench prepare --model {name}` fetches the rest"
    return fetches if source.revision else "fetch the whole repository again"
