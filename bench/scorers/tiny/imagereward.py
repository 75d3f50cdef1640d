"""A tiny ImageReward in the layout of the published checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import Any

TINY = {
    "vision": {"width": 24, "layers": 2, "heads": 4, "patch": 32, "image": 224},
    "text": {"width": 24, "layers": 2, "heads": 4, "words": 130, "positions": 40},
}
"""Sizes; the head's are the published ones but for what it reads."""
FULL = {
    "vision": {"width": 1024, "layers": 24, "heads": 16, "patch": 16, "image": 224},
    "text": {"width": 768, "layers": 12, "heads": 12, "words": 30522, "positions": 512},
}
"""The published sizes."""
PROJECTION = 256
HEAD = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}
"""The head's layers: number -> width."""
GAIN = 0.8
"""Of a layer. At 1, rounding in fp32 alone moves a full-size reward by 2e-6, and no comparison could be closer."""


def make_imagereward(folder: Path, sizes: Mapping[str, Mapping[str, int]] = TINY) -> None:
    """Write ImageReward.pt, med_config.json and vocab.txt, and the vision tower's sizes beside where they are tiny.

    Args:
        folder: is there.
        sizes: of both towers.
    """
    import torch

    see, read = sizes["vision"], sizes["text"]
    torch.save(weights(sizes), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(vocabulary(read["words"])) + "\n", encoding="utf-8")
    (folder / "med_config.json").write_text(json.dumps(_text_config(read), indent=1))
    if sizes is not FULL:
        (folder / "vision_config.json").write_text(json.dumps(_vision_config(see), indent=1))


def layout(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published weight, by its key."""
    see, read = sizes["vision"], sizes["text"]
    wide, patches = see["width"], (see["image"] // see["patch"]) ** 2
    vision: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, wide),
        "pos_embed": (1, patches + 1, wide),
        "patch_embed.proj.weight": (wide, 3, see["patch"], see["patch"]),
        "patch_embed.proj.bias": (wide,),
        **_norm("norm", wide),
    }
    for layer in range(see["layers"]):
        parts = {"attn.qkv": (3 * wide, wide), "attn.proj": (wide, wide)}
        parts |= {"mlp.fc1": (4 * wide, wide), "mlp.fc2": (wide, 4 * wide)}
        vision |= _block(f"blocks.{layer}.", parts, ("norm1", "norm2"), wide)
    text = _text_layout(read, wide)
    flat = {f"blip.visual_encoder.{key}": shape for key, shape in vision.items()}
    flat |= {f"blip.text_encoder.{key}": shape for key, shape in text.items()}
    flat |= _linear("blip.vision_proj", (PROJECTION, wide)) | _linear("blip.text_proj", (PROJECTION, read["width"]))
    before = read["width"]
    for at, after in HEAD.items():
        flat |= _linear(f"mlp.layers.{at}", (after, before))
        before = after
    return flat


def _text_layout(sizes: Mapping[str, int], encoder: int) -> dict[str, tuple[int, ...]]:
    width = sizes["width"]
    found: dict[str, tuple[int, ...]] = {
        "embeddings.position_ids": (1, sizes["positions"]),
        "embeddings.word_embeddings.weight": (sizes["words"] + 2, width),
        "embeddings.position_embeddings.weight": (sizes["positions"], width),
        **_norm("embeddings.LayerNorm", width),
    }
    for layer in range(sizes["layers"]):
        parts: dict[str, tuple[int, int]] = {}
        for attention, source in (("attention", width), ("crossattention", encoder)):
            parts |= {f"{attention}.self.query": (width, width)}
            parts |= {f"{attention}.self.{name}": (width, source) for name in ("key", "value")}
            parts |= {f"{attention}.output.dense": (width, width)}
        parts |= {"intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width)}
        norms = ("attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm")
        found |= _block(f"encoder.layer.{layer}.", parts, norms, width)
    return found


def _block(
    prefix: str, linear: Mapping[str, tuple[int, int]], norms: tuple[str, ...], width: int
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in linear.items():
        found |= _linear(prefix + name, shape)
    for name in norms:
        found |= _norm(prefix + name, width)
    return found


def _linear(name: str, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def weights(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return random weights, such that rewards differ from image to image and from prompt to prompt."""
    import torch

    found: dict[str, Any] = {}
    for key, shape in layout(sizes).items():
        if key.endswith("position_ids"):
            found[key] = torch.arange(shape[-1])[None]
        elif "norm" in key.lower() and key.endswith("weight"):
            found[key] = torch.empty(shape).normal_(1.0, 0.1)
        elif len(shape) == 1 or "embeddings" in key or key.endswith(("cls_token", "pos_embed")):
            found[key] = torch.empty(shape).normal_(0.0, 0.1)
        else:  # a little narrower than what it reads, so that rewards keep to tenths
            found[key] = torch.empty(shape).normal_(0.0, GAIN * math.prod(shape[1:]) ** -0.5)
    return found


def vocabulary(size: int) -> list[str]:
    """Return words of BERT's kind: what is special, single characters and, up to the size, words that nobody writes."""
    within = ascii_lowercase + digits
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *within, *punctuation, *(f"##{char}" for char in within)]
    return words + [f"word{number}" for number in range(size - len(words))]


def _text_config(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return med_config.json, with the fields that are published."""
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes["width"],
        "initializer_range": 0.02,
        "intermediate_size": 4 * sizes["width"],
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": sizes["positions"],
        "model_type": "bert",
        "num_attention_heads": sizes["heads"],
        "num_hidden_layers": sizes["layers"],
        "pad_token_id": 0,
        "add_type_embeddings": False,
        "vocab_size": sizes["words"] + 2,
        "encoder_width": sizes["width"],
        "add_cross_attention": True,
    }


def _vision_config(sizes: Mapping[str, int]) -> dict[str, int]:
    return {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": 4 * sizes["width"],
        "image_size": sizes["image"],
        "patch_size": sizes["patch"],
    }
