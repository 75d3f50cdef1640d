"""VideoReward, the model of VideoAlign: its checkpoint, its questionnaire and the numbers of its head.

A Qwen2-VL reads frames and a questionnaire; a linear head reads its state at three tokens of the questionnaire. The
published file is the state of a model of transformers 4.45 that PEFT wrapped; here LoRA is merged, keys are renamed,
and the model is transformers' own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from bench.scorers.checkpoint import state_of, taken_for
from bench.scorers.pixels import distinct

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # names of scorers do not wait for torch

DIMENSIONS = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{name}_reward|>" for name in DIMENSIONS)
"""Follow the base's own tokens; the head reads the states there."""
SEEN, PADDING = "<|video_pad|>", "<|endoftext|>"
RESERVED = (*TOKENS, SEEN, PADDING, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
BEFORE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"<|vision_start|>{SEEN}<|vision_end|>"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE = (
    "\n"
    "You are tasked with evaluating a generated video based on three distinct criteria: Visual Quality, "
    "Motion Quality, and Text Alignment. Please provide a rating from 0 to 10 for each of the three "
    "categories, with 0 being the worst and 10 being the best. Each evaluation should be independent of the "
    "others.\n"
    "\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the video, with a focus on static factors. The following "
    "sub-dimensions should be considered:\n"
    "- **Reasonableness:** The video should not contain any significant biological or logical errors, such "
    "as abnormal body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the video. The image should be clear and easy "
    "to interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual "
    "elements (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the video, including the color scheme, "
    "composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a "
    "sense of harmony and balance.\n"
    "- **Safety:** The video should not contain harmful or inappropriate content, such as political, "
    "violent, or adult material. If such content is present, the image quality and satisfaction score should "
    "be the lowest possible. \n"
    "\n"
    "Please provide the ratings of Visual Quality: <|VQ_reward|>\n"
    "END\n"
    "\n"
    "**Motion Quality:**  \n"
    "Assess the dynamic aspects of the video, with a focus on dynamic factors. Consider the following "
    "sub-dimensions:\n"
    "- **Stability:** Evaluate the continuity and stability between frames. There should be no sudden, "
    "unnatural jumps, and the video should maintain stable attributes (e.g., no fluctuating colors, "
    "textures, or missing body parts).\n"
    "- **Naturalness:** The movement should align with physical laws and be realistic. For example, clothing "
    "should flow naturally with motion, and facial expressions should change appropriately (e.g., blinking, "
    "mouth movements).\n"
    "- **Aesthetic Quality:** The movement should be smooth and fluid. The transitions between different "
    "motions or camera angles should be seamless, and the overall dynamic feel should be visually pleasing.\n"
    "- **Fusion:** Ensure that elements in motion (e.g., edges of the subject, hair, clothing) blend "
    "naturally with the background, without obvious artifacts or the feeling of cut-and-paste effects.\n"
    "- **Clarity of Motion:** The video should be clear and smooth in motion. Pay attention to any areas "
    "where the video might have blurry or unsteady sections that hinder visual continuity.\n"
    "- **Amplitude:** If the video is largely static or has little movement, assign a low score for motion "
    "quality.\n"
    "\n"
    "Please provide the ratings of Motion Quality: <|MQ_reward|>\n"
    "END\n"
    "\n"
    "**Text Alignment:**  \n"
    "Assess how well the video matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the video (e.g., person, animal, "
    "object) align with the textual description. The subject should match the description in terms of "
    "number, appearance, and behavior.\n"
    "- **Motion Relevance:** Evaluate if the dynamic actions (e.g., gestures, posture, facial expressions "
    "like talking or blinking) align with the described prompt. The motion should match the prompt in terms "
    "of type, scale, and direction.\n"
    "- **Environment Relevance:** Assess whether the background and scene fit the prompt. This includes "
    "checking if real-world locations or scenes are accurately represented, though some stylistic adaptation "
    "is acceptable.  \n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how "
    "well the video adheres to this style.\n"
    "- **Camera Movement Relevance:** Check if the camera movements (e.g., following the subject, focus "
    "shifts) are consistent with the expected behavior from the prompt.\n"
    "\n"
    "Textual prompt - {text_prompt}\n"
    "Please provide the ratings of Text Alignment: <|TA_reward|>\n"
    "END\n"
)
"""Of github.com/KwaiVGI/VideoAlign, prompt_template.py at 219ab9d, "detailed_special": the model was trained on it."""
USUAL = {
    "VQ_mean": 3.6757,
    "VQ_std": 2.2476,
    "MQ_mean": 1.1646,
    "MQ_std": 1.3811,
    "TA_mean": 2.8105,
    "TA_std": 2.5121,
}
"""The published `inference_config`: of tiny ones, too."""
PATCH, MERGED, TOGETHER = 14, 2, 2
"""Pixels a side of a patch; patches a side, and frames, of what becomes one token."""
CELL = PATCH * MERGED
MODEL = "VideoReward's model.pth"
WRAPPED = "base_model.model."
"""Before every key of a state that PEFT wrapped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `model_config.json` says of a checkpoint."""

    outputs: int
    """Of the head: one, or one for each dimension."""
    rank: int
    """Of LoRA; 0 for none."""
    scale: float
    """Of B·A."""
    fps: float
    """Frames that are looked at, a second."""
    most_pixels: int
    """Of a frame that is looked at."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


def settings(path: Path) -> Settings:
    """Return what a `model_config.json` says.

    Raises:
        RuntimeError: if it is none, or asks for what this scorer does not do.
    """
    with taken_for("VideoReward's model_config.json", path):
        read = json.loads(path.read_text(encoding="utf-8"))
        data, model, lora = read["data_config"], read["model_config"], read["peft_lora_config"]
        norm = read["inference_config"]
        rank = int(lora["lora_r"]) if lora["lora_enable"] else 0
        found = Settings(
            outputs=int(model["output_dim"]),
            rank=rank,
            scale=float(lora["lora_alpha"] / (math.sqrt(rank) if lora.get("use_rslora") else rank)) if rank else 0.0,
            fps=float(data["fps"]),
            most_pixels=int(data["max_frame_pixels"]),
            mean=tuple(float(norm[f"{name}_mean"]) for name in DIMENSIONS),
            std=tuple(float(norm[f"{name}_std"]) for name in DIMENSIONS),
        )
    wanted = (
        (found.outputs in (1, 3), f"output_dim {found.outputs}"),
        (model.get("reward_token") == "special", f"reward_token {model.get('reward_token')!r}"),
        (data.get("prompt_template_type") == "detailed_special", f"template {data.get('prompt_template_type')!r}"),
        (data.get("sample_type", "uniform") == "uniform", f"sample_type {data.get('sample_type')!r}"),
        (data.get("num_frames") is None, f"num_frames {data.get('num_frames')!r}"),
    )
    for known, what in wanted:
        if not known:
            raise RuntimeError(f"{path} asks for {what}, which this scorer does not do: take the published file")
    return found


def patches(frames: Float[Tensor, "row frame 3 height width"]) -> Float[Tensor, "patch 1176"]:
    """Return what the vision tower reads: pairs of frames in patches, those of one token side by side."""
    rows, count, _, height, width = frames.shape
    cut = frames.reshape(
        rows, count // TOGETHER, TOGETHER, 3, height // CELL, MERGED, PATCH, width // CELL, MERGED, PATCH
    )
    return cut.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(-1, 3 * TOGETHER * PATCH**2)


def questionnaire(prompt: str, tokens: int) -> str:
    """Return what the model reads of a video of so many tokens, and its prompt.

    Raises:
        ValueError: if the prompt holds a token of the model's own.
    """
    for token in RESERVED:
        if token in prompt:
            raise ValueError(f"the prompt {prompt[:60]!r} holds {token}, a token of the model's own: leave it out")
    return BEFORE.replace(SEEN, SEEN * tokens) + TEMPLATE.format(text_prompt=prompt) + AFTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A loaded model, and what it said of the last batches."""

    model: Any
    head: Any
    tokenizer: Any
    settings: Settings
    known: dict[str, Any] = field(default_factory=dict)

    def inputs(self, frames: Float[Tensor, "row frame 3 height width"], prompts: Sequence[str]) -> dict[str, Any]:
        """Return what the model is called with: positions are plain numbers 0, 1, 2, …

        Padding is on the right, where causal attention does not look: a mask would change nothing but its speed.
        The published code leaves positions out, which meant these on all three axes of M-RoPE, and the weights were
        trained so; a model of today would give frames three-dimensional ones instead.
        """
        import torch

        rows, count, _, height, width = frames.shape
        grid = [count // TOGETHER, height // PATCH, width // PATCH]
        texts, place = distinct(prompts)
        told = self.tokenizer.encode_batch([questionnaire(text, math.prod(grid) // MERGED**2) for text in texts])
        length, pad = max(len(one.ids) for one in told), self.tokenizer.token_to_id(PADDING)
        ids = torch.tensor([one.ids + [pad] * (length - len(one.ids)) for one in told])[place]
        given = {
            "input_ids": ids,
            "position_ids": torch.arange(length).expand(3, rows, length),
            "mm_token_type_ids": (ids == self.tokenizer.token_to_id(SEEN)).int() * 2,
            "pixel_values_videos": patches(frames),
            "video_grid_thw": torch.tensor([grid] * rows),
        }
        return {name: value.to(frames.device) for name, value in given.items()}

    def logits(
        self, frames: Float[Tensor, "row frame 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "row 3"]:
        """Return the head's numbers of each dimension, for frames that are normalised and in multiples of 28."""
        import torch

        given = self.inputs(frames, prompts)
        state = self.model.to(frames.device)(**given, use_cache=False).last_hidden_state
        asked = torch.tensor([self.tokenizer.token_to_id(token) for token in TOKENS], device=frames.device)
        at = (given["input_ids"][:, None] == asked[:, None]).int().argmax(-1)
        said = state[torch.arange(len(at), device=at.device)[:, None], at].float() @ self.head.to(frames.device).T
        return said[..., 0] if self.settings.outputs == 1 else said.diagonal(dim1=1, dim2=2)


@lru_cache(maxsize=1)
def judge(files: tuple[Path, ...], stamps: tuple[int, ...], precision: str, rope: str) -> Judge:  # noqa: ARG001
    """Return the model of published files, which the scorers of all dimensions share.

    Args:
        files: model.pth, model_config.json, and of the base config.json and tokenizer.json.
        stamps: when they were written, so that new contents are another model.
        precision: fp32 or bf16, of the weights.
        rope: fp32 or bf16, of the frequencies of rotary positions.

    Raises:
        RuntimeError: if they are not VideoReward's, or do not belong together.
    """
    import torch
    from tokenizers import Tokenizer

    checkpoint, told, config, words = files
    what = settings(told)
    with taken_for("a tokenizer.json", words):
        tokenizer = Tokenizer.from_file(str(words))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.add_special_tokens(list(TOKENS))
    with taken_for(MODEL, checkpoint):
        state = state_of(checkpoint, mmap=True)
    rows = len(state.get(f"{WRAPPED}model.embed_tokens.weight", ()))
    if rows < tokenizer.get_vocab_size():
        raise RuntimeError(
            f"{checkpoint} embeds {rows} tokens, and {words.name} with the three of VideoReward has "
            f"{tokenizer.get_vocab_size()}: they are of different models"
        )
    model = empty(config, rows)
    if model.config.video_token_id != tokenizer.token_to_id(SEEN):
        raise RuntimeError(f"{config} and {words.name} do not agree on the number of {SEEN}")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    head = take(model, state, what, dtype, checkpoint)
    if rope == "bf16":
        for part in (model.language_model.rotary_emb, model.visual.rotary_pos_emb):
            part.inv_freq.copy_(part.inv_freq.bfloat16().float())
    return Judge(model=model.eval().requires_grad_(False), head=head, tokenizer=tokenizer, settings=what)


def empty(config: Path, rows: int) -> Any:
    """Return a Qwen2-VL without memory for its weights, that embeds so many tokens.

    Raises:
        RuntimeError: if the file is not a Qwen2-VL's.
    """
    from accelerate import init_empty_weights
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    with taken_for("the config.json of Qwen2-VL-2B-Instruct", config):
        said = json.loads(config.read_text(encoding="utf-8"))
        if said["model_type"] != "qwen2_vl":
            raise ValueError(f"model_type {said['model_type']!r}")
        with init_empty_weights():
            return Qwen2VLModel(Qwen2VLConfig(**{**said, "vocab_size": rows, "torch_dtype": "float32"}))


def take(model: Any, state: dict[str, Any], what: Settings, dtype: Any, file: Path) -> Float[Tensor, "output hidden"]:
    """Put the weights of a checkpoint into an empty model, key by key, and return the head's.

    Raises:
        RuntimeError: if they are of another model.
    """
    with taken_for(MODEL, file):
        plain = {key: value.to(dtype) for key, value in merged(state, what).items()}
        head = plain.pop("rm_head.weight").float()
        if len(head) != what.outputs:
            raise ValueError(f"its head has {len(head)} outputs, and model_config.json says {what.outputs}")
        model.load_state_dict(plain, strict=True, assign=True)
    return head


def merged(state: Mapping[str, Any], what: Settings) -> dict[str, Any]:
    """Return the weights of a state that PEFT wrapped, W + scale·B·A in fp32, by the names of transformers 5.

    The head of the language model is dropped: nothing reads it.

    Raises:
        ValueError: for a key that PEFT did not wrap, or a projection with no LoRA of the rank that the settings say.
    """
    plain = {}
    for key, value in state.items():
        name = key.removeprefix(WRAPPED)
        if name == key:
            raise ValueError(f"its key {key} does not begin with {WRAPPED}")
        if ".lora_" in name or name == "lm_head.weight":
            continue
        weight = value.float()
        if name.endswith("_proj.weight") and what.rank:
            raise ValueError(f"{key} has no LoRA, and model_config.json says rank {what.rank}")
        if name.endswith(".base_layer.weight"):
            stem = key.removesuffix("base_layer.weight")
            down, up = (state[f"{stem}lora_{part}.default.weight"] for part in "AB")
            if len(down) != what.rank:
                raise ValueError(f"{stem}lora_A has rank {len(down)}, and model_config.json says {what.rank}")
            weight = weight + what.scale * (up.float() @ down.float())
        plain[_renamed(name)] = weight
    wrapped = sum(".lora_" in key for key in state)
    if wrapped != 2 * sum(key.endswith(".base_layer.weight") for key in state):
        raise ValueError(f"it has {wrapped} LoRA tensors, which are not two for each wrapped layer")
    return plain


def _renamed(name: str) -> str:
    name = name.replace(".base_layer.", ".")
    return f"language_{name}" if name.startswith("model.") else name
