"""Files of prompts -> their rows: text, JSONL, JSON, CSV, parquet. Every row keeps its place, for messages."""

from __future__ import annotations

import csv
import gc
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.registry import InputError

COLUMNS = ("prompt", "caption", "text")
"""Where prompts are; the first that a file has."""
IMAGE = "image"
"""Where the path of a first frame is, relative to the file."""
SHOWN = 12
"""Columns that a message lists, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a file holds."""

    name: str
    """What messages call the file."""
    texts: tuple[str, ...]
    """Stripped; empty where a row has none."""
    images: tuple[str, ...]
    """As the file gives them, empty where a row has none; no entries without such a column."""
    unit: str
    """What `numbers` count: lines, items, rows."""
    numbers: Sequence[int]
    """Of each row, from 1."""

    def place(self, index: int) -> str:
        """Return where a row is, in words."""
        return f"{self.name}, {self.unit} {self.numbers[index]}"


def read(path: Path, name: str) -> Rows:
    """Return the rows of a file, in the format that its name says; text, one prompt a line, if it says none.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        InputError: if it cannot be read, is damaged, or holds what is no prompt, with the line.
    """
    try:
        with uncollected():
            rows = READERS.get(path.suffix.lower(), lines)(path, name)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}; check the file") from error
    check_texts(rows)
    return rows


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave garbage alone inside: collectors walk the objects of a large file again and again, and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def lines(path: Path, name: str) -> Rows:
    """Return a text file's lines."""
    return made(decoded(path, name).splitlines(), (), name, "line")


def jsonl(path: Path, name: str) -> Rows:
    """Return the values of a file that has one a line; blank lines are none."""
    # Not splitlines: JSON may hold U+2028 and others as they are.
    found = [(n, line) for n, line in enumerate(decoded(path, name).split("\n"), 1) if line.strip()]
    items = [parsed(line, f"{name}, line {n}") for n, line in found]
    return values(items, name, "line", [n for n, _ in found])


def json_list(path: Path, name: str) -> Rows:
    """Return the values of a file that is one list."""
    items = parsed(decoded(path, name), name)
    if not isinstance(items, list):
        raise InputError(f"{name} holds {kind(items)}; a list of prompts, or of objects with a prompt each, is wanted")
    return values(items, name, "item", range(1, len(items) + 1))


def parsed(text: str, name: str) -> Any:
    """Return a JSON value."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{name} is nested too deeply; a list of prompts, or of objects, is wanted") from error
    except ValueError as error:
        raise InputError(f"{name} is no JSON ({error}); mend it") from error


def values(items: Sequence[Any], name: str, unit: str, numbers: Sequence[int]) -> Rows:
    """Return the rows of JSON values: text, or objects with it."""
    objects = [item for item in items if isinstance(item, dict)]
    keys = list(dict.fromkeys(key for item in objects for key in item))
    column = wanted(keys, name) if objects else ""
    texts = [text_of(item, column, name, unit, number) for number, item in zip(numbers, items, strict=True)]
    images = json_images(items, name, unit, numbers) if IMAGE in keys else ()
    return made(texts, images, name, unit, numbers)


def text_of(item: Any, column: str, name: str, unit: str, number: int) -> str:
    """Return the prompt of a JSON value: text itself, or what is in an object's column, null for none."""
    if isinstance(item, dict):
        if column not in item:
            raise InputError(f"{name}, {unit} {number} has no {column!r}, as others have; it has: {listed(item)}")
        item = "" if item[column] is None else item[column]
    if not isinstance(item, str):
        raise InputError(f"{name}, {unit} {number}: the prompt is {kind(item)}; text is wanted")
    return item


def json_images(items: Sequence[Any], name: str, unit: str, numbers: Sequence[int]) -> list[str]:
    """Return the images that objects name; none where one has no such key, or null under it."""
    images = []
    for number, item in zip(numbers, items, strict=True):
        image = item.get(IMAGE) if isinstance(item, dict) else None
        if not isinstance(image, str | None):
            raise InputError(f"{name}, {unit} {number}: the image is {kind(image)}; the path of a file is wanted")
        images.append(image or "")
    return images


def table(path: Path, name: str) -> Rows:
    """Return the rows of a CSV file; the first is its header."""
    reader = csv.reader(io.StringIO(decoded(path, name), newline=""), strict=True)
    try:
        header = next(reader, [])
        found = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        where = f"{name}, line {reader.line_num}"
        raise InputError(f"{where} is no CSV ({error}); quote prompts, and write a quote in one twice") from error
    column = header.index(wanted(header, name))
    for number, row in found:
        if row and len(row) != len(header):
            raise InputError(
                f"{name}, line {number} has {len(row)} fields, the header {len(header)}; quote prompts that hold commas"
            )
    image = header.index(IMAGE) if IMAGE in header else None
    return made(
        [row[column] if row else "" for _, row in found],
        [row[image] if row else "" for _, row in found] if image is not None else (),
        name,
        "line",
        [number for number, _ in found],
    )


