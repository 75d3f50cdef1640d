"""Images and videos on disk with their prompts: what `bench score` scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from bench.registry import InputError

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
VIDEOS = frozenset({".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".apng"})
LISTS = ("metadata.jsonl", "captions.jsonl", "metadata.csv")
"""Files of a folder that say which prompt is whose, as `datasets` reads them too; the first that is there does."""
FILE_KEYS = ("file_name", "image", "video", "file", "path")
PROMPT_KEYS = ("prompt", "caption", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """An image or video, and the prompt that it was made of."""

    file: Path
    prompt: str


def captioned(source: Path) -> list[Captioned]:
    """Return what a folder, or a list of files, holds, in its order.

    Args:
        source: a .jsonl or .csv whose rows have a file, relative to it, and a prompt; a folder with such a list
            (`LISTS`), with a NAME.txt beside each image, or the samples of a run.

    Raises:
        InputError: if there is none, a file is missing, or one has no prompt.
    """
    if source.is_file():
        found = list(_listed(source))
    elif source.is_dir():
        found = list(_of_folder(source))
    else:
        raise InputError(f"{source}: no such folder or file")
    if not found:
        raise InputError(f"{source} holds no image or video ({', '.join(sorted(IMAGES | VIDEOS))})")
    missing = [one.file for one in found if not _is_there(one.file)]
    if missing:
        raise InputError(f"{source} names {len(missing)} files that are not there, {missing[0]} the first")
    unwritable = [str(one.file) for one in found if not _is_text(str(one.file))]
    if unwritable:
        raise InputError(f"{unwritable[0]!a}: its name is not UTF-8, which a table cannot have: rename it")
    return found


def left_out(source: Path, found: Sequence[Captioned]) -> list[str]:
    """Return the names in a folder that are neither scored nor say what is: of other endings, or in no list."""
    if not source.is_dir():
        return []
    inside = [one.file.relative_to(source) for one in found if one.file.is_relative_to(source)]
    used = {*LISTS, *(path.parts[0] for path in inside), *(path.with_suffix(".txt").name for path in inside)}
    return sorted(path.name for path in source.iterdir() if path.name not in used and not path.name.startswith("."))


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def _is_text(text: str) -> bool:
    """Return whether there is no half of a character in it, as JSON can have, and names of files."""
    return not any(0xD800 <= ord(char) < 0xE000 for char in text)


def _of_folder(folder: Path) -> Iterator[Captioned]:
    for name in LISTS:
        if (folder / name).is_file():
            return _listed(folder / name)
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGES | VIDEOS]
    prompts = _of_run(folder.resolve())
    return _beside(folder, files) if prompts is None else _numbered(files, prompts)


def _numbered(files: Iterable[Path], prompts: Sequence[str]) -> Iterator[Captioned]:
    for path in files:
        if not (path.stem.isascii() and path.stem.isdecimal() and int(path.stem) < len(prompts)):
            raise InputError(
                f"{path} is no sample of the run, which are named by their prompts' numbers, 000 to "
                f"{len(prompts) - 1:03d}: move it elsewhere"
            )
        yield Captioned(file=path, prompt=prompts[int(path.stem)])


def _beside(folder: Path, files: Iterable[Path]) -> Iterator[Captioned]:
    for path in files:
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise InputError(f"{path.name} has no prompt: {folder} wants a metadata.jsonl, or a {text.name} beside it")
        yield Captioned(file=path, prompt=_text(text, "a prompt").strip())


def _text(file: Path, wanted: str) -> str:
    """Return what a file says, its ends of lines as they are."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {wanted} is wanted") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def _of_run(folder: Path) -> list[str] | None:
    """Return the held-out prompts of a run whose samples are in the folder, by number; None for other folders."""
    cell = folder.parent.parent
    if folder.name == "samples" and (folder.parent / "features.npz").is_file():
        base = folder.parent
    elif folder.parent.name == "samples" and (cell / "config.yaml").is_file():
        base = _base_of(cell)
    else:
        return None
    return _recorded(base, "prompts")


def _recorded(folder: Path, key: str) -> Any:
    """Return a value of a record."""
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'result.json'}, which says the samples' prompts, cannot be read") from error


def _base_of(cell: Path) -> Path:
    """Return the folder of the base record that a cell is measured against."""
    if (cell / "result.json").is_file():
        return cell.parent / _recorded(cell, "base")
    bases = [path.parent for path in sorted(cell.parent.glob("base-*/result.json"))]
    if len(bases) != 1:
        raise InputError(f"the prompts of {cell}'s samples are its base record's, and {cell.parent} has {len(bases)}")
    return bases[0]


def _listed(file: Path) -> Iterator[Captioned]:
    """Yield what the rows of a list name."""
    for number, row in _rows(file):
        where = f"{file}:{number}"
        name, prompt = _value(row, FILE_KEYS, where), _value(row, PROMPT_KEYS, where)
        path = file.parent / name
        if path.suffix.lower() not in IMAGES | VIDEOS:
            raise InputError(f"{where}: {name!r} is no image or video ({', '.join(sorted(IMAGES | VIDEOS))})")
        yield Captioned(file=path, prompt=prompt)


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield a list's rows, each with the number of a line."""
    kind = file.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise InputError(f"{file}: a folder, a .jsonl or a .csv is wanted")
    text = _text(file, "a .jsonl or .csv with files and prompts")
    yield from _csv_rows(file, text) if kind == ".csv" else _jsonl_rows(file, text)


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield rows with the number of the line that each ends on; a quoted field may be of several lines."""
    reader = csv.DictReader(StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:  # what DictReader puts the rest under
                raise InputError(f'{file}:{reader.line_num} has more fields than columns: "quote a, comma" in a field')
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num + 1} is not CSV from there on: {error}") from error


def _jsonl_rows(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):  # U+2028 and others that end lines elsewhere stand in texts
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{file}:{number}: a mapping with a file and a prompt is wanted")
        yield number, row


def _value(row: Mapping[str, Any], keys: tuple[str, ...], where: str) -> str:
    """Return the text of the first of some keys that a row has, which may be empty."""
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise InputError(f"{where} has no {keys[0]}; one of {', '.join(keys)} is wanted")
    if not isinstance(row[key], str) or not _is_text(row[key]):
        raise InputError(f"{where}: {key} is {json.dumps(row[key])[:80]}, and a text is wanted")
    return row[key]
