"""CLIP score: cosine of image and prompt in any CLIP of open_clip (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8

from bench.contract import HubFile, RewardInfo, means
from bench.scorers.checkpoint import taken_for
from bench.scorers.pixels import check_batch, distinct, pictures, scored
from bench.scorers.weights import located, revision

if TYPE_CHECKING:
    from torch import Tensor

NAME = "clip"
DFN5B = "apple/DFN5B-CLIP-ViT-H-14-378"
"""The model of the papers' CLIP column, .36 to .43."""
HUB, CONFIG = "hf-hub:", "open_clip_config.json"
SAFE = "open_clip_model.safetensors"
OTHERS = ("open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""Older names of weights, in the order in which open_clip looks for them."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""What a model with a tokenizer of its own may have; which of them, its repository says."""


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """CLIP score: cosine of image and prompt in a CLIP of open_clip, by its own transform and tokenizer."""

    model: str = DFN5B
    """A repository of the hub in open_clip's layout, or open_clip's own ARCHITECTURE:TAG such as ViT-L-14:laion2b."""
    weights: str = means("")
    """A folder with the files of one, which says itself what model it is; empty for the hub's cache."""
    batch: int = means(32)
    """Images of one call."""

    packages: ClassVar[tuple[str, ...]] = ("open_clip",)

    def __post_init__(self) -> None:
        check_batch(self.batch)
        if not is_tag(self.model) and repository_of(self.model).count("/") != 1:
            raise ValueError(f"model={self.model}: OWNER/NAME of the hub or ARCHITECTURE:TAG of open_clip is wanted")

    @property
    def files(self) -> tuple[HubFile, ...]:
        """What it reads; of a name of open_clip, what open_clip's table says.

        Raises:
            ValueError: if open_clip does not know the name, or not of a place on the hub.
        """
        return files_of_tag(self.model) if is_tag(self.model) else files_of_repository(repository_of(self.model))

    @property
    def info(self) -> RewardInfo:
        """Return what its numbers mean."""
        published = not self.weights
        squashed = ": squashed to 378 x 378, bicubic; CLIP's mean and std" * (published and self.model == DFN5B)
        return RewardInfo(
            unit="cosine",
            low=-1.0,
            high=1.0,
            higher_is_better=True,
            revision=revision(self.files, self.weights, "1"),
            reference=f"Radford et al., arXiv 2103.00020; weights {self.files[0].repository} of the hub",
            model=f"{self.model if published else 'a CLIP of the folder given'}, of open_clip, fp32",
            preprocessing=f"the model's own transform, by PIL{squashed}",
            pixels="uint8",
        )

    @property
    def memory(self) -> int:
        """Return the bytes of the weights in memory."""
        return sum(file.size or file.about for file in self.files)

    def load(self) -> None:
        """Bring the weights into memory.

        Raises:
            FileNotFoundError: they are not on this machine.
            RuntimeError: they are of another model.
        """
        _ = self.parts

    @cached_property
    def parts(self) -> tuple[Any, Callable[[Any], Tensor], Callable[[list[str]], Tensor]]:
        """The model in evaluation mode, its transform of one picture, and its tokenizer."""
        first, *rest = (located(NAME, file, self.weights) for file in self.files if not file.optional)
        with taken_for("a CLIP that open_clip reads", (rest or [first])[0]):
            model, tokenizer = self._of_folder(first) if rest else self._of_tag(first)
            transform = _transform(model)
        return model.eval().requires_grad_(False), transform, tokenizer

    def _of_folder(self, config: Path) -> tuple[Any, Any]:
        """Return the model that a folder describes, and its tokenizer."""
        import open_clip

        name = f"local-dir:{config.parent}"
        described: Any = open_clip.get_model_config(name)
        if "hf_model_name" in described["text_cfg"]:
            raise ValueError("its tower of texts is of another repository, which is not read; name another model")
        return open_clip.create_model(name, require_pretrained=True), open_clip.get_tokenizer(name)

    def _of_tag(self, weights: Path) -> tuple[Any, Any]:
        """Return the model that open_clip knows by name, and its tokenizer."""
        import open_clip

        architecture, tag = self.model.split(":", 1)
        model = open_clip.create_model(architecture, str(weights), force_preprocess_cfg=table(architecture, tag))
        return model, open_clip.get_tokenizer(architecture)

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the cosine of each image and its prompt, without a scale."""
        return scored(self._cosine, images, prompts, self.batch)

    def _cosine(self, pixels: UInt8[Tensor, "row 3 height width"], prompts: list[str]) -> Float[Tensor, " row"]:
        import torch
        from torch.nn.functional import normalize

        model, transform, tokenizer = self.parts
        model = model.to(pixels.device)
        texts, place = distinct(prompts)
        image = torch.stack([transform(picture) for picture in pictures(pixels)]).to(pixels.device)
        said = model.encode_text(tokenizer(texts).to(pixels.device))[place]
        return (normalize(model.encode_image(image), dim=-1) * normalize(said, dim=-1)).sum(-1)


def is_tag(model: str) -> bool:
    """Return whether a model is named by open_clip's architecture and tag."""
    return ":" in model and not model.startswith(HUB)


def repository_of(model: str) -> str:
    """Return the repository of a model of the hub."""
    return model.removeprefix(HUB)


def files_of_repository(name: str) -> tuple[HubFile, ...]:
    """Return the files of a repository in open_clip's layout: its configuration, weights, and what tokenizers read."""
    dfn5b = name == DFN5B
    licence = "Apple's own" if dfn5b else ""
    restrictions = "its page says what it may be used for" if dfn5b else ""

    def file(path: str, about: int = 0, instead: tuple[str, ...] = (), *, optional: bool = False) -> HubFile:
        return HubFile(
            repository=name,
            file=path,
            size=0,
            about=about,
            licence=licence,
            restrictions=restrictions,
            instead=instead,
            optional=optional,
        )

    needed = file(CONFIG, 500), file(SAFE, 3_947_081_637 if dfn5b else 0, OTHERS)
    return needed if dfn5b else (*needed, *(file(path, optional=True) for path in TOKENIZER))


def files_of_tag(model: str) -> tuple[HubFile, ...]:
    """Return the file of open_clip's ARCHITECTURE:TAG.

    Raises:
        ValueError: as `table`, or if open_clip knows no place of it on the hub.
    """
    known = table(*model.split(":", 1))
    repository, _, path = known["hf_hub"].rpartition("/")
    if not repository:
        raise ValueError(f"{model}: open_clip has it from elsewhere than the hub; give weights=FOLDER of its files")
    if own_texts(model.split(":")[0]):
        raise ValueError(f"{model} has a tokenizer of its own: name its repository instead, model={repository}")
    others = (path,) if path else OTHERS
    safe = str(Path(path).with_suffix(".safetensors")) if path else SAFE
    return (HubFile(repository=repository, file=safe, size=0, licence="", instead=others),)


def table(architecture: str, tag: str) -> dict[str, Any]:
    """Return what open_clip knows of a tag: where its weights are, and how images are transformed.

    Raises:
        ValueError: if it knows none, or the tag wants another activation than the architecture has.
    """
    if find_spec("open_clip") is None:
        raise ValueError(f"{architecture}:{tag} is a name of open_clip: pip install 'arbor-bench[rewards]' brings it")
    from open_clip import get_model_config, get_pretrained_cfg, list_pretrained_tags_by_model

    known: dict[str, Any] = dict(get_pretrained_cfg(architecture, tag))
    if not known:
        tags = list_pretrained_tags_by_model(architecture)
        what = f"{architecture} has the tags {', '.join(tags)}" if tags else f"it has no weights of {architecture}"
        raise ValueError(f"open_clip does not know {architecture}:{tag}: {what}")
    config: Any = get_model_config(architecture)
    if bool(known.get("quick_gelu")) != bool(config.get("quick_gelu")):
        other = f"{architecture}-quickgelu" if known.get("quick_gelu") else architecture.removesuffix("-quickgelu")
        raise ValueError(f"{architecture}:{tag} has another activation than its weights: name {other}:{tag}")
    return known


def own_texts(architecture: str) -> bool:
    """Return whether an architecture of open_clip reads a tokenizer, or a tower of texts, from a repository."""
    from open_clip import get_model_config

    config: Any = get_model_config(architecture)
    return not {"hf_tokenizer_name", "hf_model_name"}.isdisjoint(config["text_cfg"])


def _transform(model: Any) -> Callable[[Any], Tensor]:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    made: Any = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return made


REWARDS: Mapping[str, type] = MappingProxyType({NAME: ClipScore})
