"""A scorer that does not answer is given up on; one that does is not changed by being waited for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from bench.contract import RewardInfo
from bench.patience import NoAnswerError, patient
from bench.score import score

IMAGES = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 3, 2, 2).contiguous()
PROMPTS = [f"prompt {i}" for i in range(8)]
GROUP = np.repeat([0, 1], 4)


class Brightness:
    """The mean of an image, by a thread that can be asked about, and that waits where it is told to."""

    info: ClassVar[RewardInfo] = RewardInfo(
        unit="", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="none"
    )

    def __init__(self, hangs_at: int | None = None) -> None:
        self.hangs_at, self.asked, self.done = hangs_at, [], threading.Event()
        self.seen: dict[str, Any] = {}

    def __call__(self, images, prompts, group):
        self.asked.append(len(images))
        self.seen = {"thread": threading.current_thread(), "grad": torch.is_grad_enabled()}
        if len(self.asked) == self.hangs_at:
            self.done.wait(60)
        return images.mean((1, 2, 3)).numpy()


@pytest.fixture
def slow() -> Iterator[Brightness]:
    """Hangs at its second call."""
    reward = Brightness(hangs_at=2)
    yield reward
    reward.done.set()


def test_an_answer_is_what_the_scorer_says():
    reward = Brightness()
    assert patient(reward, 60.0)(IMAGES, PROMPTS, GROUP).tolist() == reward(IMAGES, PROMPTS, GROUP).tolist()
    assert patient(reward, 60.0).info is reward.info


def test_what_a_scorer_raises_is_raised_where_it_was_called():
    class Rude(Brightness):
        def __call__(self, images, prompts, group):
            raise KeyboardInterrupt("now")

    with pytest.raises(KeyboardInterrupt, match="now"):
        patient(Rude(), 60.0)(IMAGES, PROMPTS, GROUP)


@pytest.mark.parametrize("grad", [True, False])
def test_the_scorer_finds_the_grad_mode_of_its_caller(grad):
    reward = Brightness()
    with torch.set_grad_enabled(grad):
        patient(reward, 60.0)(IMAGES, PROMPTS, GROUP)
    assert reward.seen["grad"] is grad


def test_one_thread_answers_call_after_call():
    reward, threads = Brightness(), set()
    asked = patient(reward, 60.0)
    for _ in range(3):
        asked(IMAGES, PROMPTS, GROUP)
        threads.add(reward.seen["thread"])
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert all(thread.daemon for thread in threads)


def test_a_call_without_an_answer_is_given_up_on_and_the_next_waits_until_it_is_back(slow):
    asked = patient(slow, 0.2)
    asked(IMAGES, PROMPTS, GROUP)
    first = slow.seen["thread"]
    with pytest.raises(NoAnswerError, match=r"^no answer in 0\.2 s$"):
        asked(IMAGES, PROMPTS, GROUP)
    with pytest.raises(NoAnswerError, match="no answer yet to a call given up on"):
        asked(IMAGES, PROMPTS, GROUP)
    assert len(slow.asked) == 2  # nobody asks a scorer that is busy
    slow.done.set()  # its late answer is nobody's
    answered_within(asked, 30.0)

    assert asked(IMAGES[:2], PROMPTS[:2], GROUP[:2]).tolist() == IMAGES[:2].mean((1, 2, 3)).tolist()
    assert slow.seen["thread"] is first


def answered_within(asked: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            asked(IMAGES, PROMPTS, GROUP)
        except NoAnswerError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError("the scorer did not come back")


def test_a_scorer_that_exits_fails_as_one_that_raises():
    class Leaves(Brightness):
        def __call__(self, images, prompts, group):
            sys.exit("enough")

    found = score({"leaves": patient(Leaves(), 60.0)}, IMAGES, PROMPTS, GROUP, 8)
    assert found.failed.all()
    assert "leaves: RuntimeError: SystemExit: enough" in found.failures


def test_images_without_an_answer_fail_together_and_are_not_tried_again(slow):
    found = score({"slow": patient(slow, 0.2)}, IMAGES, PROMPTS, GROUP, 4)

    assert slow.asked == [4, 4]
    assert found.failed.tolist() == [False] * 4 + [True] * 4
    assert found.failures == ("slow: no answer in 0.2 s",)
    assert found.reward["slow"][:4].tolist() == pytest.approx(IMAGES[:4].mean((1, 2, 3)).tolist())


def test_images_are_not_held_while_nobody_asks():
    import weakref

    images = IMAGES.clone()
    asked, there = patient(Brightness(), 60.0), weakref.ref(images)
    asked(images, PROMPTS, GROUP)
    del images
    deadline = time.monotonic() + 30
    while there() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert there() is None


EXIT = """
import time
import numpy as np, torch
from bench.contract import RewardInfo
from bench.patience import NoAnswerError, patient

class Hangs:
    info = RewardInfo(unit="", low=0.0, high=1.0, higher_is_better=True, revision="1", reference="")
    def __call__(self, images, prompts, group):
        time.sleep(1000)

try:
    patient(Hangs(), 0.1)(torch.zeros(1, 3, 2, 2), ["a"], np.zeros(1, int))
except NoAnswerError:
    print("given up")
"""


def test_a_process_ends_while_a_scorer_hangs():
    found = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "given up\n", "")
