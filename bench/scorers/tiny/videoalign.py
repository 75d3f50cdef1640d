"""A tiny VideoReward in the published layout: a state that PEFT wrapped, settings, and a base's sizes and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.scorers.videoreward import AFTER, BEFORE, DIMENSIONS, RESERVED, TEMPLATE, TOKENS, USUAL, WRAPPED

RANK, ALPHA = 4, 8
WORDS = 600
"""Of the tokenizer, learnt from the questionnaire, so that it is not read letter by letter."""
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What Qwen's tokenizers take for a word."""
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
SIZES: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 32768,
    "max_window_layers": 2,
    "model_type": "qwen2_vl",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "in_chans": 3,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
}
SETTINGS: dict[str, Any] = {
    "data_config": {
        "max_frame_pixels": 200704,
        "num_frames": None,
        "fps": 2.0,
        "eval_dim": [*DIMENSIONS],
        "prompt_template_type": "detailed_special",
        "sample_type": "uniform",
    },
    "model_config": {"output_dim": 1, "use_special_tokens": True, "reward_token": "special"},
    "peft_lora_config": {"lora_enable": True, "lora_r": RANK, "lora_alpha": ALPHA, "use_rslora": False},
    "inference_config": dict(USUAL),
}


def make_videoalign(folder: Path) -> None:
    """Write model.pth, model_config.json, config.json and tokenizer.json."""
    import torch

    words = tokenizer()
    words.save(str(folder / "tokenizer.json"))
    rows = words.get_vocab_size() + len(TOKENS)
    named = {
        f"{key}_token_id": words.token_to_id(f"<|{token}|>")
        for key, token in (
            ("video", "video_pad"),
            ("image", "image_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
            ("bos", "endoftext"),
            ("eos", "im_end"),
        )
    }
    sizes = {**SIZES, **named, "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(sizes, indent=1))
    (folder / "model_config.json").write_text(json.dumps(SETTINGS, indent=1))
    torch.save(_wrapped(_model(sizes)), folder / "model.pth")


def tokenizer() -> Any:
    """Return a byte-level tokenizer with the base's own tokens at the end, as published."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    words: Any = Tokenizer(models.BPE())
    words.normalizer = normalizers.NFC()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    text = BEFORE + TEMPLATE + AFTER
    for token in RESERVED:
        text = text.replace(token, " ")
    words.train_from_iterator([text], trainer)
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return words


def _model(sizes: dict[str, Any]) -> Any:
    """Return a model whose attention is sharp enough for positions to matter."""
    import torch
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    model: Any = Qwen2VLModel(Qwen2VLConfig(**sizes))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            sharp = 3.0 if "q_proj" in name or "k_proj" in name else 1.0
            torch.nn.init.normal_(weight, std=1.0 if "embed_tokens" in name else sharp / weight[0].numel() ** 0.5)
    return model


def _wrapped(model: Any) -> dict[str, Any]:
    """Return a model's state as PEFT and transformers 4.45 name it, in bfloat16, with LoRA and both heads."""
    import torch

    state = {}
    for name, weight in model.state_dict().items():
        key = WRAPPED + name.removeprefix("language_")
        stem, _, kind = key.rpartition(".")
        if "visual." in key or not stem.endswith("_proj"):
            state[key] = weight
            continue
        state[f"{stem}.base_layer.{kind}"] = weight
        if kind == "weight":
            rows, columns = weight.shape
            state[f"{stem}.lora_A.default.weight"] = torch.nn.init.normal_(
                torch.empty(RANK, columns), std=columns**-0.5
            )
            state[f"{stem}.lora_B.default.weight"] = torch.nn.init.normal_(torch.empty(rows, RANK), std=0.1)
    embedded = state[f"{WRAPPED}model.embed_tokens.weight"]
    state[f"{WRAPPED}lm_head.weight"] = embedded.clone()
    hidden = embedded.shape[1]
    state[f"{WRAPPED}rm_head.weight"] = torch.nn.init.normal_(torch.empty(1, hidden), std=2.0 * hidden**-0.5)
    return {key: value.detach().to(torch.bfloat16) for key, value in state.items()}
