"""Tokenizers and frozen text encoders of the embedded models, built offline from the words of their worlds."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from bench.embedded import moving, world

LENGTH = 12
"""Tokens of a prompt, padding included, in training and in sampling: the pipeline uses no attention mask."""
WIDTH = 64


def words() -> list[str]:
    """Return every word of the world's captions, sorted."""
    return sorted({word for scene in world.scenes() for word in world.caption(scene).split()})


def clip_tokenizer(letters: Sequence[str] = string.ascii_lowercase, length: int = LENGTH) -> CLIPTokenizer:
    """Return a byte-pair tokenizer in which every word of the world is one token; letters spell the rest."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = Whitespace()
    ends = [f"{letter}</w>" for letter in letters]
    trainer = BpeTrainer(vocab_size=4096, show_progress=False, end_of_word_suffix="</w>", special_tokens=ends)
    trained.train_from_iterator(words(), trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *ends]
    pieces += [piece for piece in model["vocab"] if piece not in pieces]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, model_max_length=length)


def moving_words() -> list[str]:
    """Return every word of the captions of videos, sorted."""
    return sorted({word for scene in moving.scenes() for word in moving.caption(scene).split()})


def t5_tokenizer(
    known: Sequence[str], letters: Sequence[str] = string.ascii_lowercase, length: int = LENGTH
) -> T5Tokenizer:
    """Return a unigram tokenizer in which every known word is one token; letters spell the rest."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    vocab += [(f"▁{word}", -1.0) for word in known] + [(letter, -10.0) for letter in letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)


def clip_encoder(tokenizer: Any, kind: Any = CLIPTextModel, width: int = WIDTH) -> Any:
    """Return a random text encoder; trained jointly it was no better, so it stays as it was drawn."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,  # pooling reads the first of these
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config)


def t5_encoder(tokenizer: T5Tokenizer, kind: Any = T5EncoderModel, configuration: Any = T5Config) -> Any:
    """Return a random text encoder, T5's or UMT5's, with embeddings of unit variance."""
    config = configuration(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=WIDTH // 4, d_ff=2 * WIDTH, num_layers=2, num_heads=4
    )
    encoder = kind(config)
    torch.nn.init.normal_(encoder.shared.weight)
    return encoder


def make_text(folder: Path, seed: int) -> Mapping[str, int]:
    """Write tokenizers, text encoders and scheduler of the pipeline into `folder`; return the vocabularies' sizes.

    Raises:
        ValueError: a word of the world is not one token, so that a caption could overrun `LENGTH`.
    """
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer(words())
    for word in words():
        if len(clip(word).input_ids) != 3 or len(t5(word).input_ids) != 2:
            raise ValueError(f"{word!r} is {clip.tokenize(word)} and {t5.tokenize(word)}, not one token each")
    clip.save_pretrained(folder / "tokenizer")
    t5.save_pretrained(folder / "tokenizer_2")
    clip_encoder(clip).save_pretrained(folder / "text_encoder")
    t5_encoder(t5).save_pretrained(folder / "text_encoder_2")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False).save_pretrained(folder / "scheduler")
    return {"clip": len(clip), "t5": len(t5)}


def make_wan_text(folder: Path, seed: int) -> Mapping[str, int]:
    """Write tokenizer, text encoder and scheduler of the video pipeline into `folder`; return the vocabulary's size.

    Raises:
        ValueError: a word of the world is not one token, so that a caption could overrun `LENGTH`.
    """
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer(moving_words())
    for word in moving_words():
        if len(tokenizer(word).input_ids) != 2:
            raise ValueError(f"{word!r} is {tokenizer.tokenize(word)}, not one token")
    tokenizer.save_pretrained(folder / "tokenizer")
    t5_encoder(tokenizer, UMT5EncoderModel, UMT5Config).save_pretrained(folder / "text_encoder")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.save_pretrained(folder / "scheduler")
    return {"t5": len(tokenizer)}
