"""Tiny CLIPs in the layouts that scorers read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

OPEN_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 2},
}
"""The sizes; the vocabulary is the published one, so that its tokenizer does."""
_BOTH = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": 16}
CLIP: dict[str, Any] = {
    "projection_dim": 16,
    "logit_scale_init_value": 4.6052,
    "text_config": {**_BOTH, "hidden_size": 4, "intermediate_size": 8, "bos_token_id": 0, "eos_token_id": 2},
    "vision_config": {**_BOTH, "hidden_size": 16, "intermediate_size": 32, "image_size": 32, "patch_size": 8},
}
"""Sizes in the layout of transformers; the logit is 100 cosines, as published."""
PROCESSOR: dict[str, Any] = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}
"""Of images, as files of 2022 have it."""


def make_hpsv21(folder: Path) -> None:
    """Write HPS_v2.1_compressed.pt, in half precision as published, and the sizes beside."""
    import torch

    state = {key: value.half() for key, value in _open_clip().state_dict().items()}
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    _write_config(folder)


def make_clip(folder: Path) -> None:
    """Write open_clip_model.safetensors and open_clip_config.json, which says that images are squashed, as DFN5B's."""
    from safetensors.torch import save_file

    save_file(_open_clip().state_dict(), folder / "open_clip_model.safetensors")
    _write_config(folder, {"interpolation": "bicubic", "resize_mode": "squash"})


def make_pickscore(folder: Path) -> None:
    """Write model.safetensors with the sizes, the processor of images and the published vocabulary beside."""
    from open_clip.tokenizer import SimpleTokenizer

    _write_clip(folder)
    words = SimpleTokenizer()
    merges = sorted(words.bpe_ranks, key=words.bpe_ranks.__getitem__)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): place for token, place in words.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")


def make_aesthetic(folder: Path) -> None:
    """Write a CLIP as `make_pickscore` does, and both heads, for `aesthetic` and for `aesthetic-linear`."""
    import torch
    from torch.nn import Linear

    _write_clip(folder)
    widths = (CLIP["projection_dim"], 16, 8, 8, 4, 1)
    layers = [Linear(a, b) for a, b in pairwise(widths)]
    head = {
        f"layers.{at}.{key}": value
        for at, layer in zip((0, 2, 4, 6, 7), layers, strict=True)
        for key, value in layer.state_dict().items()
    }
    torch.save(head, folder / "sac+logos+ava1-l14-linearMSE.pth")
    torch.save(Linear(widths[0], 1).state_dict(), folder / "sa_0_4_vit_l_14_linear.pth")


def _open_clip() -> Any:
    from open_clip.model import CLIP

    config: Any = OPEN_CLIP
    return CLIP(**config)


def _write_config(folder: Path, preprocessing: Mapping[str, str] | None = None) -> None:
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": preprocessing or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))


def _write_clip(folder: Path) -> None:
    """Write a CLIP of transformers with the fields of old files: positions among the weights, 2 for the end of text."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    state = CLIPModel(CLIPConfig(**CLIP)).state_dict()
    patches = (CLIP["vision_config"]["image_size"] // CLIP["vision_config"]["patch_size"]) ** 2
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(patches + 1)[None]
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **CLIP}, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1))
