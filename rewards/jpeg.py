"""The size of an image as a JPEG file, and its negative (Black et al. 2023, arXiv 2305.13301)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8

from bench.contract import RewardInfo
from bench.scorers.pixels import pictures, scored

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 64
"""Images that are pictures of PIL at a time."""


@dataclass(frozen=True, kw_only=True)
class Incompressibility:
    """Size of the image as a JPEG file in kB: detail and noise raise it."""

    quality: int = 95
    """Of the JPEG, 1 to 100."""

    sign: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality}: 1 to 100 is wanted")

    @property
    def info(self) -> RewardInfo:
        """Return what its numbers mean."""
        low, high = sorted((0.0, self.sign * 3000.0))  # an image of 1024 x 1024 has at most about that
        return RewardInfo(
            unit="kB",
            low=low,
            high=high,
            higher_is_better=True,
            revision="1",
            reference="Black et al., arXiv 2305.13301",
            preprocessing=f"JPEG of quality {self.quality} by PIL, chroma halved; 1 kB is 1000 bytes",
            pixels="uint8",
        )

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the size of each image's file, or its negative; prompts do not matter."""
        return scored(self._sized, images, prompts, BATCH)

    def _sized(
        self,
        pixels: UInt8[Tensor, "row 3 height width"],
        prompts: list[str],  # noqa: ARG002
    ) -> Float[Tensor, " row"]:
        import torch

        sizes = [self.sign * _bytes(picture, self.quality) / 1000 for picture in pictures(pixels)]
        return torch.tensor(sizes, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Compressibility(Incompressibility):
    """Size of the image as a JPEG file in kB, negative: flat colour raises it."""

    sign: ClassVar[float] = -1.0


def _bytes(picture: Any, quality: int) -> int:
    file = BytesIO()
    picture.save(file, format="JPEG", quality=quality)
    return file.tell()


REWARDS: Mapping[str, type] = MappingProxyType(
    {"jpeg-compressibility": Compressibility, "jpeg-incompressibility": Incompressibility}
)
