"""The first frame of Wan's image-to-video models: what CLIP sees in it, and its latent under a mask of known frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.models.parts import load_encoder
from bench.policy import Build, Row
from bench.registry import InputError

MASK = 4
"""Channels of the mask: the frames that a latent frame stands for."""


def frame_encoder(folder: Path, build: Build, latent: Callable[[Tensor], Tensor]) -> Callable[[Path], Row]:
    """Return what makes a first frame's features [token, channel] and latent [mask and channel, frame, height, width].

    Args:
        folder: the pipeline's.
        build: says the size, to which images are stretched, as the pipeline does.
        latent: makes the latent of a video in [-1, 1].
    """
    from diffusers.video_processor import VideoProcessor
    from transformers import CLIPImageProcessor, CLIPVisionModel

    model = load_encoder(CLIPVisionModel, folder, "image_encoder", build)
    pixels = CLIPImageProcessor.from_pretrained(folder / "image_processor")
    processor = VideoProcessor()

    @torch.no_grad()
    def encode(path: Path) -> Row:
        image = opened(path)
        seen = model(**pixels(images=image, return_tensors="pt").to(build.device), output_hidden_states=True)
        first = processor.preprocess(image, height=build.height, width=build.width)
        return seen.hidden_states[-2][0].cpu(), known(latent(continued(first, build.frames))).cpu()

    return encode


def opened(path: Path) -> Any:
    """Return an image file as RGB, turned as its camera says.

    Raises:
        InputError: if it is missing or no image.
    """
    from diffusers.utils.loading_utils import load_image

    try:
        return load_image(str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"first frame {path} is no image that can be read; give another") from error


def continued(first: Float[Tensor, "1 3 height width"], frames: int) -> Float[Tensor, "1 3 shown height width"]:
    """Return a video that starts with a frame and is grey, 0, after it."""
    return torch.cat([first.unsqueeze(2), first.new_zeros(1, 3, frames - 1, *first.shape[2:])], dim=2)


def known(latent: Float[Tensor, "channel frame height width"]) -> Float[Tensor, "masked frame height width"]:
    """Return a latent below the mask that says which of its frames are known: the first."""
    mask = latent.new_zeros(MASK, *latent.shape[1:])
    mask[:, 0] = 1.0
    return torch.cat([mask, latent])
