"""A question to a server over HTTP, without trust: so long and no longer, so many bytes and no more."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Event, Timer
from urllib.parse import urlsplit

from bench.contract import UnavailableError
from bench.serving.protocol import is_loopback

CONNECTING = 10.0
"""Seconds that a connection may take."""
PIECE = 1 << 16


class NotThereError(Exception):
    """Nobody answers, or whoever did is gone: asked again, it may be back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is. Its answers come from there and from nowhere else: no proxy is asked, no redirection followed.

    Args:
        url: as a user writes it.

    Raises:
        ValueError: for what is no address of a server.
    """

    url: str

    def __post_init__(self) -> None:
        """Check the address."""
        if not _is_address(self.url):
            raise ValueError(f"{self.url!r} is no address of a server, as http://127.0.0.1:8000 is")
        parts = urlsplit(self.url)
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("an address has no user, query or fragment; a token is kept in a file or in $ARBOR_TOKEN")

    @property
    def is_open(self) -> bool:
        """Return whether what is said to it can be read on the way: it is another machine's, without TLS."""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and not is_loopback(parts.hostname or "")

    def connection(self, timeout: float) -> HTTPConnection:
        """Return a connection that is not open yet."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout)

    def path(self, path: str) -> str:
        """Return the path of a resource on the server."""
        return urlsplit(self.url).path.rstrip("/") + path


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False
    return known and url.isprintable() and " " not in url


def asked(
    address: Address, path: str, body: bytes | None, *, token: str, timeout: float, longest: int
) -> tuple[int, bytes]:
    """Return status and body of a server's answer.

    Args:
        address: of the server.
        path: on it.
        body: that is sent; None asks without.
        token: that is shown; may be empty.
        timeout: seconds for everything, from when the connection stands.
        longest: most bytes of an answer.

    Raises:
        NotThereError: the server is not there, or went away.
        UnavailableError: it is there, and answers too late, too much or no HTTP.
    """
    connection = address.connection(min(timeout, CONNECTING))
    late = Event()
    try:
        try:
            connection.connect()
        except OSError as error:
            raise NotThereError(f"no connection: {_why(error)}") from error
        sock = connection.sock
        sock.settimeout(None)  # a time-out of each read would let one byte a second go on for ever
        timer = Timer(timeout, _hang_up, [sock, late])
        timer.daemon = True
        timer.start()
        try:
            return _exchanged(connection, address.path(path), body, token, longest)
        except (OSError, HTTPException, ValueError) as error:
            if late.is_set():
                raise UnavailableError(f"no answer in {timeout:g} s") from error
            if isinstance(error, OSError):  # http.client's RemoteDisconnected is one
                raise NotThereError(f"the connection broke: {_why(error)}") from error
            raise UnavailableError(f"what answers speaks no HTTP: {_why(error)}") from error
        finally:
            timer.cancel()
    finally:
        connection.close()


def _hang_up(sock: socket.socket, late: Event) -> None:
    late.set()
    with suppress(OSError):  # it may be closed
        sock.shutdown(socket.SHUT_RDWR)


def _exchanged(
    connection: HTTPConnection, path: str, body: bytes | None, token: str, longest: int
) -> tuple[int, bytes]:
    headers = {"Connection": "close", "Accept": "application/json"}
    headers |= {"Content-Type": "application/json"} if body is not None else {}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    refused: OSError | None = None
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
    except OSError as error:  # who refuses a body may answer before it has it
        refused = error
    try:
        with connection.getresponse() as response:
            return response.status, _read(response, longest)
    except (OSError, HTTPException):
        if refused is not None:
            raise refused from None
        raise


def _read(response: HTTPResponse, longest: int) -> bytes:
    announced = response.length
    if announced is not None and announced > longest:
        raise UnavailableError(f"the answer is announced as {announced:,} bytes: {longest:,} at most are taken")
    pieces, size = [], 0
    while piece := response.read1(PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > longest:
            raise UnavailableError(f"the answer has more than {longest:,} bytes")
    if announced is not None and size < announced:
        raise ConnectionError(f"{announced:,} bytes were announced and {size:,} came")
    return b"".join(pieces)


def _why(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
