"""Questions that a vision-language model is asked about an image or a video, and the numbers read from its answers.

The questions are UnifiedReward's (Wang et al. 2025, arXiv 2503.05236), word for word as its models were trained on
them, from the files of github.com/CodeGoat24/UnifiedReward (MIT) that each one names. The readers are strict: the last
line that names a number decides, and what is not one number of the asked range is a failed score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

CONTROL = re.compile(r"<\|\w+\|>")
"""Tokens with which a chat is marked: in a prompt they would end it, or claim an image that is not there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said."""

    text: str = ""
    flaw: str = ""
    """Why there is nothing to read; empty for a whole answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """A question with a place for the prompt, and the numbers of an answer."""

    name: str
    source: str
    """The file of the official repository that has it."""
    before: str
    """The prompt."""
    after: str
    numbers: Mapping[str, str]
    """Dimension -> the words before its number."""
    low: float
    high: float
    shown: Literal["image", "frames", "video"]
    """What the model sees: one image, a video's frames as images, or a video."""
    encoding: Literal["jpeg", "png"] = "jpeg"
    """In which images travel to a server."""
    side: int = 0
    """To which images are made square, whatever their shape was; 0 for as they are."""
    reserved: tuple[str, ...] = ()
    """Words that stand for an image, and in no prompt."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Return what may be the score: one of the numbers, or the mean of all."""
        return ("mean", *self.numbers)

    def question(self, prompt: str) -> str:
        """Return the question about the image of a prompt, which goes in as it is."""
        return self.before + prompt + self.after

    def refused(self, prompt: str) -> str:
        """Return why a prompt cannot be asked about; empty if it can."""
        found = CONTROL.search(prompt)
        word = found.group() if found else next((word for word in self.reserved if word in prompt), "")
        return f"the prompt holds {word!r}, which marks a chat" if word else ""

    def read(self, text: str) -> dict[str, float]:
        """Return the number of each dimension, and their mean; NaN for what an answer does not say."""
        found = {name: number(text, words, self.low, self.high) for name, words in self.numbers.items()}
        return {"mean": math.fsum(found.values()) / len(found), **found}


def number(text: str, words: str, low: float, high: float) -> float:
    """Return the number after the last `words:` of a text; NaN unless it is one from low to high.

    Case and markdown's stars do not matter. A scale that is not the asked one, as in `8/10` of 1 to 5, a range of
    numbers and a number in words fail.
    """
    gap = r"[\s*_`]*"
    name = gap.join(re.escape(word) for word in words.split())
    scale = rf"(?:\(\s*{low:g}\s*[-–]\s*{high:g}\s*\){gap})?"
    said = list(re.finditer(rf"(?<![A-Za-z0-9]){name}{gap}{scale}[:：]{gap}", text, re.IGNORECASE))
    if not said:
        return math.nan
    rest = re.sub(r"[*_`]", "", text[said[-1].end() :].partition("\n")[0])
    out_of = rf"(?:\s*(?:/|out of)\s*{high:g}(?:\.0)?)?"
    another = r"\s*(?:points?\s*)?(?:[-–—/~]|to|or|of|out of)\s*[0-9]|\s*%"
    match = re.match(rf"([0-9]{{1,3}}(?:\.[0-9]+)?){out_of}(?![.,]?[0-9]|\w)(?!{another})", rest)
    value = float(match.group(1)) if match else math.nan
    return value if low <= value <= high else math.nan


_FINAL = MappingProxyType({"final": "Final Score"})
_CRITERIA = (
    "You are given a text caption and a generated image based on that caption. "
    "Your task is to evaluate this image based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. "
    "Consider the accuracy of depicted objects, their relationships, and attributes as described in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail preservation, "
    "color accuracy, and overall aesthetic appeal.\n"
)
_ACS = MappingProxyType({"alignment": "Alignment Score", "coherence": "Coherence Score", "style": "Style Score"})
_AXES = (
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
    "Output your evaluation using the format below:\n\n"
)
_ACS_LINES = "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\n"

