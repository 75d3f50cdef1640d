"""What the tests of scorers of images share: odd images, tiny weights, and what holds for every scorer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.embedded.training import seeded
from bench.scorers.tiny import make

SIZES = [(512, 512), (720, 480), (480, 832), (100, 60), (224, 224), (225, 97)]
"""Height and width; where the last is padded or cropped to a square, the two sides of it differ by a pixel."""
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
"""CLIP's, of RGB in [0, 1]."""
PROMPTS = ["a cat", "a dog\u2019s \u201cdinner\u201d", "a cat", "Tom &amp; Jerry", "caf\u00e9 " * 90, ""]


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return soft random images with a little noise, of [0, 1]."""
    rng = seeded(seed)[0]
    coarse = torch.from_numpy(rng.random((count, 3, 6, 5), dtype=np.float32))
    soft = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return 0.8 * soft + 0.2 * torch.from_numpy(rng.random((count, 3, height, width), dtype=np.float32))


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """Return an 8-bit image of noise, in a batch of one."""
    return torch.from_numpy(seeded(seed)[0].integers(0, 256, (1, 3, height, width), dtype=np.uint8))


def group(prompts: Sequence[str]) -> np.ndarray:
    return np.zeros(len(prompts), dtype=np.int64)


def scores(scorer: Any, pictures: Tensor, prompts: Sequence[str] = PROMPTS) -> np.ndarray:
    return scorer(pictures, list(prompts), group(prompts))


def written(scorer: str, folders: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny weights of a scorer."""
    folder = folders.mktemp("weights")
    make(scorer, folder)
    return folder


def check_independence(kind: Any, tolerance: float = 1e-6, **options: Any) -> None:
    """Assert that no score depends on the size of a batch, the order, or what is scored with it."""
    pictures = images(len(PROMPTS), 50, 40)
    together = scores(kind(**options, batch=6), pictures)
    assert together.dtype == np.float64
    assert np.isfinite(together).all()
    assert len(set(together)) == len(PROMPTS)
    parts = scores(kind(**options, batch=4), pictures)
    alone = [scores(kind(**options), pictures[i : i + 1], [prompt])[0] for i, prompt in enumerate(PROMPTS)]
    turned = scores(kind(**options), pictures.flip(0), PROMPTS[::-1])[::-1]
    for other in (parts, alone, turned):
        np.testing.assert_allclose(other, together, atol=tolerance, rtol=0)


def check_a_broken_image_fails_alone(scorer: Any) -> None:
    pictures = images(len(PROMPTS), 40, 50)
    whole = scores(scorer, pictures)
    pictures[1, 2, 5, 5] = float("nan")
    pictures[4, 0, 0, 0] = float("inf")
    broken = scores(scorer, pictures)
    assert np.isnan(broken[[1, 4]]).all()
    np.testing.assert_allclose(broken[[0, 2, 3, 5]], whole[[0, 2, 3, 5]], atol=1e-6, rtol=0)
    assert np.isnan(scores(scorer, pictures[[1, 4]], PROMPTS[:2])).all()


def check_wrong_input(scorer: Any) -> None:
    """Assert that what is no batch of images is refused; the types of arguments are checked in tests, and first."""
    pictures = images(2, 40, 40)
    for wrong, said in (
        (pictures.mul(255).to(torch.uint8), "divide 8-bit values by 255|u8"),
        (pictures * 255, r"lie in \[0, 1\], and these from"),
        (pictures * 2 - 1, r"lie in \[0, 1\], and these from -"),
        (pictures[:, :1], "RGB|Type-check"),
        (pictures.permute(0, 2, 3, 1), "RGB|Type-check"),
        (pictures[:, :, :0], "shape"),
        (pictures[:1], "1 images and 2 prompts"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            scorer(wrong, ["a", "b"], np.zeros(2, dtype=np.int64))
