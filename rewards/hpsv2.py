"""HPS-v2.1: a CLIP of human preferences about generated images (Wu et al. 2023, arXiv 2306.09341)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from bench.contract import HubFile, RewardInfo, means
from bench.scorers.checkpoint import state_of, taken_for
from bench.scorers.pixels import CLIP_MEAN, CLIP_STD, check_batch, distinct, scored
from bench.scorers.weights import located, revision

if TYPE_CHECKING:
    from torch import Tensor

NAME = "hpsv2.1"
WEIGHTS = HubFile(
    repository="xswu/HPSv2", file="HPS_v2.1_compressed.pt", size=0, about=1_972_000_000, licence="Apache-2.0"
)
ARCHITECTURE = "ViT-H-14"
"""In open_clip."""
SIZES = "open_clip_config.json"
"""Of another architecture, which a folder given as `weights` may hold: a tiny one's."""


def preprocessed(
    pixels: UInt8[Tensor, "row 3 height width"], side: int, *, antialias: bool = True
) -> Float[Tensor, "row 3 side side"]:
    """Return images with their longer side resized, as tensors, and the rest padded with black, normalised.

    Where the padding is odd its smaller half is left or above.

    Raises:
        ValueError: for an image of which nothing would be left.
    """
    import torch
    from torchvision.transforms.v2.functional import InterpolationMode, normalize, pad, resize

    image = pixels.float() / 255
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    if scale != 1.0:
        size = [round(height * scale), round(width * scale)]
        if 0 in size:
            raise ValueError(f"an image of {width} x {height} is too narrow: resized to {side}, a side of it vanishes")
        image = resize(image, size, InterpolationMode.BICUBIC, antialias=antialias)
    below, beside = side - image.shape[-2], side - image.shape[-1]
    image = pad(image, [beside // 2, below // 2, beside - beside // 2, below - below // 2], [0.0])
    return normalize(image.to(torch.float32), list(CLIP_MEAN), list(CLIP_STD))


@dataclass(frozen=True, kw_only=True)
class HPSv2:
    """HPS-v2.1, human preference: cosine of image and prompt in a fine-tuned CLIP ViT-H-14."""

    antialias: bool = True
    """Whether images are smoothed before they are made smaller; off, as in torchvision before 0.17."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Of the towers; the product of their features is fp32 always, for in half precision it has steps of 2.4e-4."""
    weights: str = means("")
    """A folder with the published file; empty for the hub's cache."""
    batch: int = means(32)
    """Images of one call."""

    files: ClassVar[tuple[HubFile, ...]] = (WEIGHTS,)
    packages: ClassVar[tuple[str, ...]] = ("open_clip",)

    def __post_init__(self) -> None:
        check_batch(self.batch)

    @property
    def info(self) -> RewardInfo:
        """Return what its numbers mean."""
        return RewardInfo(
            unit="cosine",
            low=-1.0,
            high=1.0,
            higher_is_better=True,
            revision=revision(self.files, self.weights, "1", beside=SIZES),
            reference="Wu et al., arXiv 2306.09341; weights xswu/HPSv2 of the hub",
            model=f"CLIP {ARCHITECTURE} of open_clip, {WEIGHTS.file}, towers in {self.precision}, product in fp32",
            preprocessing="longer side to 224 as a tensor, bicubic, "
            f"{'with' if self.antialias else 'without'} antialias; padded with black; CLIP's mean and std",
            pixels="uint8",
        )

    @property
    def memory(self) -> int:
        """Return the bytes of the weights in memory."""
        return 986_109_441 * (2 if self.precision == "fp16" else 4)

    def load(self) -> None:
        """Bring the weights into memory.

        Raises:
            FileNotFoundError: they are not on this machine.
            RuntimeError: they are of another model.
        """
        _ = self.towers

    @cached_property
    def towers(self) -> tuple[Any, Any]:
        """The model in evaluation mode, and its tokenizer."""
        import open_clip
        import torch

        file = located(NAME, WEIGHTS, self.weights)
        with taken_for("what open_clip says of a CLIP", file.parent / SIZES):
            model = empty(architecture(file.parent))
        take(model, file)
        dtype = torch.float16 if self.precision == "fp16" else torch.float32
        return model.to(dtype).eval().requires_grad_(False), open_clip.get_tokenizer(ARCHITECTURE)

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the cosine of each image and its prompt; no scale, so that published scores are .2 to .4."""
        return scored(self._cosine, images, prompts, self.batch)

    def _cosine(self, pixels: UInt8[Tensor, "row 3 height width"], prompts: list[str]) -> Float[Tensor, " row"]:
        from torch.nn.functional import normalize

        model, tokenizer = self.towers
        model = model.to(pixels.device)
        texts, place = distinct(prompts)
        image = preprocessed(pixels, model.visual.image_size[0], antialias=self.antialias)
        seen = model.encode_image(image.to(model.logit_scale.dtype)).float()
        said = model.encode_text(tokenizer(texts).to(pixels.device)).float()[place]
        return (normalize(seen, dim=-1) * normalize(said, dim=-1)).sum(-1)


def architecture(folder: Path) -> dict[str, Any]:
    """Return the sizes of the model whose weights are in a folder, as open_clip has them."""
    import open_clip

    file = folder / SIZES
    if file.is_file():
        return json.loads(file.read_text())["model_cfg"]
    config: Any = open_clip.get_model_config(ARCHITECTURE)
    return config


def empty(config: Mapping[str, Any]) -> Any:
    """Return a CLIP without memory for its weights."""
    from accelerate import init_empty_weights
    from open_clip.model import CLIP

    with init_empty_weights():
        return CLIP(**config)


def take(model: Any, file: Path) -> None:
    """Put the weights of a published file into an empty model, key by key, as fp32.

    Raises:
        RuntimeError: if they are of another model.
    """
    with taken_for(f"HPS-v2.1's {WEIGHTS.file}", file):
        state = {key: value.float() for key, value in state_of(file)["state_dict"].items()}
        model.load_state_dict(state, strict=True, assign=True)


REWARDS: Mapping[str, type] = MappingProxyType({NAME: HPSv2})
