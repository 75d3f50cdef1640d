"""Pipelines of nothing but their files: the layout of a model in a few kilobytes, without a model library."""

from __future__ import annotations

import json
from pathlib import Path

INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "image_encoder": [None, None],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
STEM = {"transformers": "model", "diffusers": "diffusion_pytorch_model"}


def safetensors(**shapes: tuple[int, ...]) -> bytes:
    """Return a file of fp32 zeros of these shapes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def write_skeleton(folder: Path, index: dict | None = None, *, sharded: bool = True) -> Path:
    """Write a FLUX pipeline's files; its transformer's weights are in two shards, or one file."""
    index = index or INDEX
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    for part, value in index.items():
        if isinstance(value, list) and value[0]:
            (folder / part).mkdir()
            library, kind = value
            if kind.endswith(("Scheduler", "Tokenizer", "TokenizerFast")):
                name = "scheduler_config.json" if kind.endswith("Scheduler") else "tokenizer.json"
                (folder / part / name).write_text("{}")
                continue
            (folder / part / "config.json").write_text(json.dumps({"_class_name": kind, **CONFIG.get(part, {})}))
            if part == "transformer" and sharded:
                write_shards(folder / part)
            else:
                (folder / part / f"{STEM[library]}.safetensors").write_bytes(safetensors(**{part: (10, 10)}))
    return folder


CONFIG = {
    "transformer": {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    | {"attention_head_dim": 8},
    "vae": {"block_out_channels": [8, 8, 8], "latent_channels": 4},
}


def write_shards(part: Path) -> None:
    names = [f"diffusion_pytorch_model-0000{at}-of-00002.safetensors" for at in (1, 2)]
    for at, name in enumerate(names):
        (part / name).write_bytes(safetensors(**{f"w{at}": (1000,)}))
    index = {"metadata": {}, "weight_map": {f"w{at}": name for at, name in enumerate(names)}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
