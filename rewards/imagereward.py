"""ImageReward: a BLIP that was trained on people's choices between images (Xu et al. 2023, arXiv 2304.05977)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8

from bench.contract import HubFile, RewardInfo, means
from bench.scorers.checkpoint import state_of, taken_for
from bench.scorers.pixels import CLIP_MEAN, CLIP_STD, check_batch, distinct, scored
from bench.scorers.weights import located, revision

if TYPE_CHECKING:
    from torch import Tensor

NAME = "imagereward"
WEIGHTS = HubFile(
    repository="zai-org/ImageReward", file="ImageReward.pt", size=0, about=1_790_000_000, licence="Apache-2.0"
)
TEXT_SIZES = HubFile(repository="zai-org/ImageReward", file="med_config.json", size=0, about=500, licence="Apache-2.0")
WORDS = HubFile(
    repository="google-bert/bert-base-uncased", file="vocab.txt", size=0, about=232_000, licence="Apache-2.0"
)
VISION: Mapping[str, Any] = MappingProxyType(
    {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": 224,
        "patch_size": 16,
    }
)
"""The published sizes."""
SIZES = "vision_config.json"
"""Of others, which a folder given as `weights` may hold: a tiny one's."""
EPS = 1e-6
"""Of the vision tower's normalisations; 1e-5, the default of transformers, moves scores by 2e-5."""
TEXT = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "layer_norm_eps",
    "hidden_act",
)
"""What med_config.json says of the text tower; the rest of it is about training."""
HEAD = (1024, 128, 64, 16, 1)
"""Widths of the head's layers, with nothing but dropout between them: an affine map."""
TOKENS = 35
REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output, over the data that it was trained on."""
RENAMED = (
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.blocks.", "vision.encoder.layers."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    ("blip.text_encoder.", "text."),
    ("mlp.layers.", "head."),
)
"""Published key -> ours, which is transformers'; a key may have several parts of these."""
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
"""Published, and no part of the score: BLIP's contrastive projections, and a count from 0."""


def preprocessed(pixels: UInt8[Tensor, "row 3 height width"], side: int) -> Float[Tensor, "row 3 side side"]:
    """Return images with their shorter side resized by PIL, bicubic, and cropped in the middle, normalised."""
    import torch

    rows = pixels.permute(0, 2, 3, 1).cpu().numpy()
    cropped = torch.from_numpy(np.stack([square(row, side) for row in rows])).to(pixels.device)
    image = cropped.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (image - mean) / std


