"""Verifiable rewards of the embedded world of videos: does the thing that was asked for move as its prompt says?

`motion` follows the wanted colour's centre of mass and is smooth in the pixels; `moving-caption` and `moving-strict`
read colours, shapes and motion by a fixed rule. All three are pure functions of one video and its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from bench.contract import RewardInfo
from bench.embedded import moving, world
from bench.embedded.colour import chroma, colour_map, hues
from bench.embedded.moving import FRAMES, Move, Scene

if TYPE_CHECKING:
    from torch import Tensor

COLOURS, SHAPES = tuple(world.COLOURS), tuple(world.SHAPES)
FLOOR = 0.1
"""Of the full colour: what is paler is ground."""
LEAST = 3.0
"""Full pixels of a colour, in a frame, from which its centre of mass is believed."""
FEATURE_SCALE = 1.44
"""Divides the features."""
CHUNK = 64
"""Videos read at once; bounds the memory, changes no score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is seen of things: the wanted colour of each, frame by frame; positions in pixels."""

    shade: Float[np.ndarray, "thing 9 32 32"]
    """How much of the full colour each pixel has, 0 to 1."""
    mass: Float[np.ndarray, "thing 9"]
    """In full pixels."""
    x: Float[np.ndarray, "thing 9"]
    y: Float[np.ndarray, "thing 9"]


def see(tone: Float[np.ndarray, "thing 9 2 32 32"], colour: Int[np.ndarray, " thing"]) -> Seen:
    """Return mass and centre of a colour in every frame, of chroma and the colours' numbers."""
    flat = colour_map(tone.reshape(-1, *tone.shape[2:]), np.repeat(colour, FRAMES))
    shade = (np.maximum(flat - FLOOR, 0.0) / (1.0 - FLOOR)).reshape(len(colour), FRAMES, world.SIDE, world.SIDE)
    mass, axis = shade.sum(axis=(2, 3)), np.arange(world.SIDE)
    believed = np.maximum(mass, LEAST)
    x, y = (shade.sum(axis=2) * axis).sum(axis=2), (shade.sum(axis=3) * axis).sum(axis=2)
    return Seen(shade=shade, mass=mass, x=x / believed, y=y / believed)


@cache
def area() -> Float[np.ndarray, " shape"]:
    """Return each shape's area at radius 1, measured on the renderer."""
    at = np.array([(world.SIDE - 1) / 2])
    return np.array([world.coverage(shape, at, at, np.array([10.0])).sum() / 100.0 for shape in SHAPES])


# --- motion: smooth --------------------------------------------------------------------------------------------------

SOFT = 3.0
"""Pixels by which a way may be wrong for half of its score."""
SHAKE = 1.5
"""Root mean square deviation from an even, straight motion, in pixels, for half of the score."""


def _half(error: np.ndarray, at: float) -> np.ndarray:
    """Return 1 where there is no error, a half where it is `at`, and a little everywhere."""
    return 1.0 / (1.0 + np.square(error / at))


def travel(at: Float[np.ndarray, "thing 9"]) -> Float[np.ndarray, " thing"]:
    """Return the way from the first frame to the last along an axis, by two frames at each end."""
    return (at[:, -2:].mean(axis=1) - at[:, :2].mean(axis=1)) * (FRAMES - 1) / (FRAMES - 2)


def shake(at: Float[np.ndarray, "thing 9"]) -> Float[np.ndarray, " thing"]:
    """Return the mean square deviation from the even motion that fits best."""
    time = np.linspace(-1.0, 1.0, FRAMES)
    middle = at - at.mean(axis=1, keepdims=True)
    slope = (middle * time).sum(axis=1, keepdims=True) / np.square(time).sum()
    return np.square(middle - slope * time).mean(axis=1)


