"""Images and videos on disk -> scores: what `bench score` does."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.contract import Reward, UnavailableError
from bench.policy import in_chunks
from bench.registry import InputError
from bench.score import score, whole_groups
from bench.scorers.captions import VIDEOS, Captioned
from bench.scorers.video_files import ANIMATED, read_video, video_rate, video_size

MODES = frozenset({"RGB", "L", "P", "1", "CMYK", "YCbCr"})
"""Of images that are RGB after conversion and nothing is lost: neither transparency nor bits."""
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations of EXIF that exchange height and width."""
INTERRUPTED = "interrupted: what is not scored has no score"

Size = tuple[int, int, int]
"""Frames, height, width; 0 frames of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Every file's scores, in the files' order; NaN where there is none."""

    files: tuple[Captioned, ...]
    scores: Mapping[str, Float[np.ndarray, " file"]]
    failures: tuple[str, ...]


def measured(files: Sequence[Captioned], media: str) -> list[Size]:
    """Return the files' sizes, from their headers.

    Raises:
        InputError: for a file that cannot be read, of another mode than RGB's, or of another kind than `media`.
    """
    return [_video_size(one.file) if media == "video" else _image_size(one.file) for one in files]


def _image_size(file: Path) -> Size:
    if file.suffix.lower() in VIDEOS - ANIMATED:
        raise InputError(f"{file} is a video, and these scorers score images")
    frames, height, width = _header(file)
    if frames > 1:
        raise InputError(f"{file} has {frames} frames, and these scorers score images")
    return 0, height, width


def _video_size(file: Path) -> Size:
    if file.suffix.lower() not in VIDEOS | ANIMATED:
        raise InputError(f"{file} is an image, and these scorers score videos")
    if file.suffix.lower() in ANIMATED:
        _header(file)
    try:
        return video_size(file)
    except (ValueError, ModuleNotFoundError) as error:
        raise InputError(str(error)) from error


def _header(file: Path) -> Size:
    """Return the size of what Pillow reads, an image's as it is shown: cameras note that they were held upright."""
    from PIL import ExifTags, Image

    try:
        with Image.open(file) as image:
            frames = getattr(image, "n_frames", 1)
            mode, (width, height), transparent = image.mode, image.size, "transparency" in image.info
            told = Image.Image.getexif(image)  # that of a PNG would read the whole file
            own = image.format == "TIFF"  # which Pillow turns itself
            turned = told.get(ExifTags.Base.Orientation, 1) in SIDEWAYS and not own
    except (OSError, SyntaxError, IndexError, EOFError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} is no image that can be read: {' '.join(str(error).split())}") from error
    if mode not in MODES or transparent:
        raise InputError(f"{file} has mode {mode}{', transparent' if transparent else ''}: 8-bit RGB is wanted")
    return (frames, width, height) if turned else (frames, height, width)


def check_whole(rewards: Mapping[str, Any], files: Sequence[Captioned], sizes: Sequence[Size]) -> None:
    """Raise InputError if a scorer compares the files of a prompt, and some prompt's are not of one size."""
    names = [name for name, reward in rewards.items() if reward.info.groupwise]
    first: dict[str, int] = {}
    for at, one in enumerate(files if names else ()):
        other = first.setdefault(one.prompt, at)
        if sizes[at] != sizes[other]:
            raise InputError(
                f"{names[0]} compares the files of a prompt, which are to be of one size: {files[other].file} has "
                f"{_spoken(sizes[other])} and {one.file} {_spoken(sizes[at])}"
            )


def _spoken(size: Size) -> str:
    frames, height, width = size
    return f"{width} x {height}" + (f" and {frames} frames" if frames else "")


def check_rates(rewards: Mapping[str, Any], files: Sequence[Captioned]) -> None:
    """Raise InputError if a scorer takes another number of frames for a second than a file says."""
    asking = {name: reward.fps for name, reward in rewards.items() if hasattr(reward, "fps")}
    for one in files if asking else ():
        try:
            rate = video_rate(one.file)
        except ValueError as error:
            raise InputError(str(error)) from error
        for name, fps in asking.items():
            if abs(rate - fps) > 0.01 * fps:
                raise InputError(
                    f"{one.file} has {rate:.4g} frames a second, and {name} takes {fps:g}: say "
                    f"{name.partition('(')[0]}(fps={rate:.4g}), and score files of other rates apart"
                )


