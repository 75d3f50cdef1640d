"""What scorers share about images: checked, rounded to 8 bits, in batches, without those that are broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # names of scorers do not wait for torch

Score = Callable[["Tensor", list[str]], "Tensor"]
"""Scores [row] of 8-bit images [row *frame 3 height width] and their prompts."""


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of RGB in [0, 1], as OpenAI's CLIP has them, and most that came after it."""


def check_batch(batch: int) -> None:
    """Raise ValueError unless a call scores an image at least."""
    if batch < 1:
        raise ValueError(f"batch={batch}: at least one is scored at a time")


def check_images(images: Tensor, prompts: Sequence[str], media: str = "image") -> None:
    """Raise unless these are images, or videos, in [0, 1], with a prompt each; those that are not finite may be any.

    Raises:
        TypeError: for numbers that are not floats.
        ValueError: for another shape or range, or another number of prompts.
    """
    axes = "[leaf, 3, height, width]" if media == "image" else "[leaf, frame, 3, height, width]"
    if not images.is_floating_point():
        raise TypeError(f"{media}s are floats in [0, 1], not {images.dtype}: divide 8-bit values by 255")
    if images.ndim != axes.count(",") + 1 or images.shape[-3] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"{media}s of shape {axes} are wanted, RGB, not {list(images.shape)}")
    if len(prompts) != len(images):
        raise ValueError(f"{len(images)} {media}s and {len(prompts)} prompts: one each is wanted")
    if images.numel():
        low, high = map(float, images.nan_to_num(0.5, 0.5, 0.5).aminmax())
        if low < -0.01 or high > 1.01:
            raise ValueError(f"{media}s lie in [0, 1], and these from {low:.3g} to {high:.3g}")


def eight_bit(
    images: Float[Tensor, "leaf *frame 3 height width"],
) -> tuple[UInt8[Tensor, "leaf *frame 3 height width"], Bool[np.ndarray, " leaf"]]:
    """Return images rounded as a file holds them, and which of them are finite; the others are black."""
    import torch

    flat = images.detach().flatten(1)
    valid = torch.isfinite(flat).all(1)
    rounded = (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return rounded, valid.cpu().numpy()


def scored(
    score: Score,
    images: Float[Tensor, "leaf *frame 3 height width"],
    prompts: Sequence[str],
    batch: int,
    media: str = "image",
) -> Float[np.ndarray, " leaf"]:
    """Return what `score` says of the 8-bit images, at most `batch` a call; NaN for an image that is not finite.

    Raises:
        TypeError, ValueError: as `check_images`.
    """
    import torch

    check_images(images, prompts, media)
    pixels, valid = eight_bit(images)
    rows = np.flatnonzero(valid)
    values = np.full(len(images), np.nan)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        with torch.inference_mode():
            found = score(pixels[torch.from_numpy(part).to(pixels.device)], [prompts[int(i)] for i in part])
        values[part] = found.double().cpu().numpy()
    return values


def distinct(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return each prompt once, and where each row's is among them: a group's images share the work of one."""
    place = {text: at for at, text in enumerate(dict.fromkeys(prompts))}
    return list(place), [place[text] for text in prompts]


def pictures(pixels: UInt8[Tensor, "row 3 height width"]) -> list[Any]:
    """Return 8-bit images as those of PIL."""
    from PIL import Image

    return [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
