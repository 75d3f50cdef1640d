"""Scorers that are waited for so long and no longer: one may hang where no exception will ever come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.contract import Reward

Answer = tuple[Any, BaseException | None]
"""What a scorer returned, or what it raised."""
Question = tuple[Callable[[], Any], SimpleQueue[Answer]]


class NoAnswerError(Exception):
    """A scorer did not answer in time."""


def patient(reward: Reward, seconds: float) -> Reward:
    """Return the scorer; a call of it that takes longer than `seconds` raises NoAnswerError.

    It computes on one thread of its own, where it finds the caller's device and grad mode. While a call that was given
    up on is not back, others are refused: a scorer is never asked from two threads. As a daemon the thread holds up
    no exit.
    """
    return cast(Reward, _Patient(reward, seconds))


class _Patient:
    def __init__(self, reward: Reward, seconds: float) -> None:
        self.reward, self.info, self.seconds = reward, reward.info, min(seconds, threading.TIMEOUT_MAX)
        self.questions: SimpleQueue[Question] = SimpleQueue()
        self.late: SimpleQueue[Answer] | None = None
        """Where the answer to a call that was given up on will come."""
        self.waited = False
        """Whether a later call has waited for it in vain."""
        threading.Thread(target=_answer, args=(self.questions,), daemon=True).start()

    def __call__(
        self,
        images: Float[Tensor, "leaf *frame 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],
    ) -> Any:
        self.await_late()
        answers: SimpleQueue[Answer] = SimpleQueue()  # of this call, so that a late answer is nobody's
        self.questions.put((_as_here(partial(self.reward, images, prompts, group)), answers))
        try:
            value, error = answers.get(timeout=self.seconds)
        except Empty:
            self.late = answers
            raise NoAnswerError(f"no answer in {self.seconds:g} s") from None
        if isinstance(error, SystemExit):  # it ends the call, and not the run
            raise RuntimeError(f"SystemExit: {error}") from error
        if error is not None:
            raise error
        return value

    @property
    def failures(self) -> Sequence[str]:
        """Return why images of the last call have no score, where the scorer says it."""
        return getattr(self.reward, "failures", ())

    def await_late(self) -> None:
        """Wait for the call that was given up on: once as long as for any, afterwards not at all."""
        if self.late is None:
            return
        try:
            self.late.get(timeout=0 if self.waited else self.seconds)
        except Empty:
            self.waited = True
            raise NoAnswerError(f"no answer yet to a call given up on after {self.seconds:g} s") from None
        self.late, self.waited = None, False


def _as_here(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call with this thread's device and grad mode, which another thread does not inherit."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    grad = torch.is_grad_enabled()

    def called() -> Any:
        with nullcontext() if device is None else torch.cuda.device(device), torch.set_grad_enabled(grad):
            return call()

    return called


def _answer(questions: SimpleQueue[Question]) -> None:
    """Answer questions, one after another."""
    while True:
        _answer_one(questions.get())


def _answer_one(question: Question) -> None:
    # A function of its own: while its thread waits, nothing holds on to the images of the call before.
    call, answers = question
    try:
        answers.put((call(), None))
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised where the scorer was called
        answers.put((None, error))
