"""A server of OpenAI's chat protocol on this machine, which answers as a test says, also wrongly."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from hosted import hosted
from PIL import Image

MODEL = "judge"


@dataclass(kw_only=True)
class Reply:
    """One answer: by default a chat's, with a text."""

    text: str | None = "Final Score: 3"
    status: int = 200
    raw: bytes | None = None
    """The body, instead of a chat's."""
    length: int | None = None
    """What Content-Length says, where it lies."""
    kind: str = "application/json"
    finish: str = "stop"
    wait: float = 0.0
    trickle: bool = False
    """Whether it comes a byte at a time, each in good time, without an end."""
    location: str = ""

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        choice = {"index": 0, "message": {"role": "assistant", "content": self.text}, "finish_reason": self.finish}
        return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


@dataclass(kw_only=True)
class ChatServer:
    answer: Callable[[dict[str, Any]], Reply] = lambda request: Reply()
    models: Reply = field(default_factory=lambda: Reply(raw=json.dumps({"data": [{"id": MODEL}]}).encode()))
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    """What each request said in Authorization."""
    now: int = 0
    most: int = 0
    """The most requests that were there at once."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self, port: int = 0) -> Iterator[ChatServer]:
        with hosted(_handler(self), port) as address:
            self.url = f"{address}/v1"
            yield self


def text_of(request: dict[str, Any]) -> str:
    """Return a request's question."""
    return request["messages"][0]["content"][-1]["text"]


def prompt_of(request: dict[str, Any]) -> str:
    """Return what stands in the last brackets of a request's question."""
    return text_of(request).rpartition("[")[2].removesuffix("]")


def images_of(request: dict[str, Any]) -> list[Image.Image]:
    """Return the images of a request."""
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"][:-1]]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) for url in urls]


def _handler(state: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            state.keys.append(self.headers["Authorization"])
            self.give(state.models if self.path == "/v1/models" else Reply(raw=b"not found", status=404))

        def do_POST(self) -> None:
            state.keys.append(self.headers["Authorization"])
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(request)
                state.now += 1
                state.most = max(state.most, state.now)
            try:
                reply = state.answer(request)
                time.sleep(reply.wait)
            finally:
                with state.lock:
                    state.now -= 1
            self.give(reply if self.path == "/v1/chat/completions" else Reply(raw=b"not found", status=404))

        def give(self, reply: Reply) -> None:
            body = reply.body()
            try:
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.kind)
                if reply.location:
                    self.send_header("Location", reply.location)
                if not reply.trickle:
                    self.send_header("Content-Length", str(len(body) if reply.length is None else reply.length))
                self.end_headers()
                self.wfile.write(body)
                while reply.trickle:
                    time.sleep(0.02)
                    self.wfile.write(b" ")
            except OSError:  # the client went away
                pass

    return Handler
