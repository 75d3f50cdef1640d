"""UnifiedReward: a vision-language model that answers with scores (Wang et al. 2025, arXiv 2503.05236)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from bench.contract import RewardInfo, means
from bench.scorers import openai_chat, rubrics, vision_chat
from bench.scorers.frames import sampled
from bench.scorers.pixels import scored
from bench.scorers.rubrics import Answer, Rubric
from bench.serving.client import Address

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

NAME = "unifiedreward"
MODEL = "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b"
QUALITY = 95
"""Of JPEGs."""
RATE = 2.0
"""Frames a second that the 1.0 models see of a video."""
FRAMES = 16
"""That the 2.0 models see of a video."""
REMEMBERED = 4096
"""Answers: `dimension=style` reads what `dimension=alignment` was told."""

memory: OrderedDict[bytes, Answer] = OrderedDict()
"""The last answers, by all that was asked."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the scorers of images and videos share; the first option, which stands alone, is the address."""

    url: str = means("")
    """Of a server, up to /v1; empty to run the model in process."""
    model: str = MODEL
    """What the server calls the model; in process a repository of the hub, or a folder."""
    max_tokens: int = 4096
    """Of an answer; one that is longer is a failed score."""
    weights: str = means("")
    """A folder with the model's repository; empty for the hub's cache. Not for a server."""
    batch: int = means(8)
    """Images, or videos, of one call in process."""
    concurrency: int = means(16)
    """Questions that a server has at once."""
    timeout: float = means(300.0)
    """Seconds for a server's answer."""
    patience: float = means(60.0)
    """Seconds in which a server that is away is asked again, before the run pauses."""

    media: ClassVar[Literal["image", "video"]]
    rubrics: ClassVar[Mapping[str, Rubric]]
    packages: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            ValueError: for a dimension that the template has not, or an option that does not fit the others.
        """
        if self._dimension not in self.rubric.dimensions:
            has = ", ".join(self.rubric.dimensions)
            raise ValueError(f"template={self.rubric.name} has no dimension {self._dimension!r}; it has {has}")
        if self.url:
            try:
                Address(url=self.url)
            except ValueError as error:
                raise ValueError(f"url: {error}; here one up to /v1 is wanted, as http://127.0.0.1:8080/v1") from error
        if self.url and self.weights:
            raise ValueError("url= asks a server and weights= runs the model in process: give one of them")
        if not self.url and self.rubric is rubrics.SCORE_SGLANG:
            raise ValueError("template=score-sglang is for LLaVA models, which run in a server: give url=")
        if not self.model.strip():
            raise ValueError(f"model= is empty: give a served name or a repository, such as {MODEL}")
        for name in ("max_tokens", "batch", "concurrency", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: a number above 0 is wanted")
        if not self.patience >= 0:
            raise ValueError(f"patience={self.patience}: a number of seconds is wanted, 0 to try once")

    @property
    def rubric(self) -> Rubric:
        """The question and how its answer is read."""
        return self.rubrics[vars(self)["template"]]

    @property
    def waits(self) -> bool:
        """Whether it has time-outs of its own."""
        return bool(self.url)

    @property
    def _dimension(self) -> str:
        return vars(self)["dimension"]

    @cached_property
    def info(self) -> RewardInfo:
        """What its numbers mean.

        Raises:
            UnavailableError: if the server is not there.
            ValueError: if it does not serve the model.
        """
        place = f"served as {self.model}" if self.url else f"{self.model}, in process"
        return RewardInfo(
            unit="points",
            low=self.rubric.low,
            high=self.rubric.high,
            higher_is_better=True,
            revision=f"{self.rubric.name}+{self._revision()}",
            reference=f"Wang et al., arXiv 2503.05236; template {self.rubric.source} of CodeGoat24/UnifiedReward",
            media=self.media,
            model=f"UnifiedReward, {place}, greedy; dimension {self._dimension}",
            preprocessing=f"{self._seen()}; {self._sent()}",
            pixels="uint8",
        )

    def _revision(self) -> str:
        if self.url:
            names = openai_chat.served(self._server)
            if self.model not in names:
                raise ValueError(f"{self.url} serves {', '.join(names) or 'nothing'}, not {self.model}: set model=")
            return f"served:{self.model}"
        try:
            return vision_chat.revision_of(vision_chat.folder_of(NAME, self.model, self.weights))
        except FileNotFoundError:  # `check` says it, where a model is wanted
            return self.model

    def _seen(self) -> str:
        raise NotImplementedError

    def _sent(self) -> str:
        if not self.url:
            return "the model's own processor"
        kind = "PNG" if self.rubric.encoding == "png" else f"JPEG of quality {QUALITY}"
        return f"{kind}, then the server's processor"

    @property
    def _server(self) -> openai_chat.Server:
        return openai_chat.Server(
            url=self.url.rstrip("/"), concurrency=self.concurrency, timeout=self.timeout, patience=self.patience
        )

    @cached_property
    def failures(self) -> list[str]:
        """How many images of the last call have no number, and why the first has none."""
        return []

    def check(self) -> None:
        """Raise FileNotFoundError unless the model, if it runs in process, is on this machine."""
        if not self.url:
            vision_chat.folder_of(NAME, self.model, self.weights)

    def load(self) -> None:
        """Bring the model into memory; a server has it there.

        Raises:
            FileNotFoundError: if it is not on this machine.
            RuntimeError: if it is another one.
        """
        if not self.url:
            _ = self.chat

    @property
    def chat(self) -> vision_chat.Chat:
        """The model in process, of which scorers of several dimensions share one."""
        return vision_chat.loaded(vision_chat.folder_of(NAME, self.model, self.weights))

    def __call__(
        self,
        images: Float[Tensor, "leaf *frame 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],  # noqa: ARG002
    ) -> Float[np.ndarray, " leaf"]:
        """Return the number of each answer; NaN where there is none.

        Raises:
            UnavailableError: if the server went away and did not come back.
        """
        said: list[Answer] = []
        batch = max(len(images), 1) if self.url else self.batch
        values = scored(partial(self._score, said), images, prompts, batch, self.media)
        flaws = [answer.flaw or f"the answer has no {self._dimension} score: {answer.text[-120:]!r}" for answer in said]
        self.failures[:] = [f"{len(flaws)} of {len(values)} failed; {flaws[0]}"] if flaws else []
        return values

    def _score(
        self, failed: list[Answer], pixels: UInt8[Tensor, "row ..."], prompts: list[str]
    ) -> Float[Tensor, " row"]:
        import torch

        answers = self.answers(pixels, prompts)
        values = [self.rubric.read(answer.text)[self._dimension] for answer in answers]
        failed += [answer for answer, value in zip(answers, values, strict=True) if value != value]
        return torch.tensor(values, dtype=torch.float64)

    def answers(self, pixels: UInt8[Tensor, "row ..."], prompts: Sequence[str]) -> list[Answer]:
        """Return what the model says of images, or videos; it is not asked what it has said already, or cannot say."""
        pictures = [self.shown(one).cpu().contiguous() for one in pixels]
        keys = [self._key(shown, prompt) for shown, prompt in zip(pictures, prompts, strict=True)]
        known = {key: memory[key] for key in keys if key in memory}
        known |= {k: Answer(flaw=why) for k, p in zip(keys, prompts, strict=True) if (why := self.rubric.refused(p))}
        rows = {key: at for at, key in enumerate(keys) if key not in known}
        shown, questions = [pictures[at] for at in rows.values()], [prompts[at] for at in rows.values()]
        asked = [self.rubric.question(prompt) for prompt in questions]
        if rows:
            said = self._served(shown, asked) if self.url else self._here(shown, asked, pixels.device)
            known |= dict(zip(rows, said, strict=True))
        for key in dict.fromkeys(key for key in keys if not known[key].flaw):
            memory[key] = known[key]
            memory.move_to_end(key)
        while len(memory) > REMEMBERED:
            memory.popitem(last=False)
        return [known[key] for key in keys]

    def shown(self, one: UInt8[Tensor, "*frame 3 height width"]) -> UInt8[Tensor, "picture 3 height width"]:
        """Return the pictures that the model sees of an image or a video."""
        raise NotImplementedError

    def _key(self, shown: UInt8[Tensor, "picture 3 height width"], prompt: str) -> bytes:
        moves = [getattr(self, f.name) for f in fields(self) if f.name != "dimension" and not f.metadata.get("means")]
        told = json.dumps([self.media, moves, self.url, self.weights, list(shown.shape), prompt])
        return hashlib.blake2b(told.encode() + shown.numpy().tobytes(), digest_size=16).digest()

    def _here(self, pictures: list[Tensor], questions: list[str], device: Any) -> list[Answer]:
        chat = self.chat
        chat.model.to(device)
        rate = RATE if self.rubric.shown == "video" else 0.0
        return chat.answers(pictures, questions, limit=self.max_tokens, rate=rate)

    def _served(self, pictures: list[Tensor], questions: list[str]) -> list[Answer]:
        bodies = [partial(self._body, shown, text) for shown, text in zip(pictures, questions, strict=True)]
        return openai_chat.ask(self._server, bodies)

    def _body(self, shown: UInt8[Tensor, "picture 3 height width"], question: str) -> bytes:
        """Return a request: the pictures, then the question."""
        files = [encoded(one, self.rubric.encoding, self.rubric.side) for one in shown]
        if self.rubric.shown == "video":  # as frames, which vLLM takes for a video of 2 frames a second
            parts = [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(files)}"}}]
        else:
            kind = f"data:image/{self.rubric.encoding};base64,"
            parts = [{"type": "image_url", "image_url": {"url": kind + file}} for file in files]
        content = [*parts, {"type": "text", "text": question}]
        whole = {"model": self.model, "temperature": 0, "max_tokens": self.max_tokens}
        return json.dumps({**whole, "messages": [{"role": "user", "content": content}]}).encode()


@dataclass(frozen=True, kw_only=True)
class UnifiedReward(Asked):
    """UnifiedReward of images: what a vision-language model, in a server or in process, says of alignment and looks."""

    template: Literal["acs", "acs-1.0", "score", "score-sglang"] = "acs"
    """The question; acs is of the 2.0 models, the others of the 1.0 ones."""
    dimension: Literal["mean", "alignment", "coherence", "style", "final"] = "mean"
    """Which number of the answer is the score, or the mean of all."""

    media: ClassVar[Literal["image", "video"]] = "image"
    rubrics: ClassVar[Mapping[str, Rubric]] = MappingProxyType(
        {one.name: one for one in (rubrics.ACS, rubrics.ACS_1, rubrics.SCORE, rubrics.SCORE_SGLANG)}
    )

    def shown(self, one: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "1 3 height width"]:
        """Return the image."""
        return one[None]

    def _seen(self) -> str:
        side = self.rubric.side
        return f"resized to {side}x{side} by PIL, bicubic" if side else "of its own size"


@dataclass(frozen=True, kw_only=True)
class UnifiedRewardVideo(Asked):
    """UnifiedReward of videos: what a vision-language model says of alignment, physics and looks."""

    template: Literal["aps", "score"] = "aps"
    """The question; aps is of the 2.0 models, score of the 1.0 ones."""
    dimension: Literal["mean", "alignment", "physics", "style", "final"] = "mean"
    """Which number of the answer is the score, or the mean of all."""
    fps: float = 16.0
    """Frames a second of the videos; template=score sees two of them a second."""

    media: ClassVar[Literal["image", "video"]] = "video"
    rubrics: ClassVar[Mapping[str, Rubric]] = MappingProxyType(
        {one.name: one for one in (rubrics.APS, rubrics.VIDEO_SCORE)}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            ValueError: as of images, and for a video that does not move.
        """
        super().__post_init__()
        if not self.fps > 0:
            raise ValueError(f"fps={self.fps}: a number above 0 is wanted")

    def shown(self, one: UInt8[Tensor, "frame 3 height width"]) -> UInt8[Tensor, "picture 3 height width"]:
        """Return the frames that the model sees."""
        frames = sampled(len(one), self.fps, RATE) if self.rubric.shown == "video" else by_share(len(one))
        return one[frames]

    def _seen(self) -> str:
        if self.rubric.shown == "frames":
            return f"{FRAMES} frames as images, frame int(i N / {FRAMES})"
        return f"{RATE:g} frames a second of {self.fps:g}, at most {768 * 784} pixels each, as a video"


def by_share(count: int) -> list[int]:
    """Return which frames the 2.0 models see: 16, evenly from the first; of a shorter video each frame once."""
    return sorted({int(i * count / FRAMES) for i in range(FRAMES)})


def encoded(image: UInt8[Tensor, "3 height width"], kind: str, side: int = 0) -> str:
    """Return an image as a file, in base64; square, if a side is given."""
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if side:
        picture = picture.resize((side, side))
    file = BytesIO()
    picture.save(file, format=kind.upper(), **({"quality": QUALITY} if kind == "jpeg" else {}))
    return base64.b64encode(file.getvalue()).decode("ascii")


REWARDS: Mapping[str, type] = MappingProxyType({NAME: UnifiedReward, f"{NAME}-video": UnifiedRewardVideo})
