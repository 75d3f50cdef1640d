"""PickScore: a CLIP of the choices that users made among generated images (Kirstain et al. 2023, arXiv 2305.01569)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from bench.contract import HubFile, RewardInfo, means
from bench.scorers.checkpoint import taken_for
from bench.scorers.pixels import check_batch, distinct, scored
from bench.scorers.transformers_clip import image_processor, loaded, preprocessed, tokens
from bench.scorers.weights import located, revision

if TYPE_CHECKING:
    from torch import Tensor

NAME = "pickscore"
REPOSITORY = "yuvalkirstain/PickScore_v1"
LICENCE = "not stated on its page; MIT in its source"
SCALES: Mapping[str, tuple[float, float, str]] = MappingProxyType(
    {"cosine": (-1.0, 1.0, "cosine"), "logit": (-100.0, 100.0, "logit"), "div26": (-100 / 26, 100 / 26, "logit / 26")}
)
"""Scale -> its range, where exp(logit_scale) is 100 as in the published weights, and its unit."""
DIVISOR = MappingProxyType({"logit": 1.0, "div26": 26.0})
"""Of the logit; 26 as Flow-GRPO and Flow-Factory have it."""


def _file(name: str, about: int, instead: tuple[str, ...] = ()) -> HubFile:
    return HubFile(repository=REPOSITORY, file=name, size=0, about=about, licence=LICENCE, instead=instead)


CONFIG, PROCESSOR = _file("config.json", 5_000), _file("preprocessor_config.json", 500)
WEIGHTS = _file("model.safetensors", 3_940_000_000, ("pytorch_model.bin",))
VOCABULARY, MERGES = _file("vocab.json", 862_000), _file("merges.txt", 525_000)


@dataclass(frozen=True, kw_only=True)
class PickScore:
    """PickScore, human preference: cosine of image and prompt in a fine-tuned CLIP ViT-H-14, or a multiple of it."""

    scale: Literal["cosine", "logit", "div26"] = "cosine"
    """The cosine; times exp(logit_scale), about 20 to 23; or that divided by 26."""
    weights: str = means("")
    """A folder with the published files; empty for the hub's cache."""
    batch: int = means(32)
    """Images of one call."""

    files: ClassVar[tuple[HubFile, ...]] = (CONFIG, PROCESSOR, WEIGHTS, VOCABULARY, MERGES)
    packages: ClassVar[tuple[str, ...]] = ("transformers",)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale={self.scale}: {', '.join(SCALES)} are known")
        check_batch(self.batch)

    @property
    def info(self) -> RewardInfo:
        """Return what its numbers mean."""
        low, high, unit = SCALES[self.scale]
        return RewardInfo(
            unit=unit,
            low=low,
            high=high,
            higher_is_better=True,
            revision=revision(self.files, self.weights, "1"),
            reference=f"Kirstain et al., arXiv 2305.01569; weights {REPOSITORY} of the hub",
            model="CLIP ViT-H-14 of transformers, fp32",
            preprocessing="shorter side to 224 by PIL, bicubic; centre crop; CLIP's mean and std",
            pixels="uint8",
        )

    @property
    def memory(self) -> int:
        """Return the bytes of the weights in memory."""
        return 986_109_441 * 4

    def load(self) -> None:
        """Bring the weights into memory.

        Raises:
            FileNotFoundError: they are not on this machine.
            RuntimeError: they are of another model.
        """
        _ = self.parts

    @cached_property
    def parts(self) -> tuple[Any, Any, Any]:
        """The model, its processor of images, and its tokenizer."""
        from transformers import CLIPTokenizer

        config, processor, weights, vocabulary, _ = (located(NAME, file, self.weights) for file in self.files)
        model = loaded(config, weights, "PickScore's weights")
        with taken_for("a CLIP's tokenizer, merges.txt beside it", vocabulary):
            tokenizer = CLIPTokenizer.from_pretrained(vocabulary.parent)
        if len(tokenizer) != model.config.text_config.vocab_size:
            known = f"{model.config.text_config.vocab_size:,}"
            raise RuntimeError(f"{vocabulary} has {len(tokenizer):,} tokens, and {weights} knows {known} of them")
        return model, image_processor(processor), tokenizer

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the score of each image and its prompt, on the scale asked for."""
        return scored(self._scaled, images, prompts, self.batch)

    def _scaled(self, pixels: UInt8[Tensor, "row 3 height width"], prompts: list[str]) -> Float[Tensor, " row"]:
        from torch.nn.functional import normalize

        model, processor, tokenizer = self.parts
        model = model.to(pixels.device)
        texts, place = distinct(prompts)
        read = tokens(tokenizer, texts, model.config.text_config.max_position_embeddings)
        said = model.get_text_features(**{key: value.to(pixels.device) for key, value in read.items()})
        seen = model.get_image_features(pixel_values=preprocessed(processor, pixels))
        cosine = (normalize(features(seen), dim=-1) * normalize(features(said)[place], dim=-1)).sum(-1)
        return cosine if self.scale == "cosine" else cosine * model.logit_scale.exp() / DIVISOR[self.scale]


def features(told: Any) -> Tensor:
    """Return the features in what a CLIP tells: a tensor until transformers 5, and a field of an output since."""
    found: Tensor = getattr(told, "pooler_output", told)
    return found


REWARDS: Mapping[str, type] = MappingProxyType({NAME: PickScore})
