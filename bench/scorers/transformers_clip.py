"""CLIPs in the layout of transformers: loaded strictly, from files alone, and fed by the processor of PIL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, UInt8

from bench.scorers.checkpoint import state_of, taken_for
from bench.scorers.pixels import pictures

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # names of scorers do not wait for torch

BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Numbers 0, 1, 2, ... that old checkpoints hold; the model makes its own."""
OF_IMAGES = ("vision_model.", "visual_projection.")
"""What the keys of the tower of images begin with."""


def config_of(file: Path) -> Any:
    """Return the sizes of a CLIP.

    Raises:
        RuntimeError: if the file is no configuration of one.
    """
    from transformers import CLIPConfig

    with taken_for("a configuration of a CLIP of transformers", file):
        read = json.loads(file.read_text())
        if read.get("model_type") != "clip":
            raise ValueError(f"model_type is {read.get('model_type')!r}")
        return CLIPConfig.from_dict(read)


def empty(config: Any, *, images_only: bool = False) -> Any:
    """Return a CLIP, or its tower of images, without memory for its weights."""
    from accelerate import init_empty_weights
    from transformers import CLIPModel, CLIPVisionModelWithProjection

    with init_empty_weights(include_buffers=False):
        if not images_only:
            return CLIPModel(config)
        config.vision_config.projection_dim = config.projection_dim
        return CLIPVisionModelWithProjection(config.vision_config)


def loaded(config: Path, weights: Path, what: str, *, images_only: bool = False) -> Any:
    """Return a CLIP, or its tower of images, as fp32 in evaluation mode.

    Args:
        config: its config.json.
        weights: a .safetensors file, or one that torch saved.
        what: it is, for errors.
        images_only: whether the tower of texts is left out.

    Raises:
        RuntimeError: if the files are of another model.
    """
    model = empty(config_of(config), images_only=images_only)
    with taken_for(f"{what}, as {config} describes it", weights):
        state = {key: value.float() for key, value in state_of(weights).items() if key not in BUFFERS}
        if images_only:
            state = {key: value for key, value in state.items() if key.startswith(OF_IMAGES)}
        model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def image_processor(file: Path) -> Any:
    """Return the processor of images that a preprocessor_config.json describes, computed by PIL.

    That of torchvision, which transformers takes unless told otherwise, differs by a step of 8 bits.

    Raises:
        RuntimeError: if the file describes none.
    """
    from transformers import CLIPImageProcessorPil

    with taken_for("a preprocessor_config.json", file):
        return CLIPImageProcessorPil.from_dict(json.loads(file.read_text()))


def preprocessed(processor: Any, pixels: UInt8[Tensor, "row 3 height width"]) -> Float[Tensor, "row 3 side side"]:
    """Return what a CLIP sees of images, on their device."""
    seen: Tensor = processor(images=pictures(pixels), return_tensors="pt")["pixel_values"]
    return seen.to(pixels.device)


def tokens(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """Return the tokens of texts and which of them count, cut or filled to a length: none depends on its neighbours."""
    read = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"]}
