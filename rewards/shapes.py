"""Verifiable rewards of the embedded world: does the image show what its prompt says?

`strict` and `graded` read the image as a list of coloured shapes by a fixed rule and compare it with the prompt; `soft`
matches shape templates against colour maps and is smooth in the pixels. All three are pure functions of one image and
its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Complex, Float, Int
from scipy import fft, ndimage

from bench.contract import RewardInfo
from bench.embedded import world
from bench.embedded.colour import chroma, colour_map, hues
from bench.embedded.world import Scene, Thing

if TYPE_CHECKING:
    from torch import Tensor

CENTRE = (world.SIDE - 1) / 2
COLOURS, SHAPES = tuple(world.COLOURS), tuple(world.SHAPES)


# --- strict and graded: read the image as a list of things -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A connected patch of one colour, with the shape that fits it best; centre and radius in pixels."""

    thing: Thing
    x: float
    y: float
    radius: float


MIN_SATURATION, MIN_PIXELS = 0.16, 9
"""Less colourful pixels are ground, smaller patches are specks."""


@cache
def _shape_area() -> Float[np.ndarray, " shape"]:
    """Return each shape's area at radius 1, measured on the renderer."""
    at = np.array([CENTRE])
    return np.array([world.coverage(shape, at, at, np.array([10.0])).sum() / 100.0 for shape in SHAPES])


def _middle(patch: Float[np.ndarray, "height width"]) -> tuple[float, float]:
    """Return x and y of the centre of mass, in pixels."""
    axis = np.arange(world.SIDE)
    return float((patch.sum(axis=0) * axis).sum() / patch.sum()), float((patch.sum(axis=1) * axis).sum() / patch.sum())


@cache
def _centroid() -> Float[np.ndarray, " shape"]:
    """Return how far below its centre each shape's centre of mass lies at radius 1."""
    at = np.array([CENTRE])
    covers = [world.coverage(shape, at, at, np.array([10.0]))[0] for shape in SHAPES]
    return np.array([(_middle(cover)[1] - CENTRE) / 10.0 for cover in covers])


def _fit(patch: Float[np.ndarray, "height width"]) -> tuple[int, float, float, float]:
    """Return the best shape of a patch of soft coverage, with centre and radius: the largest overlap of equal areas."""
    area = patch.sum()
    x, y = _middle(patch)
    best = (-1.0, 0, 0.0, 0.0, 0.0)
    for index, shape in enumerate(SHAPES):
        radius = float(np.sqrt(area / _shape_area()[index]))
        top = y - _centroid()[index] * radius
        cover = world.coverage(shape, np.array([x]), np.array([top]), np.array([radius]))[0]
        overlap = float(np.minimum(patch, cover).sum() / np.maximum(patch, cover).sum())
        best = max(best, (overlap, index, x, float(top), radius))
    return best[1:]


