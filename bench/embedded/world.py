"""The captioned world of the embedded model: coloured shapes on a grey ground, 32x32 pixels.

A `Scene` is what a prompt asks for, a `Picture` is one way to draw it. `caption` and `parse` are each other's inverse,
so that whether an image shows its prompt can be decided by a rule. Pure numpy: importing this module is fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int

from bench.embedded.splits import cut

SIDE = 32
"""Height and width of a picture, in pixels."""
COLOURS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {  # at least 42 degrees of hue apart, so that fading (which keeps the hue) never turns one into another
        "red": (0.92, 0.12, 0.12),
        "yellow": (0.95, 0.85, 0.10),
        "green": (0.12, 0.75, 0.20),
        "cyan": (0.10, 0.80, 0.85),
        "blue": (0.15, 0.30, 0.95),
        "purple": (0.55, 0.15, 0.85),
        "pink": (0.95, 0.25, 0.74),
    }
)
SHAPES: Mapping[str, str] = MappingProxyType(
    {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "ring": "rings"}
)
"""Singular to plural."""
CATEGORIES = ("single", "size", "place", "count", "two", "relation")
NUMBERS: Mapping[str, int] = MappingProxyType({"two": 2, "three": 3, "four": 4})
SIZES: Mapping[str, tuple[float, float]] = MappingProxyType({"small": (3.2, 3.8), "large": (6.6, 7.6)})
"""Radii in pixels that a size word is drawn with."""
PLACES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1)}
)
"""Direction (x, y) from the centre; y points down."""
RELATIONS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
)
"""Direction (x, y) from the second thing to the first."""
SPLITS = ("base", "train", "tune", "heldout")

_USUAL: Mapping[int, tuple[float, float]] = MappingProxyType(
    {1: (4.6, 6.0), 2: (4.2, 5.3), 3: (3.9, 4.7), 4: (3.5, 4.2)}
)
"""Radii in pixels by the number of things drawn, where the prompt names no size."""
_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A colour and a shape."""

    colour: str
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a prompt asks for: one thing, `count` equal things, or two things."""

    things: tuple[Thing, ...]
    count: int = 1
    size: str | None = None
    place: str | None = None
    relation: str | None = None

    @property
    def category(self) -> str:
        """Return which of `CATEGORIES` the scene belongs to."""
        if self.relation:
            return "relation"
        if len(self.things) == 2:
            return "two"
        if self.count > 1:
            return "count"
        return "place" if self.place else "size" if self.size else "single"

    @property
    def wanted(self) -> tuple[Thing, ...]:
        """Return one thing for everything that has to be seen."""
        return self.things * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprite:
    """A drawn thing; centre and radius in pixels, pixel centres at whole numbers."""

    shape: str
    rgb: tuple[float, float, float]
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What the renderer draws: sprites over a grey ground, then faded towards it (0 not at all, 1 invisible)."""

    sprites: tuple[Sprite, ...]
    ground: float
    fade: float = 0.0


# --- grammar ---------------------------------------------------------------------------------------------------------


def caption(scene: Scene) -> str:
    """Return the one prompt that asks for `scene`."""
    first = scene.things[0]
    if scene.count > 1:
        number = next(word for word, value in NUMBERS.items() if value == scene.count)
        return f"{number} {first.colour} {SHAPES[first.shape]}"
    names = [f"a {thing.colour} {thing.shape}" for thing in scene.things]
    if len(names) == 2:
        return f"{names[0]} {scene.relation or 'and'} {names[1]}"
    if scene.size:
        return f"a {scene.size} {first.colour} {first.shape}"
    return f"{names[0]} {scene.place}" if scene.place else names[0]


def _choice(name: str, words: Iterable[str]) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


_COLOUR, _SHAPE = _choice("colour", COLOURS), _choice("shape", SHAPES)
_SECOND = f"a {_choice('colour2', COLOURS)} {_choice('shape2', SHAPES)}"
_FORMS = tuple(
    re.compile(form)
    for form in (
        f"a {_COLOUR} {_SHAPE}(?: {_choice('place', PLACES)})?",
        f"a {_choice('size', SIZES)} {_COLOUR} {_SHAPE}",
        f"{_choice('number', NUMBERS)} {_COLOUR} {_choice('plural', SHAPES.values())}",
        f"a {_COLOUR} {_SHAPE} (?:and|{_choice('relation', RELATIONS)}) {_SECOND}",
    )
)
_SINGULAR = {plural: shape for shape, plural in SHAPES.items()}


