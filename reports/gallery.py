"""What the models draw: the same prompts under the same noise, a column an arm, through the checkpoints."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import BaseResult, CellRecord, SuiteRecord
from reports.arms import Arm

PROMPTS = 8
"""Most prompts of a gallery."""
SIDE = 256
"""Pixels beyond which an image is made smaller, so that the page stays one file that a browser opens."""
FRAME = 100
"""Milliseconds that a frame is shown of an animation that does not say it."""

Images = Mapping[int, Path]
"""Number of the prompt -> its image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A model's images at one iteration, one a prompt."""

    iteration: int
    images: tuple[str, ...]
    """Data URIs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """An arm's images, from its first checkpoint to its last."""

    label: str
    note: str
    """Which of its cells it is."""
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Images of a suite's models."""

    prompts: tuple[str, ...]
    base: Frame
    columns: tuple[Column, ...]
    steps: tuple[int, ...]
    """Iterations of any column, from 0, the base model."""
    small: bool
    """Whether the images are small enough to be shown pixel by pixel."""
    shrunk: bool
    """Whether some were made smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inlined:
    """An image as a page holds it."""

    uri: str
    side: int
    """The longer one, pixels."""
    shrunk: bool
    """Whether it was made smaller for the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What an arm has drawn, as files."""

    label: str
    note: str
    checkpoints: Mapping[int, Images]
    """By iteration."""


def galleries(record: SuiteRecord, arms: Sequence[Arm]) -> list[Gallery]:
    """Return a gallery for each base record that has samples, of the arms measured against it that have some too."""
    found = []
    for name, base in record.bases.items():
        there = numbered(record.folder / name / "samples")
        drawn = [one for arm in arms if (one := samples(arm, name, alone=len(record.bases) == 1)) and one.checkpoints]
        common = set(there).intersection(*(images for one in drawn for images in one.checkpoints.values()))
        numbers = sorted(number for number in common if number < len(base["prompts"]))[:PROMPTS]
        if drawn and numbers:
            found.append(gallery(base, there, drawn, numbers))
    return found


def samples(arm: Arm, base: str, *, alone: bool) -> Samples | None:
    """Return the samples of the arm's first finished cell, else of its first; None if it belongs to another base.

    An unfinished cell does not say its base: it is shown where there is one base `alone`.
    """
    cell = arm.done[0] if arm.done else arm.cells[0]
    if not (alone if cell.result is None else cell.result["base"] == base):
        return None
    note = f"seed {cell.config['seed']}{'' if cell.result else ', unfinished'}"
    return Samples(label=arm.label, note=note, checkpoints=checkpoints(cell))


def gallery(base: BaseResult, there: Images, drawn: Sequence[Samples], numbers: Sequence[int]) -> Gallery:
    """Return the gallery of these prompts."""
    read = {
        path: inlined(path)
        for images in (there, *(images for one in drawn for images in one.checkpoints.values()))
        for path in (images[number] for number in numbers)
    }

    def frame(iteration: int, images: Images) -> Frame:
        return Frame(iteration=iteration, images=tuple(read[images[number]].uri for number in numbers))

    columns = tuple(
        Column(label=one.label, note=one.note, frames=tuple(frame(*item) for item in one.checkpoints.items()))
        for one in drawn
    )
    return Gallery(
        prompts=tuple(base["prompts"][number] for number in numbers),
        base=frame(0, there),
        columns=columns,
        steps=tuple(sorted({0, *(one.iteration for column in columns for one in column.frames)})),
        small=max(image.side for image in read.values()) <= SIDE // 2,
        shrunk=any(image.shrunk for image in read.values()),
    )


def checkpoints(cell: CellRecord) -> dict[int, Images]:
    """Return a cell's samples by iteration; those of earlier versions, without folders, are the finished model's."""
    folder = cell.folder / "samples"
    found = {
        int(path.name): numbered(path) for path in sorted(folder.glob("*")) if path.is_dir() and path.name.isdigit()
    }
    if cell.result is not None:
        found.setdefault(cell.result["iterations"], numbered(folder))
    return {iteration: images for iteration, images in sorted(found.items()) if images}


def numbered(folder: Path) -> dict[int, Path]:
    """Return a folder's images by the number of their prompt."""
    return {int(path.stem): path for path in sorted(folder.glob("*.png")) if path.stem.isdigit()}


def inlined(path: Path) -> Inlined:
    """Return an image as the page holds it.

    Raises:
        ValueError: if the file is no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            side = max(image.size)
            if side <= SIDE:
                return Inlined(uri=_uri(path.read_bytes(), "png"), side=side, shrunk=False)
            data, kind = _smaller(image)
    except OSError as error:
        raise ValueError(f"{path} is no image; delete it and report again") from error
    return Inlined(uri=_uri(data, kind), side=SIDE, shrunk=True)


def _smaller(image: Any) -> tuple[bytes, str]:
    """Return an image made smaller, and of what kind: a video's stays an animation."""
    from PIL import ImageSequence

    out, frames = io.BytesIO(), []
    for one in ImageSequence.Iterator(image):
        small = one.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        frames.append(small)
    first, *others = frames
    if not others:
        first.save(out, "JPEG", quality=88)
        return out.getvalue(), "jpeg"
    shown = {"duration": int(image.info.get("duration", FRAME)), "loop": 0}
    first.save(out, "WEBP", save_all=True, append_images=others, quality=80, **shown)
    return out.getvalue(), "webp"


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
