"""A reward that costs nothing, for any size of image or video: a plugin of the full-size benchmark."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.contract import RewardInfo

ABOUT: dict[str, Any] = {"unit": "none", "low": 0.0, "high": 1.0, "higher_is_better": True, "revision": "1"}


class Brightness:
    """The mean of an image's pixels."""

    info: ClassVar[RewardInfo] = RewardInfo(**ABOUT, reference="a benchmark's")

    def __call__(self, images: Any, prompts: Any, group: Any) -> Any:  # noqa: ARG002
        return images.flatten(1).mean(1).double().cpu().numpy()


class VideoBrightness:
    """The mean of a video's pixels."""

    info: ClassVar[RewardInfo] = RewardInfo(**ABOUT, reference="a benchmark's", media="video")

    def __call__(self, images: Any, prompts: Any, group: Any) -> Any:  # noqa: ARG002
        return images.flatten(1).mean(1).double().cpu().numpy()


REWARDS = {"brightness-image": Brightness, "brightness-video": VideoBrightness}
