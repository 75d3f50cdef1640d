"""The captioned world of the embedded video model: coloured shapes that move over a grey ground, 9 frames of 32x32.

Colours, shapes and the renderer are those of `bench.embedded.world`. A `Scene` is what a prompt asks for, a `Video` is
one way to draw it. `caption` and `parse` are each other's inverse. Pure numpy: importing this module is fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from bench.embedded import world
from bench.embedded.splits import cut
from bench.embedded.world import COLOURS, SHAPES, SIDE, Picture, Sprite, Thing

FRAMES = 9
"""Frames of a video; the motion between two of them is one step of `FRAMES - 1`."""
WAYS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
)
"""Direction (x, y) of a motion; y points down."""
PACES: Mapping[str | None, tuple[float, float]] = MappingProxyType(
    {"slowly": (3.5, 5.5), None: (7.0, 11.0), "fast": (13.0, 16.0)}
)
"""Pixels from the first frame to the last that a thing is drawn to travel, by the word for its pace."""
CATEGORIES = ("still", "way", "pace", "two")
SPLITS = world.SPLITS
STALL, FADE = 0.6, 0.6
"""Shares of careless videos in which things stop on their way, and that are washed out."""

_RADII: Mapping[int, tuple[float, float]] = MappingProxyType({1: (4.0, 5.0), 2: (3.5, 4.2)})
"""Radii in pixels by the number of things."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A thing and what it does: `way` None stays still; only a motion has a pace, which the prompt may leave open."""

    thing: Thing
    way: str | None = None
    pace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a prompt asks for: one thing, or two that move."""

    moves: tuple[Move, ...]

    @property
    def category(self) -> str:
        """Return which of `CATEGORIES` the scene belongs to."""
        if len(self.moves) == 2:
            return "two"
        return "still" if self.moves[0].way is None else "pace" if self.moves[0].pace else "way"


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A drawn thing and the centre it has in every frame, in pixels."""

    shape: str
    rgb: tuple[float, float, float]
    radius: float
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """What the renderer draws: tracks over a grey ground, then faded towards it (0 not at all, 1 invisible)."""

    tracks: tuple[Track, ...]
    ground: float
    fade: float = 0.0


# --- grammar ---------------------------------------------------------------------------------------------------------


def _phrase(move: Move) -> str:
    name = f"a {move.thing.colour} {move.thing.shape}"
    if move.way is None:
        return f"{name} that stays still"
    return f"{name} moving {move.way}{f' {move.pace}' if move.pace else ''}"


def caption(scene: Scene) -> str:
    """Return the one prompt that asks for `scene`."""
    return " and ".join(_phrase(move) for move in scene.moves)


_THING = rf"a (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})"
_MOTION = rf"(?:that stays still|moving (?P<way>{'|'.join(WAYS)})(?: (?P<pace>{'|'.join(p for p in PACES if p)}))?)"
_PHRASE = re.compile(f"{_THING} {_MOTION}")


def _move(phrase: str) -> Move | None:
    found = _PHRASE.fullmatch(phrase)
    if not found:
        return None
    thing = Thing(colour=found["colour"], shape=found["shape"])
    return Move(thing=thing, way=found["way"], pace=found["pace"])


@lru_cache(maxsize=16384)
def parse(prompt: str) -> Scene:
    """Return the scene a prompt asks for.

    Raises:
        ValueError: the prompt is not of this world.
    """
    moves = [_move(phrase) for phrase in prompt.split(" and ")]
    known = tuple(move for move in moves if move)
    plain = all(move.way and not move.pace for move in known)
    colours = {move.thing.colour for move in known}
    if len(known) < len(moves) or len(known) > 2 or len(colours) < len(known) or (len(known) == 2 and not plain):
        raise ValueError(
            f"{prompt!r} is not a prompt of the embedded world of videos; write 'a red circle moving right', 'a red "
            "circle moving right slowly', 'a red circle that stays still' or 'a red circle moving right and a blue "
            f"square moving up' (two different colours), with colours {', '.join(COLOURS)}, shapes "
            f"{', '.join(SHAPES)}, ways {', '.join(WAYS)}, paces {', '.join(p for p in PACES if p)}"
        )
    return Scene(moves=known)


def scenes() -> Iterator[Scene]:
    """Yield every scene of the world once."""
    things = [Thing(colour=colour, shape=shape) for colour, shape in product(COLOURS, SHAPES)]
    for thing in things:
        yield Scene(moves=(Move(thing=thing),))
        yield from (Scene(moves=(Move(thing=thing, way=way, pace=pace),)) for way, pace in product(WAYS, PACES))
    for first, second, way, other in product(things, things, WAYS, WAYS):
        if first.colour != second.colour:
            yield Scene(moves=(Move(thing=first, way=way), Move(thing=second, way=other)))


