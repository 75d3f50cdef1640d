"""A scorer behind HTTP: what arrives is looked at by size, token and form before anything is computed."""

from __future__ import annotations

import hmac
import socket
import socketserver
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bench.contract import UnavailableError
from bench.serving import protocol
from bench.serving.scoring import BusyError, RefusedError, Scoring
from bench.serving.sent import MalformedError

PIECE = 1 << 16
LINGER = (2.0, 8 << 20)
"""Seconds and bytes for which a refused body is still taken: a client that sends reads no answer before it is done."""


class RefusalError(Exception):
    """A request that is answered with a status and a line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server takes of its clients."""

    reading: float = 30.0
    """Seconds for a request to arrive, and for its answer to leave."""
    connections: int = 64
    """At a time; others are refused."""
    bodies: int = 4
    """Bodies of the greatest length that may be in memory at a time, or as many bytes of pixels, of all clients."""


class Server(ThreadingHTTPServer):
    """Answers for one scorer.

    Args:
        host: that it listens on.
        port: 0 for any that is free.
        about: what is told of the scorer.
        scoring: that scores.
        token: that clients show; empty for none.
        limits: of what is taken.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        *,
        about: protocol.About,
        scoring: Scoring,
        token: str = "",
        limits: Limits = Limits(),
    ) -> None:
        self.about, self.scoring, self.token, self.limits = about, scoring, token, limits
        self.room = threading.BoundedSemaphore(limits.connections)
        self.bytes, self.lock = limits.bodies * about.max_bytes, threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        """Take the address, without asking anyone for its name."""
        socketserver.TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        """Return where it is."""
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}" if self.address_family == socket.AF_INET6 else f"http://{host}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a client on a thread of its own, if there is room for one."""
        if self.room.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(1.0)
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""

    def take(self, size: int) -> bool:
        """Return whether there is memory for so many bytes more; they are given back by taking -size."""
        with self.lock:
            if size > self.bytes:
                return False
            self.bytes -= size
            return True


class Handler(BaseHTTPRequestHandler):
    """Answers one request, then closes."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "arbor", ""

    def setup(self) -> None:
        """Hang up on a client that does not come to the end of its request in time."""
        self.late = threading.Event()
        self.timer = threading.Timer(self.server.limits.reading, self._hang_up)
        self.timer.daemon = True
        self.timer.start()
        self.left = 0
        """Bytes of the body that have not been read."""
        self.held = 0
        """Bytes of the server's memory for this client: of the body, then of the pixels in it."""
        super().setup()
        self.connection.settimeout(self.server.limits.reading)

    def finish(self) -> None:
        """Close."""
        self.timer.cancel()
        super().finish()

    def do_GET(self) -> None:
        """Answer /health and /info."""
        self._answer(self._told)

    def do_POST(self) -> None:
        """Answer /score."""
        self._answer(self._scored)

    def handle_expect_100(self) -> bool:
        """Let a client that asks wait, until its request has been looked at."""
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request."""
        self._send(code, protocol.error(explain or message or self.responses[code][0]))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def _hang_up(self) -> None:
        self.late.set()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def _answer(self, respond: Any) -> None:
        try:
            status, body = 200, respond()
        except RefusalError as error:
            status, body = error.status, protocol.error(str(error))
        self._send(status, body)

    def _send(self, status: int, body: bytes) -> None:
        self.timer.cancel()
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self._linger()

    def _linger(self) -> None:
        """Take what a refused client still sends, for a moment: closed at once, it would lose the answer."""
        until, room = time.monotonic() + LINGER[0], LINGER[1]
        with suppress(OSError):
            if self.left:
                self.connection.shutdown(socket.SHUT_WR)
            while self.left and room > 0 and (seconds := until - time.monotonic()) > 0:
                self.connection.settimeout(seconds)
                piece = self.connection.recv(PIECE)
                if not piece:
                    return
                room -= len(piece)

    def _told(self) -> bytes:
        if self.path == "/health":
            return protocol.written({"status": "ok", "protocol": protocol.VERSION})
        if self.path != "/info":
            raise RefusalError(404, "there are GET /health, GET /info and POST /score")
        self._check_token()
        return protocol.about(self.server.about)

    def _scored(self) -> bytes:
        told = self.server.about
        size = self._length()
        if self.path != "/score":
            raise RefusalError(404, "there are GET /health, GET /info and POST /score")
        self._check_token()
        if size > told.max_bytes:
            raise RefusalError(413, f"the body is {size:,} bytes: {told.max_bytes:,} at most are taken")
        try:
            request = self._request(size)
            values, failures = self.server.scoring.scored(request)
        except MalformedError as error:
            raise RefusalError(400, str(error)) from error
        except RefusedError as error:
            raise RefusalError(422, str(error)) from error
        except (BusyError, UnavailableError) as error:
            raise RefusalError(503, str(error)) from error
        except RuntimeError as error:
            raise RefusalError(500, f"the scorer failed: {error}") from error
        finally:
            self.server.take(-self.held)
        scored = protocol.Answer(scores=values, failures=failures, name=told.name, revision=told.info.revision)
        return protocol.answer(scored)

    def _check_token(self) -> None:
        token = self.server.token
        shown = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if token and not hmac.compare_digest(shown, f"Bearer {token}".encode()):
            raise RefusalError(401, "a token is wanted: Authorization: Bearer TOKEN")

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit() and len(text) < 16) or "Transfer-Encoding" in self.headers:
            self.left = 1  # or more, or nothing
            raise RefusalError(411, "a Content-Length is wanted")
        self.left = int(text)
        return self.left

    def _request(self, size: int) -> protocol.Request:
        told = self.server.about
        self._hold(size, "too many bodies are being read: try again")
        request = protocol.read_request(self._body(size), told.info, told.max_items, told.max_bytes, self._hold)
        self._hold(-size)  # the pixels alone wait
        return request

    def _hold(self, size: int, line: str = "too many images wait to be scored: try again") -> None:
        if not self.server.take(size):
            raise RefusalError(503, line)
        self.held += size

    def _body(self, size: int) -> bytes:
        """Return the body, if it comes in time."""
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        pieces = []
        try:
            while self.left and not self.late.is_set() and (piece := self.rfile.read1(min(self.left, PIECE))):
                pieces.append(piece)
                self.left -= len(piece)
        except TimeoutError:
            self.late.set()
        except OSError as error:
            raise RefusalError(408, "the connection broke") from error
        if self.left:
            late = f"not in {self.server.limits.reading:g} s" if self.late.is_set() else "it ended"
            raise RefusalError(408, f"{size - self.left:,} of the body's {size:,} bytes came, {late}")
        self.timer.cancel()
        return b"".join(pieces)
