"""Prompts encoded once a machine: what a model is told of each is a small file of its own, read when it is needed."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.policy import Condition, Policy, Row
from bench.processes import ALONE, Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Encoded prompts on disk, one a row."""

    prompts: tuple[str, ...]
    folder: Path
    images: Mapping[str, str]
    negative: Row | None

    def rows(self, index: Tensor) -> Condition:
        """Return the condition of the given rows, on the CPU; a row may repeat."""
        chosen = [self.prompts[at] for at in index.tolist()]
        read = {text: _read(place(self.folder, text, self.images.get(text))) for text in dict.fromkeys(chosen)}
        stacked = tuple(torch.stack(parts) for parts in zip(*(read[text] for text in chosen), strict=True))
        return Condition(tensors=stacked, negative=self.negative)


@torch.no_grad()
def encode(
    policy: Policy,
    prompts: Sequence[str],
    folder: Path,
    *,
    images: Mapping[str, str],
    needed: Sequence[int],
    guided: bool = False,
    processes: Processes = ALONE,
) -> Encoded:
    """Return encoded prompts; those that are needed and not in the folder are encoded first, by all processes.

    Args:
        policy: whose encoder is loaded if one is missing, and let go of afterwards.
        prompts: one a row.
        folder: of this model and its precision alone: a file's name is a hash of prompt and first frame.
        images: the first frame's file of each prompt, for models that start from one.
        needed: rows that will be read.
        guided: whether rows come with the empty prompt, for classifier-free guidance.
        processes: each encodes its share of what is missing, then whatever it does not see on its own disk.
    """
    texts = [*(prompts[at] for at in needed), *([""] if guided else [])]
    wanted = {place(folder, text, images.get(text)): text for text in texts}
    missing = {file: text for file, text in wanted.items() if not _whole(file)}
    # By name, for processes do not look at the same moment.
    mine = {file: text for file, text in missing.items() if int(file.stem, 16) % processes.count == processes.rank}
    _write(policy, mine, images)
    processes.gathered(None)  # all shares are written
    _write(policy, {file: text for file, text in missing.items() if not _whole(file)}, images)
    negative = _read(place(folder, "", None)) if guided else None
    return Encoded(prompts=tuple(prompts), folder=folder, images=images, negative=negative)


def place(folder: Path, text: str, image: str | None) -> Path:
    """Return the file of a prompt, by its text and its first frame's contents."""
    sha = hashlib.sha256(text.encode())
    if image is not None:
        sha.update(b"\0" + Path(image).read_bytes())
    name = sha.hexdigest()[:32]
    return folder / name[:2] / f"{name}.safetensors"


def _write(policy: Policy, wanted: Mapping[Path, str], images: Mapping[str, str]) -> None:
    if not wanted:
        return
    encode = policy.encoder()
    for file, text in wanted.items():
        row = encode(text, Path(images[text]) if text in images else None)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{uuid.uuid4().hex}.part")  # other machines may write here too
        save_file({f"{at:02d}": tensor.contiguous().cpu() for at, tensor in enumerate(row)}, part)
        part.replace(file)


def _whole(file: Path) -> bool:
    """Return whether a row is there, and not cut short by a full disk or a copy that broke."""
    try:
        with safe_open(file, "pt") as opened:
            return bool(opened.keys())
    except (OSError, SafetensorError):
        return False


def _read(file: Path) -> Row:
    return tuple(tensor for _, tensor in sorted(load_file(file).items()))
