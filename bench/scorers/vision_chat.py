"""Vision-language models in process, through transformers: pictures and questions in, greedy answers out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jaxtyping import Int, UInt8

from bench.models.hub import commit_of, hub_id, snapshot
from bench.models.source import folder_digest
from bench.scorers.checkpoint import taken_for
from bench.scorers.rubrics import Answer

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # names of scorers do not wait for torch

KINDS = ("qwen2_5_vl", "qwen3_vl")
"""The architectures, as `model_type` of a config.json names them."""
ABOUT: Mapping[str, str] = MappingProxyType(
    {
        "CodeGoat24/UnifiedReward-qwen-3b": "7.5 GB",
        "CodeGoat24/UnifiedReward-qwen-7b": "16.6 GB",
        "CodeGoat24/UnifiedReward-qwen-32b": "68 GB",
        "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b": "17.5 GB",
    }
)
"""Sizes of repositories; of others they are not known without the hub."""
PATCH = 28 * 28
"""Pixels of a visual token of Qwen2.5-VL."""


def folder_of(reward: str, model: str, weights: str) -> Path:
    """Return the folder of a model.

    Args:
        reward: who reads it.
        model: a repository of the hub, or a folder.
        weights: the folder that has the model, as a user says; empty for the hub's cache.

    Raises:
        FileNotFoundError: if it is not on this machine, or not all of it.
    """
    repository = hub_id(model)
    size = f" (about {ABOUT[model]})" if model in ABOUT else ""
    if weights or (Path(model).is_dir() and (repository is None or snapshot(repository) is None)):
        folder = Path(weights or model)
        remedy = f"copy the repository's files to {folder}, or name another folder"
    else:
        found = None if repository is None else snapshot(repository)
        folder = found or Path(model)
        name, at = (model, "") if repository is None else (repository.name, repository.revision)
        fetch = f"hf download {quote(name)}{f' --revision {quote(at)}' * bool(at)}"
        remedy = f"`{fetch}` fetches it, or url= names a server that has it"
    missing = lacking(folder)
    if missing:
        what = f"the model {model}{size}, of which {missing} is not on this machine"
        raise FileNotFoundError(f"reward {reward!r} reads {what}: {remedy}")
    return folder


def lacking(folder: Path) -> str:
    """Return a file that a model's folder lacks; empty if it is whole."""
    index = folder / "model.safetensors.index.json"
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
    except (ValueError, KeyError, AttributeError):
        return f"a readable {index.name}"
    wanted = ["config.json", "preprocessor_config.json|processor_config.json", "tokenizer.json|vocab.json"]
    wanted += shards or ["model.safetensors"]
    for names in wanted:
        if not any((folder / name).is_file() for name in names.split("|")):
            return names.replace("|", " or ")
    return ""


def revision_of(folder: Path) -> str:
    """Return the commit of a folder of the hub's cache; of others a short hash of their files."""
    return commit_of(folder)[:12] or folder_digest(folder)


@dataclass(frozen=True, slots=True)
class Chat:
    """A model in memory, with what turns questions into its tokens."""

    model: Any
    processor: Any

    def answers(
        self,
        pictures: Sequence[UInt8[Tensor, "_ 3 _ _"]],
        questions: Sequence[str],
        *,
        limit: int,
        rate: float = 0.0,
    ) -> list[Answer]:
        """Return the answer to each question about its pictures, the likeliest token after the other.

        Args:
            pictures: images that are seen before each question, at most 255 bright.
            questions: one for each.
            limit: tokens of an answer.
            rate: frames a second, if the pictures are a video's and are seen as one; 0 for images.

        Raises:
            RuntimeError: if the model sees no videos as these are seen.
        """
        inputs = self.inputs(pictures, questions, rate).to(self.model.device)
        start = inputs["input_ids"].shape[1]
        # The model's own repetition penalty stays; what only sampling reads is unset, as generate warns of it.
        made = self.model.generate(
            **inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=limit
        )
        return self.read(made[:, start:].cpu())

    def inputs(self, pictures: Sequence[UInt8[Tensor, "_ 3 _ _"]], questions: Sequence[str], rate: float) -> Any:
        """Return what the model reads: tokens, padded at the left, pixels, and where which of them are."""
        kind = "video" if rate else "image"
        parts = [[{"type": kind}] * (1 if rate else len(shown)) for shown in pictures]
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [*seen, {"type": "text", "text": question}]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for seen, question in zip(parts, questions, strict=True)
        ]
        seen = self.videos(pictures, rate) if rate else {"images": [list(shown) for shown in pictures]}
        inputs = self.processor(text=texts, padding=True, return_tensors="pt", **seen)
        inputs.pop("video_metadata", None)
        return inputs

    def videos(self, pictures: Sequence[UInt8[Tensor, "_ 3 _ _"]], rate: float) -> dict[str, Any]:
        """Return videos whose frames are chosen already, with a limit on their pixels as in qwen-vl-utils 0.0.8."""
        from transformers.video_utils import VideoMetadata

        if self.model.config.model_type != "qwen2_5_vl":
            raise RuntimeError("template=score is for UnifiedReward 1.0 on Qwen2.5-VL; newer models want template=aps")
        count = max(len(shown) for shown in pictures)
        most = max(min(768 * PATCH, 24576 * PATCH * 2 // count), int(128 * PATCH * 1.05))
        told = [
            VideoMetadata(total_num_frames=len(shown), fps=rate, frames_indices=list(range(len(shown))))
            for shown in pictures
        ]
        size = {"shortest_edge": 128 * PATCH, "longest_edge": most}
        capped = {"cap_pixels_per_frame": False} if hasattr(self.processor.video_processor, "max_video_tokens") else {}
        return {
            "videos": list(pictures),
            "video_metadata": told,
            "do_sample_frames": False,
            "size": size,
            **capped,
        }

    def read(self, tokens: Int[Tensor, "row token"]) -> list[Answer]:
        """Return the text of each row of tokens; one that does not end is no answer."""
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        texts = self.processor.tokenizer.batch_decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        whole = [bool(ends & set(row)) for row in tokens.tolist()]
        cut = Answer(flaw="the answer is cut short: raise max_tokens")
        return [Answer(text=text) if ended else cut for text, ended in zip(texts, whole, strict=True)]


@lru_cache(maxsize=1)
def loaded(folder: Path) -> Chat:
    """Return the model in a folder, in evaluation mode and in the precision that its weights have.

    Raises:
        RuntimeError: if it is of another kind, damaged or not whole.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    kind = _kind(folder)
    if kind not in KINDS:
        raise RuntimeError(
            f"{folder} is a model of type {kind!r}, and {', '.join(KINDS)} run in process: serve it, and give url="
        )
    with taken_for(f"a whole model of type {kind}", folder, "fetch it again"):
        processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        processor.tokenizer.padding_side = "left"
        read: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    model, told = read
    wrong = {key: sorted(map(str, told[key]))[:3] for key in ("missing_keys", "unexpected_keys") if told[key]}
    if wrong:
        raise RuntimeError(f"{folder} does not hold the weights of its config.json: {wrong}; fetch it again")
    return Chat(model.eval().requires_grad_(False), processor)


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"{folder / 'config.json'} is no model's: fetch it again") from error
