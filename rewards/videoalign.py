"""VideoReward of VideoAlign: how good a video looks, moves and fits its prompt (Liu et al. 2025, arXiv 2501.13918)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from bench.contract import HubFile, RewardInfo, means
from bench.scorers.frames import LEAST, sampled
from bench.scorers.pixels import CLIP_MEAN, CLIP_STD, check_batch, scored
from bench.scorers.video_files import CRF, through_file
from bench.scorers.videoreward import CELL, DIMENSIONS, Judge, judge
from bench.scorers.weights import located, revision

if TYPE_CHECKING:
    from torch import Tensor

NAME = "videoalign"
HUB, BASE = "KlingTeam/VideoReward", "Qwen/Qwen2-VL-2B-Instruct"
CHECKPOINT = HubFile(
    repository=HUB, file="checkpoint-11352/model.pth", size=0, about=5_031_072_529, licence="Apache-2.0"
)
SETTINGS = HubFile(repository=HUB, file="model_config.json", size=0, licence="Apache-2.0")
CONFIG = HubFile(repository=BASE, file="config.json", size=0, licence="Apache-2.0")
TOKENIZER = HubFile(repository=BASE, file="tokenizer.json", size=0, about=7_030_000, licence="Apache-2.0")

LEAST_PIXELS, WIDEST = 128 * CELL**2, 200
PARAMETERS = 2_208_561_664
"""Of the published model, LoRA merged, without the head that nobody reads."""
REMEMBERED = 4096
"""Batches whose numbers are kept, so that three dimensions of one video cost one look at it."""


def target(height: int, width: int, most: int) -> tuple[int, int]:
    """Return the size that a frame is resized to: multiples of 28, with `most` pixels at most, or enlarged to some.

    Raises:
        ValueError: if one side is more than 200 times the other.
    """
    if max(height, width) > WIDEST * min(height, width):
        raise ValueError(f"a video of {width} x {height} is too narrow: at most {WIDEST} to 1")
    tall, wide = (max(CELL, round(side / CELL) * CELL) for side in (height, width))
    if tall * wide > most:
        ratio = math.sqrt(height * width / most)
        return math.floor(height / ratio / CELL) * CELL, math.floor(width / ratio / CELL) * CELL
    if tall * wide < LEAST_PIXELS:
        ratio = math.sqrt(LEAST_PIXELS / (height * width))
        return math.ceil(height * ratio / CELL) * CELL, math.ceil(width * ratio / CELL) * CELL
    return tall, wide


def preprocessed(
    frames: UInt8[Tensor, "row frame 3 height width"], most: int
) -> Float[Tensor, "row frame 3 tall wide"]:
    """Return frames resized, bicubic with antialias, rounded to 8 bits again, and normalised.

    Resized as floats: torchvision's kernel for 8-bit tensors cuts overshoots off between its two passes, which moves
    pixels of a rich texture by up to 25 of 255.
    """
    from torchvision.transforms.v2.functional import InterpolationMode, normalize, resize

    size = list(target(frames.shape[-2], frames.shape[-1], most))
    small = resize(frames.flatten(0, 1).float(), size, InterpolationMode.BICUBIC, antialias=True)
    pixels = small.clamp_(0, 255).round_().div_(255)  # in place, as a copy of a batch of videos is large
    return normalize(pixels, list(CLIP_MEAN), list(CLIP_STD), inplace=True).unflatten(0, frames.shape[:2])


@dataclass(frozen=True, kw_only=True)
class VideoAlign:
    """VideoReward: visual quality, motion quality, alignment with the text, or their sum, of a video."""

    dimension: Literal["vq", "mq", "ta", "overall"] = "overall"
    """What is scored; several scorers of one run share one model and one look at a video."""
    frames: Literal["direct", "file"] = "direct"
    """Whether frames are seen as decoded, or after an MP4 was written and read back, as DanceGRPO does."""
    fps: float = 16.0
    """Frames of a video that make a second."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model; LoRA is merged and the head applied in fp32 always."""
    rope: Literal["bf16", "fp32"] = "bf16"
    """Of the frequencies of rotary positions: rounded as by the published code, which casts the whole model to
    bfloat16 in training and in use; far into a text that turns them by radians."""
    weights: str = means("")
    """A folder with the published files; empty for the hub's cache."""
    batch: int = means(4)
    """Videos of one call."""

    files: ClassVar[tuple[HubFile, ...]] = (CHECKPOINT, SETTINGS, CONFIG, TOKENIZER)

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: for an option out of its range.
        """
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps={self.fps:g}: frames a second are a positive number, such as 16")
        check_batch(self.batch)

    @property
    def packages(self) -> tuple[str, ...]:
        """Return what it imports besides."""
        return ("av",) if self.frames == "file" else ()

    @property
    def info(self) -> RewardInfo:
        """Return what its numbers mean."""
        frames = f"frames of an MP4 (H.264, crf {CRF})" if self.frames == "file" else "frames as decoded"
        return RewardInfo(
            unit="standard deviations" if self.dimension != "overall" else "sum of three, in standard deviations",
            low=-3.0 if self.dimension != "overall" else -9.0,
            high=3.0 if self.dimension != "overall" else 9.0,
            higher_is_better=True,
            revision=revision(self.files, self.weights, "1"),
            reference=f"Liu et al., arXiv 2501.13918; weights {HUB} of the hub",
            model=f"Qwen2-VL-2B with LoRA merged, {CHECKPOINT.file}, in {self.precision}, "
            f"rotary frequencies in {self.rope}, head in fp32",
            preprocessing=f"{frames}, 2 a second of {self.fps:g}, at least {LEAST}; each to "
            "multiples of 28 pixels, 100,352 to 200,704, bicubic with antialias; CLIP's mean and std",
            media="video",
            pixels="uint8",
        )

    @property
    def memory(self) -> int:
        """Return the bytes of the weights in memory."""
        return PARAMETERS * (2 if self.precision == "bf16" else 4)

    @property
    def shares(self) -> tuple[str, ...]:
        """Return what is equal in scorers that have one model in memory: all dimensions of a checkpoint have."""
        return (NAME, self.weights, self.precision, self.rope)

    def load(self) -> None:
        """Bring the weights into memory.

        Raises:
            FileNotFoundError: they are not on this machine.
            RuntimeError: they are of another model.
        """
        _ = self.judge

    @cached_property
    def judge(self) -> Judge:
        """The model, which scorers of other dimensions share."""
        files = tuple(located(NAME, file, self.weights) for file in self.files)
        return judge(files, tuple(file.stat().st_mtime_ns for file in files), self.precision, self.rope)

    def __call__(
        self,
        images: Float[Tensor, "leaf *frame 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the score of each video; 0 is the mean of those that the published constants are from."""
        return scored(self._score, images, prompts, self.batch, "video")

    def _score(self, pixels: UInt8[Tensor, "row frame 3 height width"], prompts: list[str]) -> Float[Tensor, " row"]:
        import torch

        what = self.judge.settings
        mean, std = torch.tensor(what.mean, dtype=torch.float64), torch.tensor(what.std, dtype=torch.float64)
        normal = (self._known(pixels, prompts) - mean) / std
        return normal.sum(1) if self.dimension == "overall" else normal[:, DIMENSIONS.index(self.dimension.upper())]

    def _known(self, pixels: UInt8[Tensor, "row frame 3 height width"], prompts: list[str]) -> Float[Tensor, "row 3"]:
        """Return the three numbers of each video of a batch, looked at once."""
        import torch

        known = self.judge.known
        at = torch.tensor(sampled(pixels.shape[1], self.fps, self.judge.settings.fps)).to(pixels.device)
        seen = pixels if self.frames == "file" else pixels[:, at]
        key = _digest(seen, prompts, (self.frames, self.fps))
        if key not in known:
            if self.frames == "file":
                seen = torch.stack([through_file(video, self.fps) for video in pixels])[:, at]
            while len(known) >= REMEMBERED:
                del known[next(iter(known))]
            known[key] = self.judge.logits(preprocessed(seen, self.judge.settings.most_pixels), prompts).double().cpu()
        return known[key]


def _digest(pixels: UInt8[Tensor, "row frame 3 height width"], prompts: Sequence[str], more: tuple[Any, ...]) -> str:
    """Return what tells a batch from others."""
    sha = hashlib.sha256(json.dumps([list(pixels.shape), list(prompts), more]).encode())
    sha.update(pixels.contiguous().cpu().numpy().data)
    return sha.hexdigest()


REWARDS: Mapping[str, type] = MappingProxyType({NAME: VideoAlign})