def parquet(path: Path, name: str) -> Rows:
    """Return the rows of a parquet file. Images that are in the file itself are no paths, and are not read."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with path.open("rb") as source:
        try:
            file = ParquetFile(source)
            schema = file.schema_arrow
            column = wanted(schema.names, name)
            if not is_text(schema.field(column).type):
                raise InputError(f"{name}: column {column!r} holds {schema.field(column).type}; text is wanted")
            images = schema.names.count(IMAGE) == 1 and is_text(schema.field(IMAGE).type)
            # Without threads, so that the process can fork afterwards.
            found = file.read(columns=[column, IMAGE] if images else [column], use_threads=False)
            texts = [text or "" for text in found[column].to_pylist()]
            paths = [image or "" for image in found[IMAGE].to_pylist()] if images else ()
        except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
            raise InputError(f"{name} is damaged, or no parquet ({first_line(error)}); fetch it again") from error
    return made(texts, paths, name, "row")


def is_text(arrow: Any) -> bool:
    """Return whether a parquet column's type is text, or nothing but nulls."""
    from pyarrow import types

    value = arrow.value_type if types.is_dictionary(arrow) else arrow
    return any(is_(value) for is_ in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


READERS: Mapping[str, Callable[[Path, str], Rows]] = MappingProxyType(
    {".txt": lines, ".jsonl": jsonl, ".json": json_list, ".csv": table, ".parquet": parquet}
)
"""By the end of a file's name, in lower case."""


def decoded(path: Path, name: str) -> str:
    """Return a file's text, without a byte order mark."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} is not UTF-8 text: {error.reason} at byte {error.start}, line {line}; save it as UTF-8"
        ) from error


def made(
    texts: Sequence[str], images: Sequence[str], name: str, unit: str, numbers: Sequence[int] | None = None
) -> Rows:
    """Return rows, their texts stripped; without numbers they are counted."""
    return Rows(
        name=name,
        texts=tuple(map(str.strip, texts)),
        images=tuple(map(str.strip, images)),
        unit=unit,
        numbers=range(1, len(texts) + 1) if numbers is None else numbers,
    )


def wanted(columns: Sequence[str], name: str) -> str:
    """Return the column that prompts are in."""
    found = next((column for column in COLUMNS if column in columns), None)
    if found is None:
        raise InputError(
            f"{name} has no column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; it has: {listed(columns) or 'none'}"
        )
    for column in (found, IMAGE):
        if columns.count(column) > 1:
            raise InputError(f"{name} has the column {column!r} twice; rename one")
    return found


def listed(columns: Sequence[str] | Mapping[str, Any]) -> str:
    """Return names of columns, at most so many and so long as a line takes."""
    short = [repr(name if len(name) <= 40 else f"{name[:40]}...") for name in columns]
    return ", ".join(short[:SHOWN]) + (f" and {len(short) - SHOWN} more" if len(short) > SHOWN else "")


def kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"a number, {value:.6g}" if abs(value) < 1e15 else "a number"
    return {str: "text", list: "a list", dict: "an object"}[type(value)]


def first_line(error: Exception) -> str:
    """Return the beginning of what a library says."""
    return str(error).strip().partition("\n")[0][:200].rstrip(".")


def check_texts(rows: Rows) -> None:
    """Raise InputError for a prompt, or an image's name, that no text is."""
    for column in (rows.texts, rows.images):
        whole = "".join(column)
        if "\0" not in whole and _encodable(whole):
            continue
        for index, text in enumerate(column):
            if "\0" in text:
                raise InputError(f"{rows.place(index)} holds a NUL character, which is no text; save the file as UTF-8")
            if not _encodable(text):
                raise InputError(f"{rows.place(index)} holds half of a surrogate pair, which is no text; mend it")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_frames(rows: Rows, folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the rows that have a prompt and an image, each with the image's absolute path.

    Raises:
        InputError: for an image that is not there or cannot be opened, with its row.
    """
    opened: set[Path] = set()
    for index, image in enumerate(rows.images):
        if not (image and rows.texts[index]):
            continue
        path = (folder / image).absolute()
        if path not in opened:
            check_image(path, image, rows.place(index))
            opened.add(path)
        yield index, path


def check_image(path: Path, image: str, place: str) -> None:
    """Raise InputError unless an image can be opened."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.verify()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{place}: the image {image!r} is not there; paths are relative to the file of prompts"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{place}: the image {image!r} cannot be opened ({first_line(error)}); replace it") from error
