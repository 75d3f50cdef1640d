"""A client of servers that speak OpenAI's chat protocol, such as vLLM's and SGLang's: many questions at once.

A request that a server refuses for what it holds fails alone. A server that is not there, hangs, or is no such server
is waited for, up to a limit, and then raises `UnavailableError`: a score is never made up. Of an answer at most
`LARGEST` bytes are read; redirections are not followed and proxies not used.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from bench.contract import UnavailableError
from bench.scorers.rubrics import Answer
from bench.serving import client
from bench.serving.client import Address, LateError, Line, NotThereError

LARGEST = 8 << 20
"""Bytes of an answer."""
LISTING = 10.0
"""Seconds for the list of models."""
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts; the last ones are all alike."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""What a server may answer better later."""
REFUSED = (400, 413, 415, 422)
"""What a server says of a request that it does not take."""
KEY = "OPENAI_API_KEY"

Body = Callable[[], bytes]
"""Makes a request's body, on the thread that sends it."""


class AwayError(Exception):
    """An attempt that may go better later; it says what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a server is, and how long it is waited for."""

    url: str
    """Up to `/v1`."""
    concurrency: int = 16
    """Questions that are under way at once."""
    timeout: float = 300.0
    """Seconds for one answer."""
    patience: float = 60.0
    """Seconds, from the first failure of a question, in which it is tried again."""


def served(server: Server) -> list[str]:
    """Return the names of the models that a server has.

    Raises:
        UnavailableError: if it does not say.
    """
    try:
        status, data = exchange(server, "/models", None, timeout=LISTING)
    except AwayError as error:
        raise UnavailableError(f"{server.url} {error}: start the server, or give another url") from error
    listed = _json(data).get("data") if status == 200 else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "id" in one for one in listed):
        raise UnavailableError(f"{server.url}/models {_seen(status, data)}: {_remedy(status)}")
    return [str(one["id"]) for one in listed]


def ask(server: Server, bodies: Sequence[Body]) -> list[Answer]:
    """Return a server's answers to requests, in their order, whatever the order they came in.

    Raises:
        UnavailableError: if one of them gets none; what is under way is hung up.
    """
    line = Line()
    with ThreadPoolExecutor(max(1, min(server.concurrency, len(bodies)))) as pool:
        futures: list[Future[Answer]] = [pool.submit(asked, server, body, line) for body in bodies]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [error for future in done if (error := future.exception()) is not None]
            if failed:
                raise failed[0]
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            line.end()
            raise


def asked(server: Server, body: Body, line: Line) -> Answer:
    """Return the answer to one request, tried again while its server is busy or away.

    Raises:
        UnavailableError: if patience ends, or trying again is of no use.
    """
    data, attempt, until = body(), 0, 0.0
    while True:
        try:
            status, said = exchange(server, "/chat/completions", data, line)
            return understood(server.url, status, said)
        except AwayError as error:
            now, pause = time.monotonic(), PAUSES[min(attempt, len(PAUSES) - 1)]
            until = until or now + server.patience
            attempt += 1
            if now + pause > until or line.ended.wait(pause):
                tried = f"{attempt} attempts" if attempt > 1 else "one attempt"
                raise UnavailableError(
                    f"{server.url} {error}, after {tried}: start the server again; the same command goes on"
                ) from error


def understood(url: str, status: int, data: bytes) -> Answer:
    """Return what a server's answer says.

    Raises:
        AwayError: if it is busy, or what it sent is no JSON.
        UnavailableError: if it does not speak the protocol, or lets nobody in.
    """
    if status in BUSY:
        raise AwayError(_seen(status, data))
    if status in REFUSED:
        return Answer(flaw=f"the server {_seen(status, data)}")
    if status != 200:
        raise UnavailableError(f"{url}/chat/completions {_seen(status, data)}: {_remedy(status)}")
    whole = _json(data)
    if not whole:
        raise AwayError(_seen(status, data))
    choices = whole.get("choices")
    if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
        raise UnavailableError(f"{url}/chat/completions {_seen(status, data)}: {_remedy(status)}")
    if not choices:
        return Answer(flaw="the server answered with no choices")
    message, reason = choices[0].get("message"), choices[0].get("finish_reason")
    text = message.get("content") if isinstance(message, dict) else None
    if reason == "length":
        return Answer(flaw="the answer is cut short: raise max_tokens")
    if not isinstance(text, str) or not text.strip():
        return Answer(flaw=f"the server answered without text (finish_reason {reason})")
    return Answer(text=text)


def exchange(
    server: Server, path: str, body: bytes | None, line: Line | None = None, *, timeout: float = math.inf
) -> tuple[int, bytes]:
    """Return status and body of an answer.

    Raises:
        AwayError: if there is no connection, or no whole answer in time.
        UnavailableError: if the answer is too large, or no HTTP.
    """
    seconds = min(server.timeout, timeout)
    try:
        return client.asked(
            Address(url=server.url), path, body, token=key(), timeout=seconds, longest=LARGEST, line=line
        )
    except (NotThereError, LateError) as error:
        raise AwayError(f"does not answer ({error})") from error
    except UnavailableError as error:
        raise UnavailableError(f"{server.url}{path}: {error}; {_remedy(200)}") from error


def key() -> str:
    """Return the key that the environment has; empty for none.

    Raises:
        UnavailableError: for a key that is none.
    """
    found = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", found):
        raise UnavailableError(f"{KEY} holds what no key does: set it anew, or unset it")
    return found


def _json(data: bytes) -> dict[str, Any]:
    """Return an answer's JSON object; empty for what is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _seen(status: int, data: bytes) -> str:
    """Return in a few words what a server answered."""
    found = _json(data)
    said = found.get("error", found)
    said = said.get("message", "") if isinstance(said, dict) else said
    text = " ".join((str(said) or data[:400].decode("utf-8", "replace")).split())
    text = text.replace(key() or "\0", "...")  # a server may repeat what it was sent
    return f"answers {status} with {text[:160]!r}" if text else f"answers {status} with nothing"


def _remedy(status: int) -> str:
    if status in (401, 403):
        return f"set {KEY} to a key that it takes"
    if status in BUSY:
        return "it is not ready; try again"
    return "this is no server of OpenAI's chat protocol at this url, which ends in /v1, or it lacks the model"