def square(image: UInt8[np.ndarray, "height width 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Return the middle of an image whose shorter side was resized to `side`."""
    from PIL import Image

    height, width, _ = image.shape
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    left, top = (round((length - side) / 2) for length in size)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


@dataclass(frozen=True, kw_only=True)
class ImageReward:
    """ImageReward, human preference: an affine function of what BLIP's text tower makes of prompt and image."""

    weights: str = means("")
    """A folder with the three published files; empty for the hub's cache."""
    batch: int = means(32)
    """Images of one call."""

    files: ClassVar[tuple[HubFile, ...]] = (WEIGHTS, TEXT_SIZES, WORDS)
    packages: ClassVar[tuple[str, ...]] = ("transformers", "PIL")

    def __post_init__(self) -> None:
        check_batch(self.batch)

    @property
    def info(self) -> RewardInfo:
        """Return what its numbers mean."""
        return RewardInfo(
            unit="standard deviations",
            low=-3.0,
            high=3.0,
            higher_is_better=True,
            revision=revision(self.files, self.weights, "1", beside=SIZES),
            reference="Xu et al., arXiv 2304.05977; weights zai-org/ImageReward of the hub",
            model=f"BLIP ViT-L/16 of transformers in fp32, {WEIGHTS.file}, {TOKENS} tokens of bert-base-uncased",
            preprocessing="shorter side to 224 by PIL, bicubic; middle; CLIP's mean and std",
            pixels="uint8",
        )

    @property
    def memory(self) -> int:
        """Return the bytes of the weights in memory."""
        return 446_206_689 * 4

    def load(self) -> None:
        """Bring the weights into memory.

        Raises:
            FileNotFoundError: they are not on this machine.
            RuntimeError: they are of another model.
        """
        _ = self.towers

    @cached_property
    def towers(self) -> tuple[Any, Any]:
        """The modules `vision`, `text` and `head` in evaluation mode, and the tokenizer."""
        file, sizes, words = (located(NAME, published, self.weights) for published in self.files)
        text = text_sizes(sizes)
        model = empty(text, vision_sizes(file.parent))
        take(model, file)
        return model.eval().requires_grad_(False), tokenizer(words, text["vocab_size"])

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the reward of each image and its prompt: 0 for an average image, 1 a standard deviation better."""
        return scored(self._reward, images, prompts, self.batch)

    def _reward(self, pixels: UInt8[Tensor, "row 3 height width"], prompts: list[str]) -> Float[Tensor, " row"]:
        model, tokenizer = self.towers
        model = model.to(pixels.device)
        texts, place = distinct(prompts)
        ids, mask = (part.to(pixels.device)[place] for part in tokens(tokenizer, texts))
        seen = model["vision"](preprocessed(pixels, model["vision"].config.image_size)).last_hidden_state
        # The configuration says decoder, which brings the cross-attention; this call says that nothing is hidden.
        read = model["text"](ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False)
        return (model["head"](read.last_hidden_state[:, 0])[:, 0] - REWARD_MEAN) / REWARD_STD


def tokens(tokenizer: Any, texts: list[str]) -> tuple[Int[Tensor, "text token"], Int[Tensor, "text token"]]:
    """Return ids [CLS] ... [SEP], cut or padded to 35, and where they are none of the padding."""
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    return found["input_ids"], found["attention_mask"]


def tokenizer(file: Path, size: int) -> Any:
    """Return BERT's tokenizer with the two tokens that BLIP added.

    Raises:
        RuntimeError: if the vocabulary is not that of a model of `size` tokens.
    """
    from transformers import BertTokenizer

    words = file.read_text(encoding="utf-8").split("\n")
    vocabulary = {word: at for at, word in enumerate(words[:-1] if words[-1] == "" else words)}
    lacking = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word not in vocabulary]
    if lacking or len(vocabulary) + 2 != size:
        without = f", without {', '.join(lacking)}" if lacking else ""
        raise RuntimeError(f"{file} is not the model's vocab.txt: {len(vocabulary)} words and not {size - 2}{without}")
    return BertTokenizer(vocab=vocabulary, bos_token="[DEC]", extra_special_tokens=["[ENC]"])


def text_sizes(file: Path) -> dict[str, Any]:
    """Return what a med_config.json says of the text tower.

    Raises:
        RuntimeError: if it is none.
    """
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        return {key: read[key] for key in TEXT}
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"{file} is not ImageReward's med_config.json: {type(error).__name__}: {error}") from error


def vision_sizes(folder: Path) -> dict[str, Any]:
    """Return the sizes of the vision tower whose weights are in a folder."""
    file = folder / SIZES
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else dict(VISION)


def empty(text: Mapping[str, Any], vision: Mapping[str, Any]) -> Any:
    """Return the modules without memory for their weights."""
    from accelerate import init_empty_weights
    from torch import nn
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    # BLIP of transformers has no other attention, and refuses to be asked for one.
    eager = {"attn_implementation": "eager"}
    seeing = BlipVisionConfig(**{**vision, **eager, "layer_norm_eps": EPS})
    # A decoder has the cross-attention; its first token is [DEC].
    decoder = {"is_decoder": True, "bos_token_id": text["vocab_size"] - 2, "encoder_hidden_size": seeing.hidden_size}
    reading = BlipTextConfig(**{**text, **eager, **decoder})
    with init_empty_weights():
        towers = {
            "vision": BlipVisionModel(seeing),
            "text": BlipTextModel(reading, add_pooling_layer=False),
            "head": head(reading.hidden_size),
        }
        return nn.ModuleDict(towers)


def head(width: int) -> Any:
    """Return the affine map from the text tower's first token to the reward."""
    from torch import nn

    linear = [nn.Linear(before, after) for before, after in zip((width, *HEAD), HEAD, strict=False)]
    rests = [nn.Dropout(part) for part in (0.2, 0.2, 0.1)]
    return nn.Sequential(*(part for pair in zip(linear, rests, strict=False) for part in pair), *linear[3:])


def renamed(key: str) -> str:
    """Return our name of a published weight."""
    for theirs, ours in RENAMED:
        key = key.replace(theirs, ours)
    return key


def take(model: Any, file: Path) -> None:
    """Put the weights of a published file into empty modules, key by key, as fp32.

    Raises:
        RuntimeError: if they are of another model.
    """
    with taken_for(f"ImageReward's {WEIGHTS.file}", file):
        read = state_of(file)
        state = {renamed(key): value.float() for key, value in read.items() if not key.startswith(UNUSED)}
        model.load_state_dict(state, strict=True, assign=True)


REWARDS: Mapping[str, type] = MappingProxyType({NAME: ImageReward})
