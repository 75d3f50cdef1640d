"""A scorer behind a server, in another process or on another machine: `bench serve` makes one of any scorer."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from bench.contract import RewardInfo, UnavailableError, means
from bench.scorers.pixels import check_images, eight_bit
from bench.serving import protocol
from bench.serving.client import Address, LateError, NotThereError, asked
from bench.serving.sent import item

if TYPE_CHECKING:
    from torch import Tensor

LOOK = 10.0
"""Seconds that a server may take to say what it is."""
LONGEST_LOOK = 1 << 18
"""Bytes of what it says."""
LARGE = 32 << 20
"""Bytes of a request that nothing more is put into: a server waits 30 s for it, which 10 Mbit/s are enough for."""
PAUSES = (0.1, 5.0)
"""Seconds between two attempts, the first and the most."""


@dataclass(slots=True)
class _State:
    """What is remembered from call to call."""

    away: bool = False
    """Whether the server was waited for in vain: then nobody waits for it again until it answers."""
    failures: tuple[str, ...] = ()


@cache
def _warn_of_open(url: str) -> None:
    """Say once what an address does with a token."""
    print(f"{url} is no https: whoever is on the way can read the token", file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A scorer on a server of `bench serve`; what its numbers mean, the server says."""

    url: str = field(metadata={"means": True})
    """Of the server, such as http://127.0.0.1:8000."""
    token_file: str = means("")
    """A file with the server's token; without one, $ARBOR_TOKEN is shown if it is set."""
    timeout: float = means(600.0)
    """Seconds for the answer to one request."""
    patience: float = means(60.0)
    """Seconds in which a server that is not there, or too busy, is asked again."""

    waits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options."""
        Address(url=self.url)
        if not 0 < self.timeout < 1e6:
            raise ValueError(f"timeout={self.timeout:g}: seconds are wanted, more than 0 and less than a million")
        if not 0 <= self.patience < 1e6:
            raise ValueError(f"patience={self.patience:g}: seconds are wanted, from 0 to a million")
        protocol.token_of(self.token_file)

    @cached_property
    def about(self) -> protocol.About:
        """What the server told of itself, once: other answers are held to it.

        Raises:
            UnavailableError: it is not there, or is no server of a scorer.
        """
        if protocol.token_of(self.token_file) and Address(url=self.url).is_open:
            _warn_of_open(self.url)
        try:
            status, body = self._asked("/info", None, min(self.timeout, LOOK), LONGEST_LOOK)
        except NotThereError as error:
            raise UnavailableError(
                f"{self.url} does not answer ({error}): start it with `bench serve SCORER`"
            ) from error
        if status != 200:
            raise self._refused(status, body)
        try:
            return protocol.read_about(body)
        except protocol.MalformedError as error:
            raise UnavailableError(f"{self.url} is no server of a scorer: {error}") from error

    @property
    def info(self) -> RewardInfo:
        """Return what its numbers mean, as the server says."""
        return self.about.info

    @property
    def label(self) -> str:
        """Return what records call it: as they would on the server's side, wherever that is."""
        return self.about.name

    @property
    def failures(self) -> tuple[str, ...]:
        """Return why images of the last call could not be scored, each reason once."""
        return self._state.failures

    @cached_property
    def _state(self) -> _State:
        return _State()

    def __call__(
        self,
        images: Float[Tensor, "leaf *frame 3 height width"],
        prompts: Sequence[str],
        group: Int[np.ndarray, " leaf"],
    ) -> Float[np.ndarray, " leaf"]:
        """Return the server's score of each image, NaN of one that is not finite.

        Raises:
            UnavailableError: the server does not answer, or not as it should.
            RuntimeError: it refuses these images.
        """
        check_images(images, prompts, self.info.media)
        rounded, valid = eight_bit(images)
        pixels = rounded if self.info.pixels == "uint8" else images.detach().float()
        if self.info.groupwise:  # scored whole, or failed whole
            valid = ~np.isin(group, group[~valid])
        values, said = np.full(len(images), np.nan), dict[str, None]()
        for rows, body in self._requests(pixels.cpu().numpy(), prompts, group, np.flatnonzero(valid)):
            answer = self._answer(body, len(rows))
            values[rows] = answer.scores
            said |= dict.fromkeys(answer.failures)
        self._state.failures = tuple(said)
        return values

    def _requests(
        self, pixels: np.ndarray, prompts: Sequence[str], group: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[list[int], bytes]]:
        """Yield rows and the request for their scores, each as large as the server takes and a slow link carries."""
        most, longest = self.about.max_items, self.about.max_bytes - 64
        whole = [[int(row)] for row in rows]
        if self.info.groupwise:
            whole = [
                [int(row) for row in rows if group[row] == number] for number in dict.fromkeys(group[rows].tolist())
            ]
        taken: list[int] = []
        items: list[bytes] = []
        size = 0
        for unit in whole:
            new = [item(pixels[row]) for row in unit]
            more = sum(len(part) + 24 for part in new) + sum(len(protocol.written({"": prompts[row]})) for row in unit)
            if len(unit) > most or more > longest:
                what = f"a group of {len(unit)}" if self.info.groupwise else "one"
                limits = f"max_items {most}, max_bytes {self.about.max_bytes:,}"
                raise RuntimeError(f"{what} is more than {self.url} takes at a time ({limits}): see --max-bytes there")
            if taken and (len(taken) + len(unit) > most or size + more > min(longest, LARGE)):
                yield taken, self._request(taken, items, prompts, group)
                taken, items, size = [], [], 0
            taken, items, size = taken + unit, items + new, size + more
        if taken:
            yield taken, self._request(taken, items, prompts, group)

    def _request(self, rows: list[int], items: list[bytes], prompts: Sequence[str], group: np.ndarray) -> bytes:
        return protocol.request(items, [prompts[r] for r in rows], [int(group[r]) for r in rows], self.info.media)

    def _answer(self, body: bytes, items: int) -> protocol.Answer:
        """Return the answer to a request, of the scorer that was there at the start."""
        status, said = self._insisted(body, protocol.longest_answer(items))
        if status == 422:
            raise RuntimeError(protocol.read_error(said))
        if status != 200:
            raise self._refused(status, said)
        try:
            answer = protocol.read_answer(said, items)
        except protocol.MalformedError as error:
            raise UnavailableError(f"{self.url} does not answer as a scorer does: {error}") from error
        mine, theirs = f"{self.label}@{self.info.revision}", f"{answer.name}@{answer.revision}"
        if mine != theirs:
            raise UnavailableError(f"{self.url} serves {theirs} now, and this run began with {mine}: start that again")
        return answer

    def _insisted(self, body: bytes, longest: int) -> tuple[int, bytes]:
        """Ask until there is an answer, or patience is at its end."""
        began, pause = time.monotonic(), PAUSES[0]
        while True:
            try:
                status, said = self._asked("/score", body, self.timeout, longest)
                if status < 500 and status != 408:
                    self._state.away = False
                    return status, said
                why = f"status {status}: {protocol.read_error(said)}"
            except NotThereError as error:
                why = str(error)
            left = began + (0.0 if self._state.away else self.patience) - time.monotonic()
            if left <= 0:
                self._state.away = True
                again = f"start it again with `bench serve '{self.label}'`"
                raise UnavailableError(f"{self.label} of {self.url} does not answer ({why}): {again}")
            time.sleep(min(pause, left))
            pause = min(2 * pause, PAUSES[1])

    def _asked(self, path: str, body: bytes | None, timeout: float, longest: int) -> tuple[int, bytes]:
        token = protocol.token_of(self.token_file)
        try:
            return asked(Address(url=self.url), path, body, token=token, timeout=timeout, longest=longest)
        except LateError as error:
            raise UnavailableError(f"{self.url}{path}: {error}; timeout= gives it more time") from error
        except UnavailableError as error:
            raise UnavailableError(f"{self.url}{path}: {error}") from error

    def _refused(self, status: int, body: bytes) -> UnavailableError:
        said = protocol.read_error(body)
        if status == 401:
            return UnavailableError(f"{self.url} wants its token: give `token_file`, or set ${protocol.TOKEN} ({said})")
        return UnavailableError(f"{self.url} is no server of a scorer, or not of this version: status {status}, {said}")


REWARDS: Mapping[str, type[Any]] = MappingProxyType({"remote": Remote})