@lru_cache(maxsize=16384)
def parse(prompt: str) -> Scene:
    """Return the scene a prompt asks for.

    Raises:
        ValueError: the prompt is not of this world.
    """
    found = next((match for form in _FORMS if (match := form.fullmatch(prompt))), None)
    words = found.groupdict() if found else {}
    if not found or words.get("colour2") == words["colour"]:
        raise ValueError(
            f"{prompt!r} is not a prompt of the embedded world; write 'a red circle', 'a small red circle', "
            "'a red circle on the left', 'two red circles', 'a red circle and a blue square' or 'a red circle above a "
            f"blue square' (two different colours), with colours {', '.join(COLOURS)}, shapes {', '.join(SHAPES)}, "
            f"numbers {', '.join(NUMBERS)}, places {', '.join(PLACES)}, relations {', '.join(RELATIONS)}"
        )
    first = Thing(colour=words["colour"], shape=words.get("shape") or _SINGULAR[words["plural"]])
    second = (Thing(colour=words["colour2"], shape=words["shape2"]),) if words.get("colour2") else ()
    return Scene(
        things=(first, *second),
        count=NUMBERS[words["number"]] if words.get("number") else 1,
        size=words.get("size"),
        place=words.get("place"),
        relation=words.get("relation"),
    )


def scenes() -> Iterator[Scene]:
    """Yield every scene of the world once."""
    things = [Thing(colour=colour, shape=shape) for colour, shape in product(COLOURS, SHAPES)]
    for thing in things:
        yield Scene(things=(thing,))
        yield from (Scene(things=(thing,), size=size) for size in SIZES)
        yield from (Scene(things=(thing,), place=place) for place in PLACES)
        yield from (Scene(things=(thing,), count=count) for count in NUMBERS.values())
    for first, second in product(things, things):
        if first.colour != second.colour:
            yield from (Scene(things=(first, second), relation=relation) for relation in (None, *RELATIONS))


# --- splits ----------------------------------------------------------------------------------------------------------


def _meaning(scene: Scene) -> str:
    """Return a caption shared by all scenes that show the same: `a above b` is `b below a`."""
    if len(scene.things) == 1:
        return caption(scene)
    flipped = Scene(things=scene.things[::-1], relation=_INVERSE.get(scene.relation or ""))
    return min(caption(scene), caption(flipped))


@cache
def _split(split: str) -> tuple[str, ...]:
    order = sorted(scenes(), key=lambda scene: CATEGORIES.index(scene.category))
    return cut(((scene.category, _meaning(scene), caption(scene)) for scene in order), split)


def prompts(split: str) -> tuple[str, ...]:
    """Return the prompts of a split, categories taken in turn so that every beginning is balanced.

    `base` is what the model was trained on, `train` the part of it that reinforcement learning sees, `tune` is for
    choosing hyper-parameters and `heldout` (120 prompts) for reporting. What a tune or held-out prompt shows, under
    whatever wording, is in no other split.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"the embedded world has no split {split!r}; it has {', '.join(SPLITS)}")
    return _split(split)


# --- pictures --------------------------------------------------------------------------------------------------------


def _radius(scene: Scene, rng: np.random.Generator) -> float:
    return float(rng.uniform(*(SIZES[scene.size] if scene.size else _USUAL[len(scene.wanted)])))


def _spot(radius: float, direction: tuple[int, int], rng: np.random.Generator) -> tuple[float, float]:
    """Return a centre that keeps the sprite inside the picture, on the named side of it (0, 0: anywhere)."""
    edge, middle = 1.2 * radius, (SIDE - 1) / 2
    ranges = [
        (edge, max(edge + 0.5, middle - 5.5)) if side < 0 else (edge, SIDE - 1 - edge)
        for side in (-abs(s) for s in direction)
    ]
    spot = [rng.uniform(*bounds) for bounds in ranges]
    x, y = (SIDE - 1 - value if side > 0 else value for value, side in zip(spot, direction, strict=True))
    return float(x), float(y)


def _apart(sprite: Sprite, others: Sequence[Sprite]) -> bool:
    return all(
        np.hypot(sprite.x - other.x, sprite.y - other.y) > 1.25 * (sprite.radius + other.radius) + 1.0
        for other in others
    )


def _related(first: Sprite, second: Sprite, relation: str) -> bool:
    dx, dy = RELATIONS[relation]
    along = (first.x - second.x) * dx + (first.y - second.y) * dy
    across = (first.x - second.x) * dy + (first.y - second.y) * dx
    return along > 9.0 and abs(across) < 6.0


def tint(colour: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return one of the RGB values in [0, 1] that are called by a colour's name."""
    red, green, blue = np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.04, 0.04, 3), 0.0, 1.0)
    return float(red), float(green), float(blue)


def _sprites(scene: Scene, rng: np.random.Generator) -> tuple[Sprite, ...]:
    direction = PLACES[scene.place] if scene.place else (0, 0)
    while True:  # a layout that got stuck starts over; every scene of the world fits within a few attempts
        sprites: list[Sprite] = []
        for thing in scene.wanted:
            radius = _radius(scene, rng)
            x, y = _spot(radius, direction, rng)
            sprite = Sprite(shape=thing.shape, rgb=tint(thing.colour, rng), x=x, y=y, radius=radius)
            if not _apart(sprite, sprites):
                break
            sprites.append(sprite)
        if len(sprites) == len(scene.wanted) and (
            not scene.relation or _related(sprites[0], sprites[1], scene.relation)
        ):
            return tuple(sprites)


