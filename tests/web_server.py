"""A server of small files on this machine that answers as it is told to, well or badly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from hosted import hosted


@dataclass(kw_only=True)
class Reply:
    content: bytes = b""
    status: int = 200
    kind: str = "application/octet-stream"
    length: int | None = None
    """What the head says, where that is not so."""
    location: str = ""
    silent: bool = False
    """Whether nothing comes after the head."""


@dataclass(kw_only=True)
class WebServer:
    url: str = ""
    replies: dict[str, Reply] = field(default_factory=dict)
    """Path -> what is sent."""
    requests: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    @classmethod
    @contextmanager
    def hosting(cls) -> Iterator[WebServer]:
        """Run a server in a thread, on a free port of this machine."""
        web = cls()
        with hosted(type("Handler", (Handler,), {"web": web})) as web.url:
            try:
                yield web
            finally:
                web.done.set()


class Handler(BaseHTTPRequestHandler):
    web: WebServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: requests are kept."""

    def do_GET(self) -> None:
        self.web.requests.append(self.path)
        reply = self.web.replies.get(self.path, Reply(status=404))
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.content) if reply.length is None else reply.length))
        if reply.location:
            self.send_header("Location", reply.location)
        self.end_headers()
        if reply.silent:
            self.wfile.flush()
            self.web.done.wait(10)
            return
        with suppress(OSError):  # who asked has had enough
            self.wfile.write(reply.content)