def read(file: Path, media: str) -> Float[Tensor, "*frame 3 height width"]:
    """Return an image as it is shown, or a video, in [0, 1].

    Raises:
        OSError, ValueError: if it cannot be read.
    """
    from PIL import Image, ImageOps

    if media == "video":
        return read_video(file)[0].float() / 255
    try:
        with Image.open(file) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (
        SyntaxError,
        IndexError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:  # what Pillow says of damaged files
        raise ValueError(f"damaged: {error}") from error
    return torch.from_numpy(pixels.copy()).movedim(-1, -3).float() / 255


def score_files(
    rewards: Mapping[str, Reward],
    files: Sequence[Captioned],
    sizes: Sequence[Size],
    batch: int,
    device: torch.device,
    done: Callable[[int], None],
) -> Scored:
    """Return the scores of files under every scorer.

    Args:
        rewards: scorers of one kind of media, by name.
        files: images, or videos.
        sizes: of each; those of one size are scored together.
        batch: most of them in memory at a time; where a scorer compares the files of a prompt, those are never apart.
        device: of the scorers.
        done: is told how many files have been scored.

    Ctrl-C ends it: what has been scored is returned, and the last failure says so.
    """
    media = next(iter(rewards.values())).info.media
    number = {prompt: at for at, prompt in enumerate(dict.fromkeys(one.prompt for one in files))}
    group = np.array([number[one.prompt] for one in files])
    values = {name: np.full(len(files), np.nan) for name in rewards}
    said: dict[str, None] = {}
    left = dict(rewards)
    whole = any(reward.info.groupwise for reward in rewards.values())
    try:
        for rows in _batches(sizes, group, batch, whole=whole):
            for place, images in _read([files[at].file for at in rows], media, said):
                mine = rows[place]
                prompts = [files[at].prompt for at in mine]
                entire = ~np.isin(group[mine], group[np.delete(rows, place)])
                found = _values(left, images.to(device), prompts, group[mine], entire, said)
                for name, value in found.items():
                    values[name][mine] = value
            done(len(rows))
    except KeyboardInterrupt:
        said[INTERRUPTED] = None
    return Scored(files=tuple(files), scores=values, failures=tuple(said))


def _values(
    rewards: dict[str, Reward],
    images: Float[Tensor, "row *frame 3 height width"],
    prompts: Sequence[str],
    group: Int[np.ndarray, " row"],
    entire: Bool[np.ndarray, " row"],
    said: dict[str, None],
) -> dict[str, Float[np.ndarray, " row"]]:
    """Return the scores of images; one scorer at a time: an image that fails in one keeps its scores of the others.

    A scorer that compares images has only those of groups that are `entire`. One that is gone leaves `rewards`.
    """
    values = {}
    for name, reward in list(rewards.items()):
        rows = np.flatnonzero(entire | (not reward.info.groupwise))
        value = np.full(len(prompts), np.nan)
        if len(rows):
            mine = images if len(rows) == len(images) else images[torch.from_numpy(rows).to(images.device)]
            try:
                found = score({name: reward}, mine, [prompts[at] for at in rows.tolist()], group[rows], len(rows))
            except UnavailableError as error:  # what it has scored is kept
                said[f"{name}: {error}"] = None
                del rewards[name]
                continue
            value[rows] = found.reward[name]
            said |= dict.fromkeys(found.failures)
        values[name] = value
    return values


def _batches(sizes: Sequence[Size], group: np.ndarray, batch: int, *, whole: bool) -> Iterator[np.ndarray]:
    """Yield the rows of each batch: of one size, those of a group side by side, and `whole` groups or no more of it."""
    for size in dict.fromkeys(sizes):
        rows = np.array([at for at, other in enumerate(sizes) if other == size])
        rows = rows[np.argsort(group[rows], kind="stable")]
        parts = whole_groups(group[rows], batch) if whole else in_chunks(len(rows), batch)
        for part in parts:
            yield rows[part]


def _read(files: Sequence[Path], media: str, said: dict[str, None]) -> Iterator[tuple[list[int], Tensor]]:
    """Yield images that can be read, stacked, and their places: of one size, for a header may tell another.

    Why the others cannot is added to what is said.
    """
    found: dict[torch.Size, dict[int, Tensor]] = {}
    for at, file in enumerate(files):
        try:
            image = read(file, media)
        except (OSError, ValueError) as error:
            text = " ".join(str(error).split())
            said[text if str(file) in text else f"{file}: {text}"] = None
            continue
        found.setdefault(image.shape, {})[at] = image
    for images in found.values():
        yield list(images), torch.stack(list(images.values()))


def table(scored: Scored) -> str:
    """Return the scores as CSV, a file a line; empty where there is none."""
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "prompt", *scored.scores])
    for at, one in enumerate(scored.files):
        values = [value[at] for value in scored.scores.values()]
        writer.writerow([one.file, one.prompt, *("" if np.isnan(value) else repr(float(value)) for value in values)])
    return text.getvalue()


def document(scored: Scored, rewards: Mapping[str, Reward]) -> dict[str, Any]:
    """Return the scores as JSON has them, with what each scorer's numbers mean; null where there is none."""
    rows = [
        {"file": str(one.file), "prompt": one.prompt, "scores": {n: _plain(v[at]) for n, v in scored.scores.items()}}
        for at, one in enumerate(scored.files)
    ]
    return {
        "version": 1,
        "scorers": {name: reward.info.as_json() for name, reward in rewards.items()},
        "summary": {name: summary(value) for name, value in scored.scores.items()},
        "rows": rows,
        "failures": list(scored.failures),
    }


def summary(values: Float[np.ndarray, " file"]) -> dict[str, Any]:
    """Return mean and standard deviation (ddof 1) of the scores there are, and how many files have none."""
    there = values[~np.isnan(values)]
    return {
        "mean": float(there.mean()) if len(there) else None,
        "std": float(there.std(ddof=1)) if len(there) > 1 else None,
        "scored": len(there),
        "failed": len(values) - len(there),
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
