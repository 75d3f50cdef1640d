"""Which frames of a video are looked at, as the package qwen-vl-utils chooses them for Qwen2-VL and its children."""

from __future__ import annotations

LEAST, MOST = 4, 768
"""Frames, of a video that has so many."""


def sampled(count: int, fps: float, wanted: float) -> list[int]:
    """Return which of `count` frames at `fps` are looked at: about `wanted` a second, an even number, both ends.

    Raises:
        ValueError: for fewer than two frames.
    """
    import torch

    if count < 2:
        raise ValueError(f"a video of {count} frame has no motion to score: at least 2 are wanted")
    most = min(MOST, count) // 2 * 2
    chosen = round(min(max(count / fps * wanted, LEAST), most) / 2) * 2
    return torch.linspace(0, count - 1, chosen).round().long().tolist()
