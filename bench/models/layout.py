"""A pipeline's folder in diffusers' layout: what it must hold, what it lacks, which of a repository's files it needs.

Importing this module imports no model library; weights are looked at by the heads of their files alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.registry import InputError

WITHOUT_WEIGHTS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "FeatureExtractor")
"""Ends of the names of classes that have none."""
LIBRARIES = ("diffusers", "transformers")
"""Whose classes save their weights under names that are known here; a family of one's own may have others."""
WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?\.safetensors")
"""The file names that loaders take by themselves; others are precisions and copies for other programs."""
INDEXES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
"""Which tensor is in which of several files."""
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data")
HEADER = 10**8
"""Bytes that a safetensors header has at most."""
SHOWN = 3
"""Flaws that an error names."""


def checked_index(name: str, folder: Path) -> dict[str, Any]:
    """Return what a pipeline's model_index.json says.

    Raises:
        InputError: if there is none, or none that can be read.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"model {name!r} has no model_index.json: it is not a pipeline in diffusers' layout{_what(folder)}"
        )
    found = _read(index)
    if not isinstance(found, dict):
        raise InputError(f"the model_index.json of model {name!r} is damaged: fetch the whole repository again")
    return found


def parts(index: Mapping[str, Any]) -> dict[str, str]:
    """Return the parts of a pipeline and their classes; those that it is without are left out."""
    return {key: value[1] for key, value in index.items() if isinstance(value, list) and value[0]}


def has_weights(kind: str) -> bool:
    """Return whether a part of this class has weights."""
    return not kind.endswith(WITHOUT_WEIGHTS)


def needed(index: Mapping[str, Any], files: Iterable[str]) -> list[str]:
    """Return which of a repository's files the pipeline of this index is made of, in order.

    Of weights these are the safetensors that loaders take by themselves: no second precision, no pickle, and no
    single-file checkpoint for other programs.
    """
    kinds, chosen = parts(index), ["model_index.json"]
    for file in files:
        part, _, name = file.partition("/")
        if part not in kinds or not name:
            continue
        if has_weights(kinds[part]):
            wanted = WEIGHTS.fullmatch(name) or name in INDEXES or (name.endswith(".json") and ".index." not in name)
        else:
            wanted = not name.endswith(OTHER_WEIGHTS)
        if wanted:
            chosen.append(file)
    return chosen


def without_safetensors(index: Mapping[str, Any], files: Iterable[str]) -> list[str]:
    """Return the parts of which a repository has no weights as safetensors."""
    there = {part for part, _, name in (file.partition("/") for file in files) if WEIGHTS.fullmatch(name)}
    return [part for part, kind in parts(index).items() if has_weights(kind) and part not in there]


def check_complete(name: str, folder: Path, remedy: str) -> None:
    """Raise InputError, ending in the remedy, unless every part of the pipeline is there, whole."""
    found = list(flaws(folder, checked_index(name, folder)))
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise InputError(
            f"model {name!r} is not complete: {', '.join(found[:SHOWN])}{more}{unfinished(folder)}; {remedy}"
        )


def flaws(folder: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a pipeline's folder, as far as names and the heads of files tell."""
    for part, kind in parts(index).items():
        place = folder / part
        if not place.is_dir() or not any(place.iterdir()):
            yield f"{part} is missing"
        elif index[part][0] in LIBRARIES and has_weights(kind):
            yield from _weight_flaws(place)


def weight_files(place: Path) -> list[Path]:
    """Return the files with the weights of a part: those that its index names, or the one."""
    for name in INDEXES:
        if (place / name).is_file():
            index = _read(place / name)
            mapped = index.get("weight_map") if isinstance(index, dict) else None
            return [place / file for file in dict.fromkeys(mapped.values())] if isinstance(mapped, dict) else []
    return [path for path in sorted(place.iterdir()) if WEIGHTS.fullmatch(path.name)]


def header(path: Path) -> tuple[dict[str, Any], int] | None:
    """Return what a safetensors file says of its tensors, and its size in bytes by that; None if it is no such file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= HEADER else b""
    try:
        tensors = json.loads(text)
    except ValueError:
        return None
    if not isinstance(tensors, dict):
        return None
    tensors.pop("__metadata__", None)
    return tensors, 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)


def unfinished(folder: Path) -> str:
    """Return a remark about downloads into a folder, or its place in the hub's cache, that were broken off."""
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder / ".cache" / "huggingface"
    count = sum(1 for _ in blobs.rglob("*.incomplete")) if blobs.is_dir() else 0
    return f" ({count} downloads were broken off)" if count > 1 else " (a download was broken off)" if count else ""


def _weight_flaws(place: Path) -> Iterator[str]:
    files, part = weight_files(place), place.name
    if not (place / "config.json").is_file():
        yield f"{part}/config.json is missing"
    if not files:
        damaged = [name for name in INDEXES if (place / name).is_file()]
        yield f"{part}/{damaged[0]} is damaged" if damaged else f"{part} has no weights (safetensors)"
    for file in files:
        if not file.is_file():
            yield f"{part}/{file.name} is missing"
        else:
            yield from _file_flaws(file)


def _file_flaws(file: Path) -> Iterator[str]:
    size, told = file.stat().st_size, header(file)
    at = f"{file.parent.name}/{file.name}"
    if told is not None and size != told[1]:
        yield f"{at} is cut short ({size:,} of {told[1]:,} bytes)" if size < told[1] else f"{at} is damaged"
    elif told is None:
        with file.open("rb") as opened:
            pointer = opened.read(24) == b"version https://git-lfs."
        yield f"{at} is a pointer of Git LFS (`git lfs pull` brings it)" if pointer else f"{at} is cut short or damaged"


def _read(path: Path) -> Any:
    """Return a JSON file's value; None for one that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _what(folder: Path) -> str:
    """Return what a folder without an index is, where that can be seen, and what to give in its place."""
    config = _read(folder / "config.json") if (folder / "config.json").is_file() else None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind is None:
        return unfinished(folder)
    above = f"; give {folder.parent}" if (folder.parent / "model_index.json").is_file() else ""
    return f" but a {kind} alone, one part of a pipeline: the folder of the whole is wanted{above}"