def presence(seen: Seen, moves: Sequence[Move], things: Sequence[int]) -> Float[np.ndarray, " thing"]:
    """Return how well the amount of colour fits the thing, 0 to 1, averaged over frames; fading lowers it.

    Args:
        seen: of the things.
        moves: of the things.
        things: how many there are in each one's video; two are drawn smaller.
    """
    radius = np.array([(4.0, 5.0) if count == 1 else (3.5, 4.2) for count in things])
    unit = area()[[SHAPES.index(move.thing.shape) for move in moves]][:, None]
    low, high = (0.85 * unit * radius[:, :1] ** 2, 1.15 * unit * radius[:, 1:] ** 2)
    return np.minimum(np.minimum(seen.mass / low, high / np.maximum(seen.mass, LEAST)), 1.0).mean(axis=1)


def followed(seen: Seen, moves: Sequence[Move]) -> Float[np.ndarray, " thing"]:
    """Return how well things move as said, 0 to 1: the right way, as far as said, evenly."""
    right, down = travel(seen.x), travel(seen.y)
    ways = np.array([moving.WAYS[move.way] if move.way else (0, 0) for move in moves])
    bounds = np.array([moving.PACES[move.pace] if move.way else (0.0, 0.0) for move in moves])
    along = right * ways[:, 0] + down * ways[:, 1]
    still = ~ways.any(axis=1)
    # What should stay has no direction: any way it goes is wrong.
    across = np.where(still, np.hypot(right, down), np.abs(right * ways[:, 1]) + np.abs(down * ways[:, 0]))
    gap = np.maximum(np.maximum(bounds[:, 0] - along, along - bounds[:, 1]), 0.0)
    steady = _half(np.sqrt(shake(seen.x) + shake(seen.y)), SHAKE)
    return _half(gap, SOFT) * _half(np.maximum(across - 0.5, 0.0), SOFT) * steady


# --- caption and strict: read the video as things that move ----------------------------------------------------------

