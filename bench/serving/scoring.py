"""The one thread of a server that scores: requests that wait together are scored together."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench.contract import Reward, UnavailableError
from bench.score import Scores, score
from bench.serving.protocol import Request


class BusyError(Exception):
    """A request that is not scored: the server is ending, or as many wait as may."""


class RefusedError(Exception):
    """The scorer took none of a request's images; what it said."""


@dataclass(slots=True)
class Job:
    """A request that waits, and then what came of it."""

    request: Request
    done: threading.Event = field(default_factory=threading.Event)
    values: np.ndarray | None = None
    failures: tuple[str, ...] = ()
    error: Exception | None = None

    @property
    def items(self) -> int:
        """Return how many images, or videos, it has."""
        return len(self.request.prompts)


class Scoring:
    """Scores requests in the order of their arrival, on a thread of its own.

    Args:
        name: of the scorer, in records.
        reward: the scorer, loaded.
        device: of the images that it is given.
        batch: most images of one call, but that a group is not split for a scorer that compares its images.
        alone: whether requests are never joined; joined, the last bits of a score may hang on who else asks.
        waiting: most requests that wait.
    """

    def __init__(
        self, name: str, reward: Reward, *, device: torch.device, batch: int, alone: bool = False, waiting: int = 64
    ) -> None:
        self.name, self.reward, self.device = name, reward, device
        self.batch, self.waiting = batch, waiting
        self.alone = alone or reward.info.groupwise
        self.jobs: deque[Job] = deque()
        self.there = threading.Condition()
        self.ending = False
        self.thread = threading.Thread(target=self._run, daemon=True, name="scoring")
        self.thread.start()

    def scored(self, request: Request) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the scores of a request, NaN where there is none, and why.

        Raises:
            BusyError: it is not scored, now.
            RefusedError: the scorer took none of its images.
            Exception: what the scorer raised that is no failure of images.
        """
        job = Job(request)
        with self.there:
            if self.ending or len(self.jobs) >= self.waiting:
                raise BusyError("the server is ending" if self.ending else f"{self.waiting} requests wait already")
            self.jobs.append(job)
            self.there.notify()
        job.done.wait()
        if job.error is not None:
            raise job.error
        assert job.values is not None
        if job.failures and np.isnan(job.values).all():
            raise RefusedError("; ".join(job.failures))
        return job.values, job.failures

    def end(self, seconds: float) -> None:
        """Refuse what waits, and wait so long for what is being scored."""
        with self.there:
            self.ending = True
            for job in self.jobs:
                job.error = BusyError("the server is ending")
                job.done.set()
            self.jobs.clear()
            self.there.notify()
        self.thread.join(seconds)

    def _run(self) -> None:
        while jobs := self._next():
            try:
                self._score(jobs)
            except BaseException as error:  # noqa: BLE001  # a scorer that exits, too, is told to who asked
                for job in jobs:
                    job.error = error if isinstance(error, UnavailableError) else _failed(error)
            for job in jobs:
                job.done.set()

    def _next(self) -> list[Job]:
        """Return the requests that are scored next, once there are any; none at the end."""
        with self.there:
            self.there.wait_for(lambda: self.jobs or self.ending)
            if not self.jobs:
                return []
            taken = [self.jobs.popleft()]
            while self.jobs and not self.alone and sum(j.items for j in (*taken, self.jobs[0])) <= self.batch:
                taken.append(self.jobs.popleft())
            return taken

    def _score(self, jobs: Sequence[Job]) -> None:
        """Score requests together; where an image fails, each alone, so that each is told its own failures."""
        prompts = [text for job in jobs for text in job.request.prompts]
        pixels = [array for job in jobs for array in job.request.pixels]
        values, said = self._values(pixels, prompts, np.concatenate([job.request.group for job in jobs]))
        if said and len(jobs) > 1:
            for job in jobs:
                self._score([job])
            return
        for job, found in zip(jobs, np.split(values, np.cumsum([job.items for job in jobs])[:-1]), strict=True):
            job.values, job.failures = found, said

    def _values(
        self, pixels: Sequence[np.ndarray], prompts: Sequence[str], group: np.ndarray
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return every image's score, those of one size scored together, and why some failed."""
        values, said = np.full(len(pixels), np.nan), dict[str, None]()
        first = {number: at for at, number in reversed([*enumerate(group)])}
        sizes: dict[tuple[int, ...], list[int]] = {}
        for at, array in enumerate(pixels):
            sizes.setdefault(array.shape, []).append(at)
        for rows in sizes.values():
            step = self.batch
            if self.reward.info.groupwise:  # those of a group in a row: where an image fails, groups are cut apart
                rows.sort(key=lambda row: first[group[row]])
                step = len(rows)
            for part in (rows[start : start + step] for start in range(0, len(rows), step)):
                found = self._call([pixels[r] for r in part], [prompts[r] for r in part], group[part])
                values[part] = found.reward[self.name]
                said |= dict.fromkeys(text.removeprefix(f"{self.name}: ") for text in found.failures)
        return values, tuple(said)

    def _call(self, pixels: Sequence[np.ndarray], prompts: Sequence[str], group: np.ndarray) -> Scores:
        images = torch.stack([_unit(array) for array in pixels]).to(self.device)
        rewards: Mapping[str, Any] = {self.name: self.reward}
        return score(rewards, images, prompts, group, max(self.batch, len(pixels)))


def _unit(array: np.ndarray) -> torch.Tensor:
    """Return pixels as floats in [0, 1]."""
    found = torch.from_numpy(array)
    return found.float() / 255 if found.dtype == torch.uint8 else found


def _failed(error: BaseException) -> RuntimeError:
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    print(f"bench serve: {said}", file=sys.stderr, flush=True)
    return RuntimeError(said)
