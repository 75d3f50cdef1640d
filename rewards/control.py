"""The null control: a reward that says nothing about the image, to show what drifts when nothing is learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float, Int

from bench.contract import RewardInfo

if TYPE_CHECKING:
    from torch import Tensor

KEY = b"arbor-null-1"


def _uniform(pixels: np.ndarray) -> float:
    """Return a number in [0, 1) that is fixed by the bytes of an 8-bit image and has no other meaning."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), key=KEY, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


class Random:
    """A keyed hash of the image as 8-bit RGB: deterministic, uniform, and equal for equal images."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="none",
        low=0.0,
        high=1.0,
        higher_is_better=True,
        revision="1",
        reference="null control: BLAKE2b of the 8-bit image",
    )

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],  # noqa: ARG002
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the hash of each image as a number in [0, 1)."""
        pixels = images.detach().float().cpu().numpy()
        valid = np.asarray(np.isfinite(pixels).all(axis=(1, 2, 3)))
        bytes_ = np.round(np.clip(np.nan_to_num(pixels), 0.0, 1.0) * 255.0).astype(np.uint8)
        return np.array(
            [_uniform(image) if ok else np.nan for image, ok in zip(bytes_, valid, strict=True)], dtype=np.float64
        )


REWARDS: Mapping[str, type] = MappingProxyType({"random": Random})