SCORE = Rubric(
    name="score",
    source="inference_qwen/image_generation/qwen_point_score_image_generation.py",
    before=_CRITERIA + "Extract key elements from the provided text caption, evaluate their presence in the generated "
    "image using the format: 'element (type): value' (where value=0 means not generated, and value=1 means generated), "
    "and assign a score from 1 to 5 after 'Final Score:'.\nYour task is provided as follows:\nText Caption: [",
    after="]",
    numbers=_FINAL,
    low=1.0,
    high=5.0,
    shown="image",
)
SCORE_SGLANG = Rubric(
    name="score-sglang",
    source="sglang_llava/sglang_inference.py",
    before="<image>\n" + _CRITERIA + "Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\n"
    "Your task is provided as follows:\nText Caption: [",
    after="]",
    numbers=_FINAL,
    low=1.0,
    high=5.0,
    shown="image",
    encoding="png",
    side=512,
    reserved=("<image>",),
)
ACS = Rubric(
    name="acs",
    source="inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py",
    before="You are presented with a generated image and its associated text caption. "
    "Your task is to analyze the image across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    + _AXES
    + _ACS_LINES
    + "Your task is provided as follows:\nText Caption: [",
    after="]",
    numbers=_ACS,
    low=1.0,
    high=5.0,
    shown="image",
)
ACS_1 = Rubric(
    name="acs-1.0",
    source="inference_qwen/image_generation/qwen_point_score_ACS_image_generation.py",
    before="You are presented with a generated image and its associated text caption. "
    "Your task is to analyze the image across multiple dimensions in relation to the caption. Specifically:\n\n"
    "1. Evaluate each word in the caption based on how well it is visually represented in the image. "
    "Assign a numerical score to each word using the format:\n"
    '   Word-wise Scores: [["word1", score1], ["word2", score2], ..., ["wordN", scoreN], ["[No_mistakes]", scoreM]]\n'
    "   - A higher score indicates that the word is less well represented in the image.\n"
    "   - The special token [No_mistakes] represents whether all elements in the caption were correctly depicted. "
    "A high score suggests no mistakes; a low score suggests missing or incorrect elements.\n\n"
    "2. Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    + _AXES
    + '---\n\nWord-wise Scores: [["word1", score1], ..., ["[No_mistakes]", scoreM]]\n\n'
    + _ACS_LINES
    + "Your task is provided as follows:\nText Caption: [",
    after="]",
    numbers=_ACS,
    low=1.0,
    high=5.0,
    shown="image",
)
VIDEO_SCORE = Rubric(
    name="score",
    source="inference_qwen/video_generation/qwen_point_score_video_generation.py",
    before="Suppose you are an expert in judging and evaluating the quality of AI-generated videos, "
    "please watch the frames of a given video and see the text prompt for generating the video.\n"
    "Then give scores from 5 different dimensions:\n"
    "(1) visual quality: the quality of the video in terms of clearness, resolution, brightness, and color\n"
    "(2) temporal consistency, the consistency of objects or humans in video\n"
    "(3) dynamic degree, the degree of dynamic changes\n"
    "(4) text-to-video alignment, the alignment between the text prompt and the video content\n"
    "(5) factual consistency, the consistency of the video content with the common-sense and factual knowledge\n\n"
    "For each dimension, output a number from [1,2,3,4], \n"
    "in which '1' means 'Bad', '2' means 'Average', '3' means 'Good', \n"
    "'4' means 'Real' or 'Perfect' (the video is like a real video)\n"
    "Finally, based on above 5 dimensions, assign a score from 1 to 10 after 'Final Score:'\n"
    "Here is an output example:\nvisual quality: 4\ntemporal consistency: 4\ndynamic degree: 3\n"
    "text-to-video alignment: 1\nfactual consistency: 2\nFinal Score: 6\n\n"
    "**Note: In the example above, scores are placeholders meant only to demonstrate the format. "
    "Your actual evaluation should be based on the quality of the given video.**\n"
    "Your task is provided as follows: Text Prompt: [",
    after="]",
    numbers=_FINAL,
    low=1.0,
    high=10.0,
    shown="video",
)
APS = Rubric(
    name="aps",
    source="inference_qwen/UnifiedReward-2.0-inference/point_score_APS_video_generation.py",
    before="You are presented with a generated video and its associated text caption. "
    "Your task is to analyze the video across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the video along the following axes (each rated from 1 to 5):\n"
    "- Alignment Score: How well the video matches the caption in terms of content.\n"
    "- Physics Score: How well the gravity, movements, collisions, and interactions make physical sense.\n"
    "- Style Score: How visually appealing the video looks, regardless of caption accuracy.\n\n"
    "Output your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\nPhysics Score (1-5): Y\nStyle Score (1-5): Z\n\n"
    "Your task is provided as follows:\nText Caption: [",
    after="]",
    numbers=MappingProxyType({"alignment": "Alignment Score", "physics": "Physics Score", "style": "Style Score"}),
    low=1.0,
    high=5.0,
    shown="frames",
)