# --- splits ----------------------------------------------------------------------------------------------------------


def _meaning(scene: Scene) -> str:
    """Return a caption shared by all scenes that show the same: the order of two things is none."""
    return min(caption(scene), caption(Scene(moves=scene.moves[::-1])))


@cache
def _split(split: str) -> tuple[str, ...]:
    order = sorted(scenes(), key=lambda scene: CATEGORIES.index(scene.category))
    return cut(((scene.category, _meaning(scene), caption(scene)) for scene in order), split)


def prompts(split: str) -> tuple[str, ...]:
    """Return the prompts of a split, categories taken in turn so that every beginning is balanced.

    As in `bench.embedded.world`: `base` is what the model was trained on, `train` the part of it that reinforcement
    learning sees, `tune` is for choosing hyper-parameters and `heldout` (80 prompts) for reporting. What a tune or
    held-out prompt shows, under whatever wording, is in no other split.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"the embedded world of videos has no split {split!r}; it has {', '.join(SPLITS)}")
    return _split(split)


# --- videos ----------------------------------------------------------------------------------------------------------


def _line(start: float, travel: float) -> tuple[float, ...]:
    return tuple(float(at) for at in np.linspace(start, start + travel, FRAMES))


def _track(move: Move, radius: float, rng: np.random.Generator) -> Track:
    """Return a straight, even motion that stays inside the picture."""
    travel = float(rng.uniform(*PACES[move.pace])) if move.way else 0.0
    directions = WAYS[move.way] if move.way else (0, 0)
    edge = 1.2 * radius
    starts = [
        rng.uniform(edge - min(0.0, way * travel), SIDE - 1 - edge - max(0.0, way * travel)) for way in directions
    ]
    x, y = (_line(float(start), way * travel) for start, way in zip(starts, directions, strict=True))
    return Track(shape=move.thing.shape, rgb=world.tint(move.thing.colour, rng), radius=radius, x=x, y=y)


def _apart(first: Track, second: Track) -> bool:
    """Return whether two things stay clear of each other in every frame."""
    gaps = np.hypot(np.subtract(first.x, second.x), np.subtract(first.y, second.y))
    return bool(gaps.min() > 1.15 * (first.radius + second.radius) + 1.0)


def draw(scene: Scene, rng: np.random.Generator) -> Video:
    """Return one clean video of a scene."""
    while True:  # two paths that cross start over; every scene of the world fits within a few attempts
        tracks = tuple(_track(move, float(rng.uniform(*_RADII[len(scene.moves)])), rng) for move in scene.moves)
        if len(tracks) == 1 or _apart(*tracks):
            return Video(tracks=tracks, ground=float(rng.uniform(0.08, 0.22)))


def _stalled(track: Track, last: int) -> Track:
    """Return the track that stops at frame `last`."""
    x, y = ((*path[:last], *[path[last]] * (FRAMES - last)) for path in (track.x, track.y))
    return replace(track, x=x, y=y)


def corrupt(video: Video, rng: np.random.Generator) -> Video:
    """Return the video as a careless crawl has it: 60 % stop after 0 to 4 of 8 steps, 60 % are washed out by up to 0.6.

    This is the deliberate flaw of the embedded model: it is systematic and can be unlearned, so that reinforcement
    learning has something to do. What stays still anyway is only washed out.
    """
    stop = int(rng.integers(0, 5)) if rng.random() < STALL else FRAMES - 1
    fade = float(rng.uniform(0.0, 0.6)) if rng.random() < FADE else 0.0
    return Video(tracks=tuple(_stalled(track, stop) for track in video.tracks), ground=video.ground, fade=fade)


def render(videos: Sequence[Video]) -> Float[np.ndarray, "video 9 3 32 32"]:
    """Return the videos as float32 RGB in [0, 1]; later tracks lie over earlier ones."""
    pictures = [
        Picture(
            sprites=tuple(
                Sprite(shape=one.shape, rgb=one.rgb, x=one.x[frame], y=one.y[frame], radius=one.radius)
                for one in video.tracks
            ),
            ground=video.ground,
            fade=video.fade,
        )
        for video in videos
        for frame in range(FRAMES)
    ]
    return world.render(pictures).reshape(len(videos), FRAMES, 3, SIDE, SIDE)
