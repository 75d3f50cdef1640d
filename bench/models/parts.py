"""What the families share: loading parts of a pipeline, and saving what was trained as the ecosystem loads it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.noise import keyed, reproducible
from bench.policy import Build, Condition, Encoder, Row

LARGE = 2**26
"""Bytes from which a frozen file is shared with its source rather than copied."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of an attention layer."""


def load_part(kind: Any, folder: Path, part: str, build: Build, dtype: torch.dtype) -> Any:
    """Return a model of a pipeline, on the build's device and without dropout; its weights as the build says.

    Args:
        kind: its class, in diffusers.
        folder: of the pipeline.
        part: its folder there.
        build: says where the weights come from.
        dtype: of the parameters.

    Raises:
        RuntimeError: if its files lack tensors.
    """
    if build.weights == "random":
        with reproducible(0, build.device):
            model: Any = kind.from_config(json.loads((folder / part / "config.json").read_text()))
        _cast(model, dtype)
        return model.to(build.device).eval()
    model, told = kind.from_pretrained(folder / part, torch_dtype=dtype, output_loading_info=True)
    _check_whole(part, told)
    return model.to(build.device).eval()


def load_encoder(kind: Any, folder: Path, part: str, build: Build) -> Any:
    """Return a frozen encoder of a pipeline, of a class in transformers, on the build's device.

    Raises:
        RuntimeError: if its file lacks tensors, which transformers would draw at random.
    """
    model, told = kind.from_pretrained(folder / part, dtype=build.frozen, output_loading_info=True)
    _check_whole(part, told)
    return model.to(build.device).eval()


def _check_whole(part: str, told: Mapping[str, Any]) -> None:
    missing = sorted(told["missing_keys"])
    if missing:
        raise RuntimeError(
            f"{part} lacks {len(missing)} tensors of its configuration ({missing[0]} is the first): fetch the whole "
            "repository again"
        )


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Give a model's weights the type, but for those that its architecture keeps in fp32, as `from_pretrained` does."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, weight in model.state_dict(keep_vars=True).items():
        if weight.is_floating_point() and not kept & set(name.split(".")):
            weight.data = weight.data.to(dtype)


def computing(build: Build) -> AbstractContextManager[Any]:
    """Return the context in which a model of the build's precision computes, adapters in fp32 on it included."""
    return torch.autocast(build.device.type, build.dtype) if build.dtype != torch.float32 else nullcontext()


def random_encoder(*shapes: tuple[int, ...]) -> Encoder:
    """Return an encoder for a model of random weights: normal numbers of these shapes, fixed by the prompt."""

    def encode(prompt: str, image: Path | None) -> Row:  # noqa: ARG001
        key = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big")
        normal = [keyed(0, "text", key, at).standard_normal(shape, "float32") for at, shape in enumerate(shapes)]
        return tuple(map(torch.from_numpy, normal))

    return encode


def token_ids(tokenizer: Any, prompt: str, length: int) -> torch.Tensor:
    """Return a prompt's token ids, padded or cut to `length`, with a batch axis."""
    return tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def has_part(folder: Path, part: str) -> bool:
    """Return whether a pipeline has a part: its index may say that there is none."""
    return bool(json.loads((folder / "model_index.json").read_text()).get(part, [None])[0])


def negative_first(condition: Condition) -> tuple[Tensor, ...]:
    """Return the rows of classifier-free guidance: the empty prompt, as often as there are rows, then the prompts.

    What the empty prompt lacks, a first frame, is known to both halves.

    Raises:
        ValueError: if the condition has nothing to lead away from.
    """
    if condition.negative is None:
        raise ValueError("classifier-free guidance leads away from the empty prompt, and the condition has none")
    negative = (*condition.negative, *condition.tensors[len(condition.negative) :])
    return tuple(torch.cat([n.expand_as(t), t]) for n, t in zip(negative, condition.tensors, strict=True))


def guided(halves: Float[Tensor, "both *latent"], guidance: float) -> Float[Tensor, "row *latent"]:
    """Return the velocity that leads away from the empty prompt's, of the rows of `negative_first`."""
    negative, positive = halves.chunk(2)
    return negative + guidance * (positive - negative)


def save(model: Any, source: Path, folder: Path, part: str, lora_saver: Callable[..., Any]) -> None:
    """Write a pipeline that `from_pretrained(folder)` loads; of a model with adapters, these, for
    `load_lora_weights(folder)`.

    Args:
        model: what was trained.
        source: the pipeline that it is of.
        folder: does not exist.
        part: the model's folder in it.
        lora_saver: the pipeline's `save_lora_weights`.
    """
    if getattr(model, "peft_config", None):
        _save_lora(model, folder, part, lora_saver)
        return
    index = json.loads((source / "model_index.json").read_text())
    folder.mkdir(parents=True)
    shutil.copy2(source / "model_index.json", folder)
    for other in (name for name, value in index.items() if isinstance(value, list) and value[0]):
        if other != part and (source / other).is_dir():
            shutil.copytree(source / other, folder / other, copy_function=_link)
    model.save_pretrained(folder / part)


def _save_lora(model: Any, folder: Path, part: str, lora_saver: Callable[..., Any]) -> None:
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    # Without the metadata a loader takes alpha for the rank.
    about = _collate_lora_metadata({part: model})
    layers: Any = get_peft_model_state_dict(model)
    lora_saver(folder, **{f"{part}_lora_layers": layers}, **about)


def _link(source: str, target: str) -> str:
    """Link a large file, where the file system can; copy others."""
    real = Path(source).resolve()
    if real.stat().st_size >= LARGE:
        try:
            os.link(real, target)
        except OSError:  # another file system: a copy serves as well, it only takes longer
            shutil.copy2(real, target)
    else:
        shutil.copy2(real, target)
    return target
