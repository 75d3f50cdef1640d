"""A pipeline's folder in diffusers' layout: what it must hold, what it lacks, which of a repository's files it needs.

Importing this module imports no model library; weights are looked at by the heads of their files alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
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
VOCABULARIES = (
    {"tokenizer.json"},
    {"vocab.json", "merges.txt"},
    {"spiece.model"},
    {"sentencepiece.bpe.model"},
    {"tokenizer.model"},
    {"vocab.txt"},
)
"""Files that a tokenizer's tokens are read from, by its kind: each set is enough."""
OF_BYTES = "ByT5Tokenizer"
"""Whose tokens are bytes: it has no vocabulary."""
OBJECTS = (
    *("config.json", "scheduler_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
"""JSON of a part that is small, and an object."""
LONG_OBJECTS = ("tokenizer.json", "vocab.json")
"""JSON that takes a while to parse: its ends alone are looked at."""
ENDS = 256
"""Bytes of each end in which the brackets of an object are."""
HEADER = 10**8
"""Bytes that a safetensors header has at most."""
SHOWN = 3
"""Flaws that an error names."""


def checked_index(name: str, folder: Path) -> dict[str, Any]:
    """Return what a pipeline's model_index.json says.

    Raises:
        InputError: if there is none, or none that can be read: of a class, of parts that are a library and a class.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"model {name!r} has no model_index.json: it is not a pipeline in diffusers' layout{_what(folder)}"
        )
    found = read_object(index)
    wrong = [] if found is None else [key for key, value in found.items() if not _is_entry(key, value)]
    if found is None or wrong:
        at = f" ({', '.join(wrong)})" if wrong else ""
        raise InputError(f"the model_index.json of model {name!r} is damaged{at}: fetch the whole repository again")
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


def lacking(kind: str, names: Collection[str]) -> str:
    """Return what a part of this class, of a known library, lacks by the names of its files; empty for nothing.

    Loaders make up for some of it in silence: without a vocabulary all prompts are the same few tokens.
    """
    if kind.endswith(("Tokenizer", "TokenizerFast")):
        known = kind == OF_BYTES or any(files <= {*names} for files in VOCABULARIES)
        return "" if known else "has no vocabulary (tokenizer.json)"
    if kind.endswith(("Processor", "FeatureExtractor")):
        known = any(name.endswith("processor_config.json") for name in names)
        return "" if known else "has no configuration (preprocessor_config.json)"
    if kind.endswith("Scheduler"):
        return "" if "scheduler_config.json" in names else "has no configuration (scheduler_config.json)"
    weights = sorted(name for name in names if WEIGHTS.fullmatch(name))
    shards = [name for name in weights if "-of-" in name]
    if not shards or len(shards) < len(weights) or any(name in INDEXES for name in names):
        return ""
    return f"has shards without their index ({shards[0].split('-')[0]}.safetensors.index.json)"


def lacking_parts(index: Mapping[str, Any], files: Iterable[str]) -> list[str]:
    """Return which parts of a repository lack what, by the names of its files; parts of other libraries are let be."""
    names: dict[str, set[str]] = {part: set() for part in parts(index)}
    for part, _, name in (file.partition("/") for file in files):
        if part in names:
            names[part].add(name)
    known = {part: kind for part, kind in parts(index).items() if index[part][0] in LIBRARIES}
    return [f"{part} {what}" for part, kind in known.items() if (what := lacking(kind, names[part]))]


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
        elif index[part][0] in LIBRARIES:
            yield from _part_flaws(place, kind)


def weight_files(place: Path) -> list[Path]:
    """Return the files with the weights of a part: those that its index names, or the one."""
    for name in INDEXES:
        if (place / name).is_file():
            mapped = (read_object(place / name) or {}).get("weight_map")
            files = list(mapped.values()) if isinstance(mapped, dict) else []
            damaged = not all(isinstance(file, str) for file in files)
            return [] if damaged else [place / file for file in dict.fromkeys(files)]
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
    if not all(_is_tensor(tensor) for tensor in tensors.values()):
        return None
    return tensors, 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)


def unfinished(folder: Path) -> str:
    """Return a remark about downloads into a folder, or its place in the hub's cache, that were broken off."""
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder / ".cache" / "huggingface"
    count = sum(1 for _ in blobs.rglob("*.incomplete")) if blobs.is_dir() else 0
    return f" ({count} downloads were broken off)" if count > 1 else " (a download was broken off)" if count else ""


def read_object(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file says; None for one that is damaged, or no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_entry(key: str, value: Any) -> bool:
    """Return whether a key of model_index.json may have this value; a part that is left out is [null, null]."""
    if key == "_class_name":
        return isinstance(value, str)
    if not isinstance(value, list):
        return True
    return len(value) == 2 and (value[0] is None or all(isinstance(word, str) for word in value))


def _is_tensor(value: Any) -> bool:
    """Return whether a value describes a tensor in a safetensors header."""
    if not isinstance(value, dict):
        return False
    shape, offsets = value.get("shape"), value.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(isinstance(number, int) for number in (*shape, *offsets))


def _part_flaws(place: Path, kind: str) -> Iterator[str]:
    names = {path.name for path in place.iterdir() if path.is_file()}
    lacks = lacking(kind, names)
    if lacks:
        yield f"{place.name} {lacks}"
    vocabulary = {name for files in VOCABULARIES for name in files}
    for name in sorted(names & {*OBJECTS, *vocabulary}):
        file = place / name
        if _is_pointer(file):
            yield _pointed(file)
        elif name in LONG_OBJECTS and not _is_bracketed(file):
            yield f"{place.name}/{name} is cut short or damaged"
        elif name in OBJECTS and read_object(file) is None:
            yield f"{place.name}/{name} is damaged"
        elif not file.stat().st_size:
            yield f"{place.name}/{name} is empty"
    if has_weights(kind):
        yield from _weight_flaws(place)


def _is_bracketed(file: Path) -> bool:
    """Return whether a file begins and ends as an object in JSON does."""
    with file.open("rb") as opened:
        first = opened.read(ENDS)
        opened.seek(max(0, file.stat().st_size - ENDS))
        last = opened.read()
    return first.lstrip().startswith(b"{") and last.rstrip().endswith(b"}")


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(24) == b"version https://git-lfs."


def _pointed(file: Path) -> str:
    return f"{file.parent.name}/{file.name} is a pointer of Git LFS (`git lfs pull` brings it)"


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
        yield _pointed(file) if _is_pointer(file) else f"{at} is cut short or damaged"


def _what(folder: Path) -> str:
    """Return what a folder without an index is, where that can be seen, and what to give in its place."""
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else None
    kind = None if config is None else config.get("_class_name")
    if kind is None:
        return unfinished(folder)
    above = f"; give {folder.parent}" if (folder.parent / "model_index.json").is_file() else ""
    return f" but a {kind} alone, one part of a pipeline: the folder of the whole is wanted{above}"