def _label(mask: Bool[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
    """Return the number of each pixel's connected patch, from 1; 0 outside."""
    labels: Any = ndimage.label(mask)  # its stub cannot tell the pair from the in-place form
    return labels[0]


def read(image: Float[np.ndarray, "3 height width"]) -> tuple[Seen, ...]:
    """Return the things that an image in [0, 1] shows."""
    tone = chroma(image.astype(np.float64))
    saturation = np.hypot(tone[0], tone[1])
    unit = hues() / np.linalg.norm(hues(), axis=1, keepdims=True)
    colour: Int[np.ndarray, "height width"] = np.argmax(np.tensordot(unit, tone, axes=1), axis=0)
    seen: list[Seen] = []
    for index in np.unique(colour[saturation > MIN_SATURATION]):
        labels = _label((colour == index) & (saturation > MIN_SATURATION))
        for label in range(1, int(labels.max()) + 1):
            inside = labels == label
            if inside.sum() < MIN_PIXELS:
                continue
            # The patch's own full colour is the scale, so that a faded thing has the same shape as a bright one.
            full = np.quantile(saturation[inside], 0.8)
            near = ndimage.binary_dilation(inside) & ((colour == index) | (saturation < MIN_SATURATION))
            shape, x, y, radius = _fit(np.where(near, np.minimum(saturation / full, 1.0), 0.0))
            seen.append(Seen(thing=Thing(colour=COLOURS[index], shape=SHAPES[shape]), x=x, y=y, radius=radius))
    return tuple(seen)


def _attribute(scene: Scene, seen: Sequence[Seen]) -> bool:
    """Return whether size, place or relation hold for the things found, one for each thing of the scene."""
    first = seen[0]
    if scene.size:
        return first.radius < 4.3 if scene.size == "small" else first.radius > 6.0
    if scene.place:
        dx, dy = world.PLACES[scene.place]
        return (first.x - CENTRE) * dx + (first.y - CENTRE) * dy > 3.0
    if not scene.relation:
        return True
    dx, dy = world.RELATIONS[scene.relation]
    right, down = first.x - seen[1].x, first.y - seen[1].y
    along, across = right * dx + down * dy, right * dy + down * dx
    return along > 4.0 and along > abs(across)


def compare(scene: Scene, seen: Sequence[Seen]) -> Float[np.ndarray, " part"]:
    """Return partial credit in [0, 1] for colours, shapes, number and, where the prompt has one, the attribute.

    1 everywhere means that the image shows the scene and nothing else. An attribute counts only if every thing that
    it is about was found.
    """
    wanted, left = scene.wanted, list(seen)
    found: list[Seen | None] = []
    colours = 0
    for thing in wanted:
        match = next((one for one in left if one.thing == thing), None)
        close = match or next((one for one in left if one.thing.colour == thing.colour), None)
        colours += close is not None
        if close:
            left.remove(close)
        found.append(match)
    shapes = sum(one is not None for one in found)
    number = max(0.0, 1.0 - abs(len(seen) - len(wanted)) / len(wanted))
    parts = [colours / len(wanted), shapes / len(wanted), number]
    if scene.size or scene.place or scene.relation:
        exact = [one for one in found if one]
        parts.append(float(len(exact) == len(wanted) and _attribute(scene, exact)))
    return np.array(parts)


# --- soft: template matching -----------------------------------------------------------------------------------------

RADII = (3.5, 4.2, 5.1, 6.2, 7.2)
"""Template radii in pixels."""
SIZE_RADII: Mapping[str | None, tuple[int, ...]] = MappingProxyType(
    {None: (0, 1, 2, 3, 4), "small": (0, 1), "large": (3, 4)}
)
PADDED = 48
"""Side of the padded correlation; a template reaches less than 16 pixels from its centre."""
SHARPNESS = 2.0
"""Power of a match: a square where a circle is asked for still explains 0.9 of its energy, and should cost more."""
PENALTY = 0.3
CLUTTER = 80.0
"""Unexplained colour, in full pixels, that costs the whole penalty: about one thing of usual size."""


@cache
def _covers() -> Float[np.ndarray, "shape radius side side"]:
    """Return every template, drawn at pixel (16, 16)."""
    at = np.full(len(RADII), 16.0)
    return np.stack([world.coverage(shape, at, at, np.array(RADII)) for shape in SHAPES])


@cache
def _surround() -> Float[np.ndarray, "radius side side"]:
    """Return the discs in which a template must explain the colour map: a little wider than any shape."""
    at = np.full(len(RADII), 16.0)
    return world.coverage("circle", at, at, np.array(RADII) * 1.25 + 1.5)


def _spectrum(planes: np.ndarray) -> np.ndarray:
    return np.asarray(fft.rfft2(planes, (PADDED, PADDED)))  # scipy's stub of it returns a dispatcher


@cache
def _spectra() -> tuple[Complex[np.ndarray, "shape radius rows half"], Complex[np.ndarray, "radius rows half"]]:
    """Return the conjugate spectra of templates and surrounds, moved to pixel (0, 0), over the templates' energy."""
    shift = np.exp(2j * np.pi * 16 * np.fft.fftfreq(PADDED))
    half = np.exp(2j * np.pi * 16 * np.fft.rfftfreq(PADDED))
    moved = [np.conj(_spectrum(x) * shift[:, None] * half) for x in (_covers(), _surround())]
    return moved[0], moved[1]


def match(
    shade: Float[np.ndarray, "row side side"], shape: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "row radius side side"]:
    """Return 1 - |map - template|^2 / |template|^2 at every centre: 1 a perfect match, 0 as good as an empty map."""
    templates, surround = _spectra()
    energy = np.square(_covers()).sum(axis=(2, 3))[shape][:, :, None, None]
    first, second = _spectrum(shade), _spectrum(np.square(shade))
    spectrum = 2.0 * first[:, None] * templates[shape] - second[:, None] * surround
    return np.asarray(fft.irfft2(spectrum, (PADDED, PADDED)))[:, :, : world.SIDE, : world.SIDE] / energy


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The best place of a template."""

    score: float
    radius: int
    x: int
    y: int


def _greedy(scores: Float[np.ndarray, "radius side side"], count: int, allowed: Sequence[int]) -> list[Match]:
    """Return the `count` best matches, none within the reach of a better one."""
    axis = np.arange(world.SIDE)
    scores, found = scores[list(allowed)].copy(), []
    for _ in range(count):
        level, y, x = (int(i) for i in np.unravel_index(np.argmax(scores), scores.shape))
        best = Match(score=max(0.0, float(scores[level, y, x])), radius=allowed[level], x=x, y=y)
        found.append(best)
        if count > 1:
            away = np.hypot(axis[None, :] - x, axis[:, None] - y)
            for index, radius in enumerate(allowed):
                scores[index][away < RADII[best.radius] + 0.7 * RADII[radius]] = -1.0
    return found


def _ramp(pixels: float) -> float:
    """Return a smooth 0 to 1 of a margin in pixels; half at 0."""
    return float(1.0 / (1.0 + np.exp(-pixels / 1.5)))


def _layout(scene: Scene, found: Sequence[Match]) -> float:
    """Return how well place or relation hold, 0.3 to 1; 1 where the prompt has neither."""
    first = found[0]
    if scene.place:
        dx, dy = world.PLACES[scene.place]
        return 0.3 + 0.7 * _ramp((first.x - CENTRE) * dx + (first.y - CENTRE) * dy - 3.0)
    if not scene.relation:
        return 1.0
    dx, dy = world.RELATIONS[scene.relation]
    right, down = first.x - found[1].x, first.y - found[1].y
    along, across = right * dx + down * dy, right * dy + down * dx
    return 0.3 + 0.7 * _ramp(along - 4.0) * _ramp(float(along - abs(across)))


def _explained(found: Sequence[Match]) -> Bool[np.ndarray, "side side"]:
    axis = np.arange(world.SIDE)
    reach = [(one, RADII[one.radius] * 1.25 + 1.0) for one in found if one.score > 0.0]
    inside = [np.hypot(axis[None, :] - one.x, axis[:, None] - one.y) < radius for one, radius in reach]
    return np.logical_or.reduce(inside) if inside else np.zeros((world.SIDE, world.SIDE), dtype=bool)


def soft_scores(images: Float[np.ndarray, "row 3 side side"], scenes: Sequence[Scene]) -> Float[np.ndarray, " row"]:
    """Return the smooth score of images in [0, 1]; only the templates that a scene asks for are matched."""
    tone = chroma(images.astype(np.float64))
    owner = np.array([row for row, scene in enumerate(scenes) for _ in scene.things])
    things = [thing for scene in scenes for thing in scene.things]
    colour = np.array([COLOURS.index(thing.colour) for thing in things])
    shape = np.array([SHAPES.index(thing.shape) for thing in things])
    scores = match(colour_map(tone[owner], colour), shape)
    colourful = np.minimum(np.hypot(tone[:, 0], tone[:, 1]) / 0.7, 1.0)
    out = np.empty(len(scenes))
    start = 0
    for row, scene in enumerate(scenes):
        mine = scores[start : start + len(scene.things)]
        start += len(scene.things)
        found = [one for plane in mine for one in _greedy(plane, scene.count, SIZE_RADII[scene.size])]
        clutter = min(1.0, float(colourful[row][~_explained(found)].sum()) / CLUTTER)
        out[row] = np.mean([one.score**SHARPNESS for one in found]) * _layout(scene, found) - PENALTY * clutter
    # Nine decimals: below what vector instructions differ by between the rows of a batch.
    return np.round(out, 9)


# --- plugins ---------------------------------------------------------------------------------------------------------

_ORIGIN = "Arbor's own rule for the embedded world (bench.embedded.world)"


def _valid(images: Tensor) -> tuple[Float[np.ndarray, "row 3 side side"], Bool[np.ndarray, " row"]]:
    """Return the images as numpy and which of them are numbers throughout.

    Raises:
        ValueError: the images do not have the world's size.
    """
    if tuple(images.shape[1:]) != (3, world.SIDE, world.SIDE):
        raise ValueError(f"images must have shape [leaf, 3, {world.SIDE}, {world.SIDE}], not {list(images.shape)}")
    pixels = images.detach().float().cpu().numpy()
    return pixels, np.asarray(np.isfinite(pixels).all(axis=(1, 2, 3)))


class Soft:
    """Smooth template match; the recommended training reward of the embedded model."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="match", low=-PENALTY, high=1.0, higher_is_better=True, revision="1", reference=_ORIGIN
    )

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the mean squared template match times the layout's factor, less a penalty for unexplained colour."""
        scenes = [world.parse(prompt) for prompt in prompts]
        pixels, valid = _valid(images)
        out = np.full(len(scenes), np.nan)
        rows = np.flatnonzero(valid)
        for start in range(0, len(rows), 64):  # bounds the memory of the spectra
            some = rows[start : start + 64]
            out[some] = soft_scores(pixels[some], [scenes[row] for row in some])
        return out


class Graded:
    """Partial credit in [0, 1] for colours, shapes, number and attribute, equally weighted."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="credit", low=0.0, high=1.0, higher_is_better=True, revision="1", reference=_ORIGIN
    )

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the mean partial credit."""
        pixels, valid = _valid(images)
        scenes = [world.parse(prompt) for prompt in prompts]
        credit = [
            compare(scene, read(pixels[row])).mean() if valid[row] else np.nan for row, scene in enumerate(scenes)
        ]
        return np.array(credit, dtype=np.float64)


class Strict:
    """1 where the image shows exactly what its prompt says, else 0."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="share right", low=0.0, high=1.0, higher_is_better=True, revision="1", reference=_ORIGIN
    )

    def __init__(self) -> None:
        self._graded = Graded()

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],
    ) -> Float[np.ndarray, " leaf"]:
        """Return 1.0 where every part of the partial credit is full, else 0.0."""
        graded = self._graded(images, prompts, group)
        return np.where(np.isnan(graded), np.nan, (graded == 1.0).astype(np.float64))


REWARDS: Mapping[str, type] = MappingProxyType({"soft": Soft, "graded": Graded, "strict": Strict})
