"""How much of a named colour a pixel has, whatever it is faded by: what the rules that read pictures stand on."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Int

from bench.embedded import world


def chroma(rgb: Float[np.ndarray, "*batch 3 height width"]) -> Float[np.ndarray, "*batch 2 height width"]:
    """Return the colour without its grey part: direction is hue, length is saturation; fading only shortens it."""
    red, green, blue = (rgb[..., channel, :, :] for channel in range(3))
    return np.stack([red - 0.5 * (green + blue), np.sqrt(0.75) * (green - blue)], axis=-3)


@cache
def hues() -> Float[np.ndarray, "colour 2"]:
    """Return the chroma of the world's full colours."""
    return chroma(np.array(list(world.COLOURS.values()))[:, :, None, None])[:, :, 0, 0]


def colour_map(
    tone: Float[np.ndarray, "row 2 side side"], colour: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "row side side"]:
    """Return how much of the full colour each pixel has, 0 to 1: saturation along the hue, gated by the hue."""
    full = np.linalg.norm(hues(), axis=1)[colour]
    hue = (hues()[colour] / full[:, None])[:, :, None, None]
    along = (tone * hue).sum(axis=1)
    cosine = along / np.maximum(np.hypot(tone[:, 0], tone[:, 1]), 1e-6)
    gate = np.clip((cosine - 0.80) / 0.15, 0.0, 1.0)
    return np.clip(along / full[:, None, None], 0.0, 1.0) * gate