MIN_SATURATION, MIN_PIXELS = 0.16, 9
"""Less colourful pixels are ground; fewer pixels are no thing."""
STRAY = 8.0
"""Colourful pixels a frame, of colours that were not asked for, that are no thing: edges and specks."""
OVERLAP = 0.6
"""Of a patch and the shape it is said to be, at least: two things of one colour are no shape."""
READ_AT = (0, FRAMES // 2, FRAMES - 1)
"""Frames in which shapes are read."""
FAR: Mapping[str | None, tuple[float, float]] = MappingProxyType(
    {"slowly": (2.0, 6.3), None: (3.5, 24.0), "fast": (11.5, 24.0)}
)
"""Pixels to travel that count as the word; wider than `moving.PACES`, and open where the prompt is."""


@cache
def _lower() -> Float[np.ndarray, " shape"]:
    """Return how far below its centre each shape's centre of mass lies at radius 1."""
    at, rows = np.array([15.5]), np.arange(world.SIDE)
    covers = [world.coverage(shape, at, at, np.array([10.0]))[0].sum(axis=1) for shape in SHAPES]
    return np.array([((cover * rows).sum() / cover.sum() - 15.5) / 10.0 for cover in covers])


def overlaps(
    seen: Seen, tone: Float[np.ndarray, "thing 9 2 32 32"], colour: Int[np.ndarray, " thing"]
) -> Float[np.ndarray, "thing shape"]:
    """Return how well each shape, of the patch's own area and place, covers it: intersection over union, averaged."""
    frames = list(READ_AT)
    # The patch's own full colour is the scale, so that a faded thing has the same shape as a bright one.
    along = np.hypot(tone[:, frames, 0], tone[:, frames, 1]) * (seen.shade[:, frames] > 0.0)
    full = np.sort(along.reshape(*along.shape[:2], -1), axis=2)[:, :, -MIN_PIXELS]
    patch = np.minimum(along / np.maximum(full, 0.05)[:, :, None, None], 1.0).reshape(-1, world.SIDE, world.SIDE)
    mass, axis = np.maximum(patch.sum(axis=(1, 2)), 1.0), np.arange(world.SIDE)
    x, y = (patch.sum(axis=1) * axis).sum(axis=1) / mass, (patch.sum(axis=2) * axis).sum(axis=1) / mass
    out = np.empty((len(patch), len(SHAPES)))
    for index, shape in enumerate(SHAPES):
        radius = np.sqrt(mass / area()[index])
        cover = world.coverage(shape, x, y - _lower()[index] * radius, radius)
        out[:, index] = np.minimum(patch, cover).sum(axis=(1, 2)) / np.maximum(patch, cover).sum(axis=(1, 2))
    return out.reshape(len(colour), len(frames), len(SHAPES)).mean(axis=1)


def moved(seen: Seen, moves: Sequence[Move]) -> Bool[np.ndarray, " thing"]:
    """Return whether things move as said: the right way, about as far, in both halves of the video."""
    out = np.zeros(len(moves), dtype=bool)
    middle = FRAMES // 2
    for row, move in enumerate(moves):
        path = np.stack([seen.x[row], seen.y[row]])
        if move.way is None:
            out[row] = np.abs(path - path.mean(axis=1, keepdims=True)).max() < 1.2
            continue
        way = np.array(moving.WAYS[move.way])
        along, across = way @ path, np.abs(way[::-1]) @ path
        far, first = along[-1] - along[0], along[middle] - along[0]
        low, high = FAR[move.pace]
        straight = abs(across[-1] - across[0]) < max(1.5, 0.3 * far)
        out[row] = low < far < high and 0.25 * far < first < 0.75 * far and straight
    return out


def credit(videos: Float[np.ndarray, "video 9 3 32 32"], scenes: Sequence[Scene]) -> Float[np.ndarray, "video part"]:
    """Return partial credit in [0, 1] for colours, shapes, nothing else, and motion.

    A thing's motion counts only if its colour is there, whatever its shape is.
    """
    tone = chroma(videos.astype(np.float64))
    owner, moves, colour = _things(scenes)
    seen = see(tone[owner], colour)
    unit = hues() / np.linalg.norm(hues(), axis=1, keepdims=True)
    nearest = np.argmax(np.einsum("cd,vfdhw->vfchw", unit, tone), axis=2)
    vivid = np.hypot(tone[:, :, 0], tone[:, :, 1]) > MIN_SATURATION
    mine = vivid[owner] & (nearest[owner] == colour[:, None, None, None])
    there = (mine.sum(axis=(2, 3)) >= MIN_PIXELS).mean(axis=1) > 0.85  # eight frames of nine
    shape = np.array([SHAPES.index(move.thing.shape) for move in moves])
    fit = overlaps(seen, tone[owner], colour)
    shaped = there & (fit.argmax(axis=1) == shape) & (fit.max(axis=1) > OVERLAP)
    went = there & moved(seen, moves)
    parts = np.stack([_of_videos(part.astype(np.float64), owner) for part in (there, shaped, went)], axis=1)
    asked = np.zeros((len(scenes), len(COLOURS)), dtype=bool)
    asked[owner, colour] = True
    stray = vivid & ~asked[np.arange(len(scenes))[:, None, None, None], nearest]
    other = np.clip(1.0 - (stray.sum(axis=(2, 3)).mean(axis=1) - STRAY) / 32.0, 0.0, 1.0)
    return np.column_stack([parts[:, :2], other, parts[:, 2]])


def _of_videos(value: Float[np.ndarray, " thing"], owner: Int[np.ndarray, " thing"]) -> Float[np.ndarray, " video"]:
    """Return the mean over each video's things."""
    return np.bincount(owner, value) / np.bincount(owner)


def _things(scenes: Sequence[Scene]) -> tuple[Int[np.ndarray, " thing"], list[Move], Int[np.ndarray, " thing"]]:
    """Return every thing's video, its move and the number of its colour."""
    owner = np.array([row for row, scene in enumerate(scenes) for _ in scene.moves])
    moves = [move for scene in scenes for move in scene.moves]
    return owner, moves, np.array([COLOURS.index(move.thing.colour) for move in moves])


def motion_scores(videos: Float[np.ndarray, "video 9 3 32 32"], scenes: Sequence[Scene]) -> Float[np.ndarray, " video"]:
    """Return the smooth score of videos in [0, 1]: presence times motion, the mean over their things."""
    owner, moves, colour = _things(scenes)
    seen = see(chroma(videos.astype(np.float64))[owner], colour)
    count = [len(scenes[video].moves) for video in owner]
    return _of_videos(presence(seen, moves, count) * followed(seen, moves), owner)


# --- plugins ---------------------------------------------------------------------------------------------------------

_ORIGIN = "Arbor's own rule for the embedded world of videos (bench.embedded.moving)"


def _valid(images: Tensor) -> tuple[Float[np.ndarray, "video 9 3 32 32"], Bool[np.ndarray, " video"]]:
    """Return the videos as numpy and which of them are numbers throughout.

    Raises:
        ValueError: the videos do not have the world's size.
    """
    if tuple(images.shape[1:]) != (FRAMES, 3, world.SIDE, world.SIDE):
        size = f"{FRAMES}, 3, {world.SIDE}, {world.SIDE}"
        raise ValueError(f"videos must have shape [leaf, {size}], not {list(images.shape)}")
    pixels = images.detach().float().cpu().numpy()
    return pixels, np.asarray(np.isfinite(pixels).all(axis=(1, 2, 3, 4)))


def _scored(
    rule: Callable[[np.ndarray, Sequence[Scene]], np.ndarray], images: Tensor, prompts: Sequence[str]
) -> Float[np.ndarray, " leaf"]:
    """Return what a rule says of every video; NaN where the video is not numbers."""
    scenes = [moving.parse(prompt) for prompt in prompts]
    pixels, valid = _valid(images)
    out, rows = np.full(len(scenes), np.nan), np.flatnonzero(valid)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        out[some] = rule(pixels[some], [scenes[row] for row in some])
    # Nine decimals: below what vector instructions differ by between the rows of a batch.
    return np.round(out, 9)


@cache
def _cosines(length: int, count: int) -> Float[np.ndarray, "count length"]:
    """Return the first `count` rows of the orthonormal cosine transform (DCT-II)."""
    rows, at = np.arange(count)[:, None], np.arange(length)[None] + 0.5
    return np.cos(np.pi * rows * at / length) * np.sqrt(np.where(rows == 0, 1.0, 2.0) / length)


class Motion:
    """How much of the right colour moves as said, smooth; the recommended training reward of the video model."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="motion", low=0.0, high=1.0, higher_is_better=True, revision="1", reference=_ORIGIN, media="video"
    )

    def __call__(
        self,
        images: Float[Tensor, "leaf frame 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the mean over things of presence times motion."""
        return _scored(motion_scores, images, prompts)

    def features(self, images: Float[Tensor, "leaf frame 3 height width"]) -> Float[Tensor, "leaf feature"]:
        """Return 540 float32 features for distances between sets of videos (KID, MMD).

        They are the lowest frequencies of a cosine transform, 5 in time and 6 x 6 in space, of each colour channel:
        what is where, and how that changes. No model is asked, so they mean the same on every machine; what is finer
        than 5 pixels or 2 frames they do not see. Their mean square is about 1 on clean videos.
        """
        import torch

        _valid(images[:0])
        time, space = (
            torch.from_numpy(_cosines(length, count)).to(images.device)
            for length, count in ((FRAMES, 5), (world.SIDE, 6))
        )
        low = torch.einsum("lfchw,tf,yh,xw->lctyx", images.detach().double(), time, space, space)
        return (low.flatten(1) / FEATURE_SCALE).float()


class Caption:
    """Partial credit in [0, 1] for colours, shapes, nothing else and motion, equally weighted."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="credit", low=0.0, high=1.0, higher_is_better=True, revision="1", reference=_ORIGIN, media="video"
    )

    def __call__(
        self,
        images: Float[Tensor, "leaf frame 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the mean partial credit."""
        return _scored(lambda videos, scenes: credit(videos, scenes).mean(axis=1), images, prompts)


class Strict:
    """1 where the video shows exactly what its prompt says, else 0."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="share right", low=0.0, high=1.0, higher_is_better=True, revision="1", reference=_ORIGIN, media="video"
    )

    def __call__(
        self,
        images: Float[Tensor, "leaf frame 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return 1.0 where every part of the partial credit is full, else 0.0."""
        return _scored(lambda videos, scenes: (credit(videos, scenes) == 1.0).all(axis=1), images, prompts)


REWARDS: Mapping[str, type] = MappingProxyType({"motion": Motion, "moving-caption": Caption, "moving-strict": Strict})
