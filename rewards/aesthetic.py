"""LAION's aesthetic predictors: how much people like an image, whatever it shows, from the features of a CLIP.

There are two heads of one tower. They are not interchangeable: each has a scale of its own, and a scorer here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8

from bench.contract import HubFile, RewardInfo, WebFile, means
from bench.scorers.checkpoint import state_of, taken_for
from bench.scorers.pixels import check_batch, scored
from bench.scorers.transformers_clip import image_processor, loaded, preprocessed
from bench.scorers.weights import located, revision

if TYPE_CHECKING:
    from torch import Tensor

TOWER = "openai/clip-vit-large-patch14"
RAW = "https://raw.githubusercontent.com"
IMPROVED = WebFile(
    address=f"{RAW}/christophschuhmann/improved-aesthetic-predictor/6934dd81792f086e613a121dbce43082cb8be85e/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth",
    file="sac+logos+ava1-l14-linearMSE.pth",
    size=3_714_759,
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    licence="Apache-2.0",
)
LINEAR = WebFile(
    address=f"{RAW}/LAION-AI/aesthetic-predictor/6d122adad522ab246644d9dc1c6d7a3810ee255f/sa_0_4_vit_l_14_linear.pth",
    file="sa_0_4_vit_l_14_linear.pth",
    size=4_071,
    sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    licence="MIT",
)
LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {IMPROVED.file: tuple(f"layers.{at}." for at in (0, 2, 4, 6, 7)), LINEAR.file: ("",)}
)
"""Head -> what the keys of its layers begin with. What is between them upstream, dropout, does nothing here."""
Head = Sequence[tuple["Tensor", "Tensor"]]
"""Weight and bias of each layer; no activation is between them."""


def _file(name: str, about: int) -> HubFile:
    return HubFile(repository=TOWER, file=name, size=0, about=about, licence="MIT")


CONFIG, PROCESSOR = _file("config.json", 5_000), _file("preprocessor_config.json", 500)
WEIGHTS = _file("model.safetensors", 1_711_000_000)


@dataclass(frozen=True, kw_only=True)
class Aesthetic:
    """LAION's improved aesthetic predictor: five linear layers on features of CLIP ViT-L/14, about 1 to 10."""

    weights: str = means("")
    """A folder with the published files; empty for the hub's cache, and the program's own."""
    batch: int = means(32)
    """Images of one call."""

    files: ClassVar[tuple[HubFile | WebFile, ...]] = (CONFIG, PROCESSOR, WEIGHTS, IMPROVED)
    packages: ClassVar[tuple[str, ...]] = ("transformers",)
    name: ClassVar[str] = "aesthetic"
    reference: ClassVar[str] = "LAION, improved-aesthetic-predictor of GitHub: sac+logos+ava1-l14-linearMSE"
    high: ClassVar[float] = 10.0
    divisor: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_batch(self.batch)

    @property
    def info(self) -> RewardInfo:
        """Return what its numbers mean."""
        return RewardInfo(
            unit="aesthetic score",
            low=0.0,
            high=self.high,
            higher_is_better=True,
            revision=revision(self.files, self.weights, "1"),
            reference=self.reference,
            model=f"CLIP ViT-L/14 of transformers, fp32, weights {TOWER} of the hub; head {self.head_file.file}",
            preprocessing="shorter side to 224 by PIL, bicubic; centre crop; CLIP's mean and std",
            pixels="uint8",
        )

    @property
    def head_file(self) -> WebFile:
        """The head among its files."""
        return next(file for file in self.files if isinstance(file, WebFile))

    @property
    def memory(self) -> int:
        """Return the bytes of the weights in memory."""
        return 303_966_208 * 4

    def load(self) -> None:
        """Bring the weights into memory.

        Raises:
            FileNotFoundError: they are not on this machine.
            RuntimeError: they are of another model, or another head.
        """
        _ = self.parts

    @cached_property
    def parts(self) -> tuple[Any, Any, Head]:
        """The tower of images, its processor, and the head."""
        config, processor, weights, head = (located(self.name, file, self.weights) for file in self.files)
        tower = loaded(config, weights, "CLIP ViT-L/14", images_only=True)
        layers = head_of(head, self.head_file.file, tower.config.projection_dim)
        return tower, image_processor(processor), layers

    def __call__(
        self,
        images: Float[Tensor, "leaf 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the score of each image; prompts do not matter."""
        return scored(self._liked, images, prompts, self.batch)

    def _liked(
        self,
        pixels: UInt8[Tensor, "row 3 height width"],
        prompts: list[str],  # noqa: ARG002
    ) -> Float[Tensor, " row"]:
        from torch.nn.functional import linear, normalize

        tower, processor, head = self.parts
        tower = tower.to(pixels.device)
        value = normalize(tower(pixel_values=preprocessed(processor, pixels)).image_embeds, dim=-1)
        for weight, bias in head:
            value = linear(value, weight.to(pixels.device), bias.to(pixels.device))
        return value[:, 0] / self.divisor


@dataclass(frozen=True, kw_only=True)
class LinearAesthetic(Aesthetic):
    """LAION's first aesthetic predictor, as VBench has it: one linear layer on CLIP ViT-L/14, over 10, about 0 to 1."""

    files: ClassVar[tuple[HubFile | WebFile, ...]] = (CONFIG, PROCESSOR, WEIGHTS, LINEAR)
    name: ClassVar[str] = "aesthetic-linear"
    reference: ClassVar[str] = "LAION, aesthetic-predictor of GitHub: sa_0_4_vit_l_14_linear; over 10 as in VBench"
    high: ClassVar[float] = 1.0
    divisor: ClassVar[float] = 10.0


def head_of(file: Path, which: str, width: int) -> Head:
    """Return the layers of a head.

    Args:
        file: that has them.
        which: of `LAYERS`.
        width: of the features that it reads.

    Raises:
        RuntimeError: if it is the other head, or none.
    """
    with taken_for(f"the head {which}", file):
        read = state_of(file)
        other = next((name for name in LAYERS if name != which and set(read) == _keys(name)), "")
        if other or set(read) != _keys(which):
            raise ValueError(f"it holds {f'the head {other}' if other else ', '.join(sorted(map(str, read))[:9])}")
        head = [(read[f"{at}weight"].float(), read[f"{at}bias"].float()) for at in LAYERS[which]]
        widths = [width, *(len(bias) for _, bias in head)]
        shapes = [tuple(weight.shape) for weight, _ in head]
        if shapes != [*zip(widths[1:], widths, strict=False)] or widths[-1] != 1:
            raise ValueError(f"its layers of shapes {shapes} do not lead from {width} features to one number")
    return head


def _keys(which: str) -> set[str]:
    return {f"{at}{kind}" for at in LAYERS[which] for kind in ("weight", "bias")}


REWARDS: Mapping[str, type] = MappingProxyType({Aesthetic.name: Aesthetic, LinearAesthetic.name: LinearAesthetic})