def draw(scene: Scene, rng: np.random.Generator) -> Picture:
    """Return one clean picture of a scene."""
    return Picture(sprites=_sprites(scene, rng), ground=float(rng.uniform(0.08, 0.22)))


def corrupt(picture: Picture, rng: np.random.Generator) -> Picture:
    """Return the picture as a careless web crawl has it: 45 % with uncaptioned clutter, 60 % washed out by up to 0.6.

    This is the deliberate flaw of the embedded model: it is systematic and can be unlearned, so that reinforcement
    learning has something to do.
    """
    sprites = list(picture.sprites)
    extra = int(rng.integers(1, 3)) if rng.random() < 0.45 else 0
    for _ in range(extra):
        for _ in range(30):  # a crowded picture may stay as it is
            radius = float(rng.uniform(3.2, 4.8))
            x, y = _spot(radius, (0, 0), rng)
            shape, colour = str(rng.choice(tuple(SHAPES))), str(rng.choice(tuple(COLOURS)))
            sprite = Sprite(shape=shape, rgb=tint(colour, rng), x=x, y=y, radius=radius)
            if _apart(sprite, sprites):
                sprites.append(sprite)
                break
    fade = float(rng.uniform(0.0, 0.6)) if rng.random() < 0.6 else 0.0
    return Picture(sprites=tuple(sprites), ground=picture.ground, fade=fade)


# --- renderer --------------------------------------------------------------------------------------------------------


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the signed distance in pixels to the shape's edge, negative inside."""
    across, down = np.abs(dx), np.abs(dy)
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "ring":
        return np.abs(np.hypot(dx, dy) - 0.725 * radius) - 0.275 * radius
    if shape == "square":
        return np.maximum(across, down) - 0.86 * radius
    if shape == "triangle":
        return np.maximum(dy, across * np.sqrt(0.75) - 0.5 * dy) - 0.6 * radius
    width = 0.34 * radius
    return np.minimum(np.maximum(across - radius, down - width), np.maximum(across - width, down - radius))


def coverage(
    shape: str, x: Float[np.ndarray, " sprite"], y: Float[np.ndarray, " sprite"], radius: Float[np.ndarray, " sprite"]
) -> Float[np.ndarray, "sprite side side"]:
    """Return how much of each pixel a shape covers, 0 to 1, anti-aliased.

    Args:
        shape: one of `SHAPES`.
        x: centres in pixels, 0 the middle of the leftmost pixel.
        y: centres in pixels, 0 the middle of the topmost pixel.
        radius: in pixels.
    """
    axis = np.arange(SIDE, dtype=np.float64)
    dx = axis[None, None, :] - x[:, None, None]
    dy = axis[None, :, None] - y[:, None, None]
    return np.clip(0.5 - _distance(shape, dx, dy, radius[:, None, None]), 0.0, 1.0)


def _covers(sprites: Sequence[Sprite]) -> Float[np.ndarray, "sprite side side"]:
    """Return the coverage of sprites of any shapes; one call a shape, because numpy is slow at small arrays."""
    shapes: Int[np.ndarray, " sprite"] = np.array([list(SHAPES).index(sprite.shape) for sprite in sprites])
    centre = np.array([(sprite.x, sprite.y, sprite.radius) for sprite in sprites])
    covers = np.empty((len(sprites), SIDE, SIDE))
    for index, shape in enumerate(SHAPES):
        rows = np.flatnonzero(shapes == index)
        covers[rows] = coverage(shape, *centre[rows].T)
    return covers


def render(pictures: Sequence[Picture]) -> Float[np.ndarray, "picture 3 32 32"]:
    """Return the pictures as float32 RGB in [0, 1]; later sprites lie over earlier ones."""
    owner = np.array([index for index, picture in enumerate(pictures) for _ in picture.sprites])
    layer = np.array([level for picture in pictures for level in range(len(picture.sprites))])
    sprites = [sprite for picture in pictures for sprite in picture.sprites]
    covers, colours = _covers(sprites)[:, None], np.array([sprite.rgb for sprite in sprites])[:, :, None, None]
    ground = np.array([picture.ground for picture in pictures])[:, None, None, None]
    image = np.broadcast_to(ground, (len(pictures), 3, SIDE, SIDE)).copy()
    for level in range(int(layer.max()) + 1):
        rows = np.flatnonzero(layer == level)
        image[owner[rows]] += covers[rows] * (colours[rows] - image[owner[rows]])
    fade = np.array([picture.fade for picture in pictures])[:, None, None, None]
    return (image + fade * (ground - image)).astype(np.float32)
