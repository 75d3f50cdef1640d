"""The embedded world's image-text scorer: a tiny CLIP, trained with hard negatives, that no arm trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

import bench.embedded
from bench.contract import RewardInfo
from bench.embedded import world

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = Path(bench.embedded.__file__).parent / "tiny-clip"
CHUNK = 128
"""Images of one call; bounds the memory, changes no score."""


class TinyClip:
    """Cosine similarity of image and prompt in the embedding of the world's own CLIP.

    It computes in float64, so that a score does not depend on which images share its batch.
    """

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="cosine",
        low=-1.0,
        high=1.0,
        higher_is_better=True,
        revision="1",
        reference="trained by `python -m bench.embedded.make --stage scorer`",
    )

    def __init__(self) -> None:
        """Load the weights.

        Raises:
            FileNotFoundError: the weights are not there.
        """
        if not (FOLDER / "model.safetensors").exists():
            raise FileNotFoundError(
                f"no scorer in {FOLDER}; `python -m bench.embedded.make --stage scorer --out {FOLDER.parent}` makes it"
            )
        from transformers import CLIPModel, CLIPTokenizer

        self._model: Any = CLIPModel.from_pretrained(FOLDER).double().eval().requires_grad_(False)
        self._tokenizer = CLIPTokenizer.from_pretrained(FOLDER)

    def _pooled(self, images: Float[Tensor, "leaf 3 height width"]) -> Float[Tensor, "leaf feature"]:
        """Return pooled image features in float64; a row of NaN in the image gives a row of NaN."""
        import torch

        if tuple(images.shape[1:]) != (3, world.SIDE, world.SIDE):
            raise ValueError(f"images must have shape [leaf, 3, {world.SIDE}, {world.SIDE}], not {list(images.shape)}")
        vision = self._model.to(images.device).vision_model
        chunks = (images.detach().double() * 2 - 1).split(CHUNK)
        with torch.inference_mode():
            return torch.cat([vision(pixel_values=chunk).pooler_output for chunk in chunks])

    def features(self, images: Float[Tensor, "leaf 3 height width"]) -> Float[Tensor, "leaf feature"]:
        """Return float32 features for distances between sets of images (KID, MMD).

        They are the pooled output of the vision tower before its projection: the projection keeps only what captions
        name, and drift may be in what they do not.
        """
        return self._pooled(images).float()

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the cosine similarity of each image and its prompt."""
        import torch

        for prompt in prompts:
            world.parse(prompt)
        tokens = self._tokenizer(list(prompts), padding="max_length", truncation=False, return_tensors="pt")
        with torch.inference_mode():
            image = self._model.visual_projection(self._pooled(images))
            text = self._model.text_projection(self._model.text_model(**tokens.to(images.device)).pooler_output)
            cosine = torch.nn.functional.cosine_similarity(image, text, dim=-1)
        return np.round(cosine.cpu().numpy(), 9)


REWARDS: Mapping[str, type] = MappingProxyType({"tiny-clip": TinyClip})
